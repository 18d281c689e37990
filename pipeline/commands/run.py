"""catvec run."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.live import progress_shown, signals_stop
from pipeline.commands.options import Database, Home, Json, open_database, take, with_settings
from pipeline.commands.terminal import print_json, say
from pipeline.settings import CatalogSettings, DecodeSettings, FetchSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from pipeline.records import RunSummary

Tolerated = Annotated[
    float,
    typer.Option(
        "--tolerate-failures",
        min=0,
        max=1,
        envvar="CATVEC_TOLERATE_FAILURES",
        help="share of the images that may fail, 0 to 1, before the exit code becomes 3",
    ),
]


@with_settings(CatalogSettings, FetchSettings, DecodeSettings, ModelSettings, RunSettings)
def run(
    db: Database = None,
    home: Home = None,
    tolerate_failures: Tolerated = 0.05,
    json: Json = False,
    **options: Any,
) -> None:
    """Bring the database up to a catalog: read it, fetch its images, encode them, write the vectors.

    Run it again at any time: it goes on where it stopped, and does only what is missing.
    """
    settings = take(
        RunSettings,
        options,
        catalog=take(CatalogSettings, options),
        fetch=take(FetchSettings, options),
        decode=take(DecodeSettings, options),
        model=take(ModelSettings, options),
    )
    summary, exit_code = run_catalog(settings, db=db, home=home)
    if json:
        print_json(summary)
    if exit_code == 0 and summary.failed > tolerate_failures * summary.seen:
        say(f"more than --tolerate-failures {tolerate_failures:g} of the images failed; see: catvec failures")
        exit_code = 3
    raise typer.Exit(exit_code)


def run_catalog(settings: RunSettings, *, db: str | None, home: Any) -> tuple[RunSummary, int]:
    """Ingest with progress and signals; the summary has been said. Returns it with the exit code so far."""
    from pipeline.engine.stop import Stop
    from pipeline.ingest import ingest
    from pipeline.progress import Progress

    stop, progress = Stop(), Progress()
    with open_database(db, home) as url, signals_stop(stop) as signals:
        try:
            with progress_shown(progress):
                summary = ingest(settings, url=url, progress=progress, stop=stop, stdin=sys.stdin.buffer)
        except KeyboardInterrupt:
            say(f"interrupted while {progress.snapshot().phase}; to go on, run the same command again")
            raise typer.Exit(signals.exit_code or 130) from None
    _say_summary(summary)
    return summary, 0 if summary.finished else signals.exit_code


def _say_summary(summary: RunSummary) -> None:
    for line in summary_lines(summary):
        say(line)


def summary_lines(summary: RunSummary) -> list[str]:
    """What a run did, in words; the last line says what to type next."""
    counts = ", ".join(f"{getattr(summary, name):,} {name}" for name in ("unchanged", "reused", "embedded", "failed"))
    lines = [
        f"{summary.seen:,} images seen: {counts}" + (f", {summary.pending:,} pending" if summary.pending else ""),
        f"model {summary.model} ({summary.dims} dimensions) on {summary.device} in {summary.precision}, "
        f"batches of {summary.batch_size}: {summary.images_per_s:,.1f} images/s, {summary.seconds:,.1f} s in all",
    ]
    if summary.removed:
        lines.append(f"{summary.removed:,} images left the catalog and the search results")
    if summary.failures_by_code:
        codes = ", ".join(f"{code} {count:,}" for code, count in summary.failures_by_code.items())
        lines.append(f"failed: {codes}; see: catvec failures")
    if not summary.finished:
        lines.append(f"stopped early; to go on: {shlex.join(['catvec', *sys.argv[1:]])}")
    elif summary.unchanged + summary.reused + summary.embedded:
        lines.append("next: catvec similar PRODUCT_ID, catvec search --image FILE, or SQL: catvec db psql")
    else:
        lines.append("nothing could be embedded; see: catvec failures")
    return lines

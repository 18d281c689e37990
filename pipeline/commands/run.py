"""catvec run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.live import progress_shown, signals_stop
from pipeline.commands.options import Database, Home, Json, open_database, place_of, take, with_settings
from pipeline.commands.terminal import print_json, say
from pipeline.errors import CatvecError
from pipeline.settings import CatalogSettings, DecodeSettings, FetchSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from pathlib import Path

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
        say(f"{summary.failed:,} of {summary.seen:,} failed, more than --tolerate-failures {tolerate_failures:g}")
        exit_code = 3
    raise typer.Exit(exit_code)


def run_catalog(settings: RunSettings, *, db: str | None, home: Path | None) -> tuple[RunSummary, int]:
    """Ingest with progress and signals; the summary has been said. Returns it with the exit code so far."""
    from pipeline.engine.stop import Stop
    from pipeline.ingest import ingest
    from pipeline.progress import Progress
    from pipeline.status import read_models

    stop, progress = Stop(), Progress()
    with open_database(db, home) as url, signals_stop(stop) as signals:
        try:
            with progress_shown(progress):
                summary = ingest(settings, url=url, progress=progress, stop=stop, stdin=sys.stdin.buffer)
            active = next((model.name for model in read_models(url) if model.is_active), None)
        except (KeyboardInterrupt, CatvecError) as error:
            if isinstance(error, CatvecError):
                if not signals.received:
                    raise
                say(f"error: {error.message}")
            say(f"interrupted while {progress.snapshot().phase}; to go on, run the same command again")
            raise typer.Exit(signals.exit_code or 130) from None
    for line in summary_lines(summary, active=active, place=place_of(db, home)):
        say(line)
    return summary, 0 if summary.finished else signals.exit_code


def summary_lines(summary: RunSummary, *, active: str | None, place: str) -> list[str]:
    """What a run did, in words; the last line says what to type next. `active` is the model that apps read."""
    counts = ", ".join(f"{getattr(summary, name):,} {name}" for name in ("unchanged", "reused", "embedded", "failed"))
    lines = [
        f"{summary.seen:,} images seen: {counts}" + (f", {summary.pending:,} pending" if summary.pending else ""),
        f"model {summary.model} ({summary.dims} dimensions) on {summary.device} in {summary.precision}, "
        f"batches of {summary.batch_size}: {_pace(summary)}{summary.seconds:,.1f} s in all",
    ]
    if summary.removed:
        images = "image" if summary.removed == 1 else "images"
        lines.append(f"{summary.removed:,} {images} left the catalog and the search results")
    if summary.failures_by_code:
        codes = ", ".join(f"{code} {count:,}" for code, count in summary.failures_by_code.items())
        lines.append(f"failed: {codes}; see: catvec failures{place}")
    return [*lines, _next_step(summary, active=active, place=place)]


def _pace(summary: RunSummary) -> str:
    return f"{summary.images_per_s:,.1f} images/s, " if summary.embedded + summary.reused else ""


def _next_step(summary: RunSummary, *, active: str | None, place: str) -> str:
    if not summary.finished:
        return "stopped early; to go on, run the same command again"
    if not summary.unchanged + summary.reused + summary.embedded:
        return f"nothing could be embedded; see: catvec failures{place}"
    switch = f"catvec models activate {summary.model}{place}"
    if active is None:
        return f"apps read no model yet; next, as the owner of catvec's tables: {switch}"
    if active != summary.model:
        return f"apps go on reading model {active}; next, to let them read {summary.model}: {switch}"
    return (
        f"next: catvec similar PRODUCT_ID{place}, or catvec search --image FILE{place}, or SQL: catvec db psql{place}"
    )

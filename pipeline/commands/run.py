"""catvec run and catvec plan."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.beside_bundle import refuse_beside_bundle
from pipeline.commands.estimate import refuse_without_estimate
from pipeline.commands.live import beside, progress_shown, signals_stop
from pipeline.commands.options import (
    Database,
    Home,
    Json,
    WaitForRun,
    home_of,
    open_database,
    path,
    place_of,
    take,
    with_settings,
)
from pipeline.commands.outcome import end_now, exit_code_of, metrics_of_failure, write_metrics_file
from pipeline.commands.summary import bundle_lines, summary_lines
from pipeline.commands.terminal import print_json, print_table, say, say_error
from pipeline.durations import parse_duration
from pipeline.errors import BreakerError, CatvecError
from pipeline.settings import (
    CatalogSettings,
    DecodeSettings,
    EstimateSettings,
    FetchSettings,
    ModelSettings,
    RunSettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.commands.live import Signals
    from pipeline.engine.stop import Stop
    from pipeline.ingest import Ended
    from pipeline.plan import Plan
    from pipeline.progress import Progress
    from pipeline.records import RunSummary
    from pipeline.timeline import Timeline

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
MaxRuntime = Annotated[
    str | None,
    typer.Option(
        "--max-runtime",
        metavar="DURATION",
        envvar="CATVEC_MAX_RUNTIME",
        help="stop in order after this long, such as 3h; the next run goes on. The exit code is 0",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", parser=path, envvar="CATVEC_REPORT", help="HTML page to write about the run, with pictures"
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(
        "--metrics-file",
        parser=path,
        envvar="CATVEC_METRICS_FILE",
        help="file.prom to write for the textfile collector of Prometheus' node_exporter",
    ),
]
To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        parser=path,
        metavar="FOLDER",
        help="write a bundle into this folder, for a database that cannot be reached from here; later: catvec load",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="show what would be done, as catvec plan does; write nothing")
]
Foretell = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="fetch and decode a sample of the images, and say what a run would download, how long it would take "
        "and, with --gpu-price, cost; --sample, --cores, --images-per-s and --bench are for this",
    ),
]

SAMPLE_EVERY_S = 1.0
"""how often the report's chart takes a point; a long run keeps fewer"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a run may wait for another and how long it may last (None: as it takes), and how much of it may
    fail."""

    wait: timedelta = timedelta(0)
    max_runtime: timedelta | None = None
    tolerated: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that came to an end of its own; `breaker` says that too many images failed, `left_behind` that a thread
    is inside the model yet."""

    summary: RunSummary
    exit_code: int
    breaker: BreakerError | None
    left_behind: bool


@with_settings(CatalogSettings, FetchSettings, DecodeSettings, ModelSettings, RunSettings)
def run(
    context: typer.Context,
    db: Database = None,
    home: Home = None,
    to: To = None,
    tolerate_failures: Tolerated = 0.05,
    max_runtime: MaxRuntime = None,
    wait: WaitForRun = "0s",
    report: Report = None,
    metrics_file: MetricsFile = None,
    dry_run: DryRun = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Bring the database up to a catalog: read it, fetch its images, encode them, write the vectors.

    Run it again at any time: it goes on where it stopped, and does only what is missing.
    """
    settings = _take_settings(options, home)
    longest = parse_duration(max_runtime) if max_runtime else None
    limits = Limits(wait=parse_duration(wait), max_runtime=longest, tolerated=tolerate_failures)
    if to is not None:
        refuse_beside_bundle(context)
    if dry_run:
        return show_plan(settings, db=db, home=home, as_json=json)
    with metrics_of_failure(metrics_file, settings):
        if to is None:
            outcome = run_catalog(settings, limits, db=db, home=home, report=report)
        else:
            outcome = run_to_bundle(settings, limits, to)
    write_metrics_file(metrics_file, settings, outcome.summary, outcome.exit_code)
    if json:
        print_json(outcome.summary)  # after everything else that is said: the last line of a log, too
    if outcome.breaker is not None:
        raise outcome.breaker
    if outcome.left_behind:
        end_now(outcome.exit_code)
    raise typer.Exit(outcome.exit_code)


@with_settings(CatalogSettings, FetchSettings, DecodeSettings, ModelSettings, RunSettings, EstimateSettings)
def plan(
    context: typer.Context,
    db: Database = None,
    home: Home = None,
    estimate: Foretell = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Show what a run would do with a catalog: what is new, changed, moved, due or gone. Writes nothing."""
    if not estimate:
        refuse_without_estimate(context)
    settings, wanted = _take_settings(options, home), take(EstimateSettings, options)
    show_plan(settings, db=db, home=home, as_json=json, wanted=wanted if estimate else None)


def _take_settings(options: dict[str, Any], home: Path | None) -> RunSettings:
    settings = take(
        RunSettings,
        options,
        catalog=take(CatalogSettings, options),
        fetch=take(FetchSettings, options),
        decode=take(DecodeSettings, options),
        model=take(ModelSettings, options),
    )
    return replace(settings, home=home_of(home))


def run_catalog(
    settings: RunSettings, limits: Limits, *, db: str | None, home: Path | None, report: Path | None = None
) -> Outcome:
    """Ingest with progress and signals; the summary has been said, and the report written."""
    from pipeline.engine.stop import Stop
    from pipeline.ingest import ingest
    from pipeline.progress import Progress
    from pipeline.status import read_models
    from pipeline.timeline import Timeline

    if report is not None:
        from pipeline.report.page import check_report_path

        check_report_path(report)
    stop, progress, timeline = Stop(), Progress(), Timeline()
    with open_database(db, home) as url, signals_stop(stop) as signals:
        with beside(partial(_sample, progress, timeline), name="timeline") if report else nullcontext():
            work = partial(ingest, settings, url=url, progress=progress, stop=stop)
            ended = _watch(work, limits, progress=progress, stop=stop, signals=signals, price=settings.gpu_price)
        summary = ended.summary
        active = next((model for model in read_models(url) if model.is_active), None)
        for line in summary_lines(summary, active=active, place=place_of(db, home)):
            say(line)
        if report is not None:
            _write_report(url, report, settings, summary, timeline)
    code = exit_code_of(ended.breaker) if ended.breaker else _exit_code(summary, limits, signals)
    return Outcome(summary=summary, exit_code=code, breaker=ended.breaker, left_behind=stop.left_behind)


def run_to_bundle(settings: RunSettings, limits: Limits, folder: Path) -> Outcome:
    """The same without a database: what becomes of the images goes into a bundle."""
    from pipeline.bundling import ingest_to_bundle
    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress

    stop, progress = Stop(), Progress()
    with signals_stop(stop) as signals:
        work = partial(ingest_to_bundle, settings, folder, progress=progress, stop=stop)
        ended = _watch(work, limits, progress=progress, stop=stop, signals=signals, price=settings.gpu_price)
    for line in bundle_lines(ended.summary, folder):
        say(line)
    code = exit_code_of(ended.breaker) if ended.breaker else _exit_code(ended.summary, limits, signals)
    return Outcome(summary=ended.summary, exit_code=code, breaker=ended.breaker, left_behind=stop.left_behind)


def _watch(
    work: Callable[..., Ended],
    limits: Limits,
    *,
    progress: Progress,
    stop: Stop,
    signals: Signals,
    price: float | None,
) -> Ended:
    """Do the work of a run with its progress on the terminal, and say how to go on when it is interrupted."""
    try:
        with progress_shown(progress, price=price), _deadline(stop, limits.max_runtime):
            return work(wait=limits.wait, stdin=sys.stdin.buffer)
    except (KeyboardInterrupt, CatvecError) as error:
        if isinstance(error, CatvecError):
            if not signals.received:
                raise
            say_error(error)
        say(f"interrupted while {progress.snapshot().phase}; to go on, run the same command again")
        raise typer.Exit(signals.exit_code or 130) from None


@contextmanager
def _deadline(stop: Stop, longest: timedelta | None) -> Iterator[None]:
    """Ask the run to stop in order when its time is up."""
    if longest is None:
        yield
        return
    timer = threading.Timer(longest.total_seconds(), stop.ask, ("max_runtime",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _sample(progress: Progress, timeline: Timeline, ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_EVERY_S):
        timeline.add(progress.snapshot())
    timeline.add(progress.snapshot())


def _write_report(url: str, path: Path, settings: RunSettings, summary: RunSummary, timeline: Timeline) -> None:
    from pipeline.report.page import write_report

    try:
        write_report(url, path, summary=summary, timeline=timeline, settings=settings)
    except CatvecError as error:
        # the run is done and stored; a page that cannot be written does not undo it
        say(f"warning: no report: {error.message}", level="warning")
    except KeyboardInterrupt:
        say("warning: no report: interrupted while it was written; the run itself is done", level="warning")
    else:
        say(f"report: {path}")


def _exit_code(summary: RunSummary, limits: Limits, signals: Signals) -> int:
    if not summary.finished:
        return signals.exit_code
    if summary.failed > limits.tolerated * summary.seen:
        say(f"{summary.failed:,} of {summary.seen:,} failed, more than --tolerate-failures {limits.tolerated:g}")
        return 3
    return 0


def show_plan(
    settings: RunSettings, *, db: str | None, home: Path | None, as_json: bool, wanted: EstimateSettings | None = None
) -> None:
    """What a run would do, as tables or as one JSON object; with `wanted`, also what it would take."""
    from pipeline.commands.estimate import take_estimate
    from pipeline.plan import make_plan

    with open_database(db, home) as url:
        if wanted is not None:
            found = take_estimate(settings, wanted, url=url, stdin=sys.stdin.buffer)
        else:
            found = make_plan(settings, url=url, stdin=sys.stdin.buffer)
    if as_json:
        print_json(found)
    else:
        _print_plan(found)
    if found.refusal:
        say(f"a run would refuse this catalog: {found.refusal}")
    else:
        say(f"{found.to_fetch:,} images to ask for; nothing was written; to do it: catvec run, with the same options")


def _print_plan(found: Plan) -> None:
    from pipeline.commands.estimate import print_estimate

    products, images = found.products, found.images
    rows = [
        ("products", "new", products.new, "in the catalog for the first time, or since they were forgotten"),
        ("", "changed", products.changed, "other title, price, attributes …, or back again; costs no encoding"),
        ("", "unchanged", products.unchanged, ""),
        ("", "removed", products.removed, "not in the catalog any more: leave the search results"),
        ("images", "new", images.new, "to fetch and encode"),
        ("", "moved", images.moved, "at another URL than before: to fetch; encoded if their bytes are new"),
        ("", "back", images.back, "had left the catalog; known bytes cost no encoding"),
        ("", "missing", images.missing, "stored, but without a vector under this model"),
        ("", "recheck", images.recheck, "to be asked for again, by --recheck"),
        ("", "retry", images.retry, "failed before, and due for another try"),
        ("", "deferred", images.deferred, "failed before, not due yet; see: catvec failures"),
        ("", "unchanged", images.unchanged, ""),
        ("", "removed", images.removed, "leave the search results"),
        (
            "rows",
            "bad",
            sum(found.bad_rows.values()),
            ", ".join(f"{code} {n:,}" for code, n in found.bad_rows.items()),
        ),
    ]
    print_table(("what", "state", "count", "meaning"), rows, right=(2,))
    if found.estimate is not None:
        print_estimate(found.estimate)
    if found.is_new_model:
        say(f"model {found.model} is new in this database: every image would be encoded")

"""catvec index: the index of a model's vectors, built, looked at, renewed, dropped and tuned."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads these annotations
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import ActiveModel, Database, Home, Json, Wait, Yes, open_database, path
from pipeline.commands.terminal import print_json, print_table, say
from pipeline.errors import ConfigError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.indexing import IndexReport
    from pipeline.store.index import IndexState
    from pipeline.store.models import StoredModel
    from pipeline.tuning import Tuning

GREAT_M = 32
"""what is worth trying when a lesser m misses too much; beyond, the index grows and little is gained"""
MOST_MB = 2**21 - 1
"""what PostgreSQL takes for maintenance_work_mem"""

index_app = typer.Typer(help="The index of a model's vectors: build it, look at it, renew, drop and tune it.")

M = Annotated[
    int | None,
    typer.Option("--m", min=2, max=100, help="neighbours of a vector in the graph; else as it was, 16 at first"),
]
EfConstruction = Annotated[
    int | None,
    typer.Option(
        "--ef-construction",
        min=4,
        max=1000,
        help="candidates looked at for each vector while building; else as it was, 128 at first",
    ),
]
Binary = Annotated[
    bool | None,
    typer.Option(
        "--binary-rerank/--no-binary-rerank",
        help="one bit a dimension in the index, compared again by the functions; else as it was, off at first",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory", metavar="MB", min=1, max=MOST_MB, help="memory for the graph while it is built; else computed"
    ),
]


@index_app.command()
def build(
    model: ActiveModel = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    binary: Binary = None,
    memory: Memory = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Have a valid index: build it if there is none. `catvec run` does so at its end."""
    from pipeline.indexing import IndexOptions
    from pipeline.indexing import build as build_one

    options = IndexOptions(m=m, ef_construction=ef_construction, binary=binary, memory_mb=memory)
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        state = build_one(url, model, options, progress)
    _print_state(state, json=json)


@index_app.command()
def rebuild(
    model: ActiveModel = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    binary: Binary = None,
    memory: Memory = None,
    wait: Wait = 60.0,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Build a new index beside the old one and let it take its place; apps go on searching all the while."""
    from pipeline.indexing import IndexOptions
    from pipeline.indexing import rebuild as rebuild_one

    options = IndexOptions(m=m, ef_construction=ef_construction, binary=binary, memory_mb=memory, wait_s=wait)
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        state = rebuild_one(url, model, options, progress)
    _print_state(state, json=json)


def _print_state(state: IndexState, *, json: bool) -> None:
    if json:
        print_json(state)
        return
    say(
        f"index {state.name} is valid: {state.kind}, m {state.m}, ef_construction {state.ef_construction}, "
        f"{_size(state.size_bytes)}"
    )


@index_app.command()
def drop(
    model: ActiveModel = None,
    yes: Yes = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Take the index away. Searches go on without it, slower; the next `catvec run` builds it again."""
    from pipeline.indexing import drop as drop_one

    with open_database(db, home) as url, interruptible(Progress(phase="dropping the index")):
        gone = drop_one(url, model, is_sure=partial(_is_sure, is_told=yes))
    if gone is None:
        say("nothing was dropped")
        raise typer.Exit(1)
    if gone.exists:
        say(f"index {gone.name} is dropped; the next run builds it again, and so does: catvec index build")
    else:
        say("there is no index to drop")


def _is_sure(model: StoredModel, index: IndexState, *, is_told: bool) -> bool:
    if is_told:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            f"dropping index {index.name} makes searches slow, and there is no terminal to ask on",
            hint=f"say so beforehand: catvec index drop {model.name} --yes",
        )
    answers = "answers stay as they are" if model.index_kind == "binary" else "answers are exact"
    say(f"without it every search reads all {model.vectors:,} vectors of model {model.name}: {answers}, and slower")
    return typer.confirm(f"drop index {index.name} ({_size(index.size_bytes)})?", err=True)


@index_app.command()
def status(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="name of a model; else all of them")] = None,
    recall: Annotated[
        bool, typer.Option("--recall/--no-recall", help="measure recall with some vectors of the table, in seconds")
    ] = True,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Show each model's index: state, size, recall, bloat, dead rows, and what to do about them."""
    from pipeline.indexing import read_reports

    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        reports = read_reports(url, model, progress, with_recall=recall)
    if json:
        print_json({"indexes": reports})
    elif not reports:
        say("no model yet; begin with: catvec run CATALOG")
    else:
        _print_reports(reports)


def _print_reports(reports: Sequence[IndexReport]) -> None:
    rows = [
        (
            *(report.model, report.kind, report.state, report.rows, _size(report.size_bytes)),
            *(report.m, report.ef_construction, report.ef_search, report.recall),
            *(report.bloat and f"{report.bloat:.2f}", f"{report.dead_share:.0%}"),
        )
        for report in reports
    ]
    headers = (
        "model",
        "kind",
        "index",
        "rows",
        "size",
        "m",
        "ef_construction",
        "ef_search",
        "recall@10",
        "bloat",
        "dead",
    )
    print_table(headers, rows, right=(3, 4, 5, 6, 7, 8, 9, 10), spare=(6, 5, 9, 10))
    for report in reports:
        say(f"{report.model}: {report.advice or 'nothing to do'}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MB"


@index_app.command()
def tune(
    model: ActiveModel = None,
    sample: Annotated[int, typer.Option("--sample", min=10, help="vectors of the table to search with")] = 200,
    target: Annotated[
        float, typer.Option("--target-recall", min=0.5, max=1, help="recall@10 to reach with the least work")
    ] = 0.98,
    chart: Annotated[
        Path | None, typer.Option("--chart", parser=path, metavar="FILE", help="draw the curve, .png or .svg")
    ] = None,
    m: Annotated[str, typer.Option("--m", metavar="LIST", help="try these on a copy, such as 8,16,32")] = "",
    ef_construction: Annotated[
        str, typer.Option("--ef-construction", metavar="LIST", help="try these on a copy, such as 64,128,256")
    ] = "",
    rows: Annotated[int, typer.Option("--rows", min=100, help="vectors in that copy")] = 20_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="store nothing")] = False,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Measure recall and latency of searches over ef_search, and let the functions use what is good enough."""
    from pipeline.charts import draw_tuning, require_charts
    from pipeline.tuning import TuneOptions
    from pipeline.tuning import tune as tune_one

    options = TuneOptions(
        sample=sample,
        target_recall=target,
        m=_numbers("--m", m, least=2, most=100),
        ef_construction=_numbers("--ef-construction", ef_construction, least=4, most=1000),
        rows=rows,
        dry_run=dry_run,
    )
    if chart is not None:
        require_charts(chart)
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        tuning = tune_one(url, model, options, progress)
    if json:
        print_json(tuning)
    else:
        print_tuning(tuning)
    if chart is not None:
        # last, because it may fail, and then nothing that was measured is lost
        draw_tuning(tuning, chart)
        say(f"the curve is in {chart}")


def _numbers(option: str, text: str, *, least: int, most: int) -> tuple[int, ...]:
    """The numbers of a list with commas. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if all(part.isdecimal() and least <= int(part) <= most for part in parts):
        return tuple(int(part) for part in parts)
    raise ConfigError(f"{option} is {text!r}, expected numbers from {least} to {most} with commas between")


def print_tuning(tuning: Tuning) -> None:
    """The curve as a table, what other indexes come to, and in words what was chosen."""
    rows: list[tuple[object, ...]] = [
        (
            measured.ef_search,
            f"{measured.recall:.4f}",  # 0.9796 is not 0.98
            f"{measured.latency.median_ms:.1f}",
            f"{measured.latency.p95_ms:.1f}",
            "chosen" if measured == tuning.chosen else "",
        )
        for measured in tuning.curve
    ]
    rows.append(("exact", "1.0000", f"{tuning.exact.median_ms:.1f}", f"{tuning.exact.p95_ms:.1f}", ""))
    print_table(("ef_search", "recall@10", "median ms", "p95 ms", ""), rows, right=(0, 1, 2, 3))
    if tuning.candidates:
        _print_candidates(tuning)
    if not tuning.reaches_target:
        say(f"no ef_search reaches a recall of {tuning.target_recall:g}; {_beyond(tuning)}")
    chosen = f"ef_search {tuning.chosen.ef_search} (before: {tuning.before})"
    say(
        f"the functions search with {chosen} from now on"
        if tuning.is_stored
        else f"nothing is stored; it would be {chosen}"
    )


def _beyond(tuning: Tuning) -> str:
    """What else there is to do for more recall."""
    rebuild = f"catvec index rebuild {tuning.model}"
    if tuning.kind == "binary":
        return f"an index of the embeddings instead of their bits may: {rebuild} --no-binary-rerank"
    if tuning.m < GREAT_M:
        return f"an index with a greater m may: {rebuild} --m {GREAT_M} --ef-construction {8 * GREAT_M}"
    return f"the index is a large one already (m {tuning.m}); what others would give: catvec index tune --m LIST"


def _print_candidates(tuning: Tuning) -> None:
    rows = []
    for candidate in tuning.candidates:
        good = next((entry for entry in candidate.curve if entry.recall >= tuning.target_recall), None)
        best = good or candidate.curve[-1]
        rows.append(
            (
                *(
                    str(candidate.m),
                    candidate.ef_construction,
                    f"{candidate.build_s:.1f}",
                    _size(candidate.size_bytes),
                ),
                *(best.ef_search, f"{best.recall:.4f}", f"{best.latency.median_ms:.1f}"),
            )
        )
    headers = ("m", "ef_construction", "build s", "size", "ef_search", "recall@10", "median ms")
    print_table(headers, rows, right=(0, 1, 2, 3, 4, 5, 6))
    say(
        f"other indexes on a copy of {tuning.candidates[0].rows:,} vectors, each at the least ef_search to reach "
        f"{tuning.target_recall:g}; to have one: catvec index rebuild {tuning.model} --m M --ef-construction N"
    )

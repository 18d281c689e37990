"""catvec status."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.commands.options import Database, Home, Json, open_database, place_of
from pipeline.commands.terminal import print_data, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.status import ModelStatus, Status, Trend
    from pipeline.store.failures import FailureCount
    from pipeline.store.status import Leftovers, RunStatus

BLOCKS = "▁▂▃▄▅▆▇█"


def status(json: Json = False, db: Database = None, home: Home = None) -> None:
    """Show products, models, indexes, the last runs and how they compare, and what failed."""
    from pipeline.status import read_status

    with open_database(db, home) as url:
        found = read_status(url)
    if json:
        print_json(found)
    else:
        _print_status(found, place=place_of(db, home))


def _print_status(found: Status, *, place: str) -> None:
    print_data(f"{found.products:,} products")
    if not found.runs:
        say("no run yet; begin with: catvec run CATALOG")
        return
    _print_models(found.models)
    _print_runs(found.runs)
    for trend in found.trends:
        _print_trend(trend)
    if found.failures:
        _print_failures(found.failures)
        say(f"see why: catvec failures{place}")
    if found.leftovers is not None:
        _print_leftovers(found.leftovers)
    for sentence in found.unseen:
        say(sentence)


def _print_models(models: Sequence[ModelStatus]) -> None:
    rows = [
        (entry.model.name, entry.model.state, entry.model.dims, _covered(entry), _index(entry), entry.oldest_check)
        for entry in models
    ]
    headers = ("model", "state", "dims", "images embedded", "index", "oldest check")
    print_table(headers, rows, right=(2, 3), spare=(2, 1))


def _covered(entry: ModelStatus) -> str:
    if entry.coverage is None:
        return f"about {entry.model.vectors:,}"
    return f"{entry.coverage.embedded:,} of {entry.coverage.images:,}"


def _index(entry: ModelStatus) -> str | None:
    if entry.index is None:
        return None
    index = "valid" if entry.index.is_valid else "broken" if entry.index.exists else "none"
    return f"{index} {entry.index.size_bytes / 2**20:,.1f} MB" if entry.index.exists else index


def _print_runs(runs: Sequence[RunStatus]) -> None:
    rows = [
        (
            *(run.run_id, "lost" if run.is_lost else run.state, _source(run), run.started_at, _seconds(run.seconds)),
            *(run.seen, run.unchanged, run.checked, run.changed, run.reused, run.embedded, run.failed, run.removed),
        )
        for run in runs
    ]
    counts = ("seen", "unchanged", "checked", "changed", "reused", "embedded", "failed", "removed")
    headers = ("run", "state", "catalog", "started", "took", *counts)
    print_table(headers, rows, right=tuple(range(4, len(headers))), spare=(2, 12, 8, 7, 9, 6))
    for run in runs:
        sentence = _what_happened(run)
        if sentence is not None:
            print_data(sentence)


def _source(run: RunStatus | Trend) -> str:
    return f"{run.catalog}, shard {run.shard}" if run.shard else run.catalog


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def _what_happened(run: RunStatus) -> str | None:
    """A sentence on a run that did not simply finish."""
    from pipeline.doctor.server import span

    which = f"run {run.run_id}" + (f" (shard {run.shard})" if run.shard else "")
    where = f"process {run.pid} on {run.host}"
    silence = span(timedelta(seconds=run.heartbeat_age_s))
    if run.is_lost:
        return f"{which} is lost: {where} disappeared, last sign of life {silence} ago"
    if run.state == "running":
        since = f"since {run.started_at.astimezone():%Y-%m-%d %H:%M:%S}"
        return f"{which} is going on: {where}, {since}, last sign of life {silence} ago"
    if run.state == "stopped":
        pending = f", {run.pending:,} images pending" if run.pending else ""
        return f"{which} was stopped{f' by {run.stopped_by}' if run.stopped_by else ''}{pending}"
    return f"{which} failed: {run.error or run.stopped_by}" if run.state == "failed" else None


def _print_trend(trend: Trend) -> None:
    runs, medians = trend.runs, trend.medians
    last = runs[-1]
    rows = [
        ("took", _seconds(medians.seconds), _seconds(last.seconds), sparkline([run.seconds for run in runs])),
        ("embedded", f"{medians.embedded:,.0f}", last.embedded, sparkline([run.embedded for run in runs])),
        (
            "failed",
            *(f"{medians.failed_share:.1%}", f"{last.failed_share:.1%}"),
            sparkline([run.failed_share for run in runs]),
        ),
    ]
    what = f"{_source(trend)}, {trend.model}"
    print_table((what, f"median of {len(runs) - 1}", "last", f"last {len(runs)}"), rows, right=(1, 2))
    for remark in trend.remarks:
        print_data(remark)


def sparkline(values: Sequence[float]) -> str:
    """One block for each value, the highest for the greatest; no value is below 0."""
    greatest = max(values)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round(value / greatest * steps)] if greatest else BLOCKS[0] for value in values)


def _print_failures(counts: Sequence[FailureCount]) -> None:
    rows = [
        (count.code, count.stage, count.failures, count.due, count.deferred, count.sample[:200]) for count in counts
    ]
    headers = ("failure", "stage", "count", "due", "deferred", "for example")
    print_table(headers, rows, right=(2, 3, 4), spare=(1,), long=(5,))


def _print_leftovers(left: Leftovers) -> None:
    if left.since is None:
        return
    counts = ((left.products, "product"), (left.images, "image"), (left.vectors, "unused vector"))
    parts = [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
    print_data(f"waiting to be deleted (--forget-after): {', '.join(parts)}, the first since {left.since:%Y-%m-%d}")

"""What a run or a load did, in words, and what to type next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pipeline.pace import show_cost

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import RunSummary
    from pipeline.store.models import StoredModel


def summary_lines(
    summary: RunSummary, *, active: StoredModel | None, place: str, source: str | None = None
) -> list[str]:
    """What a run did, in words; the last line says what to type next. `active` is the model that apps read, `source`
    what its vectors came from, if no model."""
    lines = _count_lines(summary, source)
    products = summary.products
    if products.new or products.changed or products.removed:
        lines.append(f"products: {products.new:,} new, {products.changed:,} changed, {products.removed:,} removed")
    if summary.checked:
        lines.append(f"{summary.checked:,} images were asked for again, {summary.changed:,} showed another picture")
    if summary.moved:
        images = "image stands" if summary.moved == 1 else "images stand"
        lines.append(f"{summary.moved:,} {images} at another URL than before")
    if summary.removed:
        images = "image" if summary.removed == 1 else "images"
        lines.append(f"{summary.removed:,} {images} left the catalog and the search results")
    if summary.forgotten:
        lines.append(f"{summary.forgotten:,} products and images that left long ago were deleted")
    if summary.failures_by_code:
        codes = ", ".join(f"{code} {count:,}" for code, count in summary.failures_by_code.items())
        due = f" ({summary.deferred:,} not tried, their next try is not due)" if summary.deferred else ""
        lines.append(f"failed: {codes}{due}; see: catvec failures{place}")
    return [*lines, _next_step(summary, active=active, place=place)]


def bundle_lines(summary: RunSummary, folder: Path) -> list[str]:
    """The same of a run into a bundle."""
    lines = _count_lines(summary)
    if summary.failures_by_code:
        codes = ", ".join(f"{code} {count:,}" for code, count in summary.failures_by_code.items())
        lines.append(f"failed: {codes}; the same command tries them again; after catvec load: catvec failures")
    if summary.stopped_by == "failure_rate":
        return [*lines, "stopped: too many images fail"]
    if not summary.finished:
        return [*lines, f"stopped early ({summary.stopped_by}); to go on, run the same command again"]
    return [*lines, f"next, where the database can be reached: catvec load {shlex.quote(str(folder))} --db …"]


def _count_lines(summary: RunSummary, source: str | None = None) -> list[str]:
    counts = ", ".join(f"{getattr(summary, name):,} {name}" for name in ("unchanged", "reused", "embedded", "failed"))
    cost = "" if summary.cost is None else f", cost {show_cost(summary.cost)}"
    lines = [
        f"{summary.seen:,} images seen: {counts}" + (f", {summary.pending:,} pending" if summary.pending else ""),
        f"model {summary.model} ({summary.dims} dimensions) {source or _device(summary)}: {_pace(summary)}"
        f"{summary.seconds:,.1f} s in all{cost}",
    ]
    return [*lines, summary.limit] if summary.limit else lines


def _device(summary: RunSummary) -> str:
    if summary.device is None:
        return "was not needed"
    return f"on {summary.device} in {summary.precision}, batches of {summary.batch_size}"


def _pace(summary: RunSummary) -> str:
    return f"{summary.images_per_s:,.1f} images/s, " if summary.images_per_s else ""


def _next_step(summary: RunSummary, *, active: StoredModel | None, place: str) -> str:
    if summary.stopped_by == "failure_rate":
        return "stopped: too many images fail"
    if not summary.finished:
        return f"stopped early ({summary.stopped_by}); to go on, run the same command again"
    is_empty_share = summary.shard is not None and not summary.seen
    if not summary.unchanged + summary.reused + summary.embedded and not is_empty_share:
        return f"nothing could be embedded; see: catvec failures{place}"
    if active is None or active.name != summary.model:
        return _switch(summary, active.name if active else None, f"catvec models activate {summary.model}{place}")
    wanted = '"WORDS"' if active.has_text else "--image FILE"
    return f"next: catvec similar PRODUCT_ID{place}, or catvec search {wanted}{place}, or SQL: catvec db psql{place}"


def _switch(summary: RunSummary, active: str | None, command: str) -> str:
    if summary.shard is not None:
        count = summary.shard.partition("/")[2]
        built = f"shard {summary.shard} is done; the last of the {count} to end builds the index"
        if active is None:
            return f"{built} and lets apps read the model"
        return f"{built}; then, to let apps read {summary.model} instead of {active}: {command}"
    if active is None:
        return f"apps read no model yet; next, as the owner of catvec's tables: {command}"
    return f"apps go on reading model {active}; next, to let them read {summary.model}: {command}"

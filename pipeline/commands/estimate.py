"""What catvec plan --estimate shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import refuse_given
from pipeline.commands.terminal import print_table, say
from pipeline.pace import show_cost
from pipeline.report.words import number, plural, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    import typer

    from pipeline.estimate import Estimate, Range, StageEstimate
    from pipeline.plan import Plan
    from pipeline.settings import EstimateSettings, RunSettings

OF_AN_ESTIMATE = ("sample", "cores", "images_per_s", "bench", "gpu_price")
"""options that say nothing to a plan without one"""
NEARLY_ALL = 0.9
"""of the time of two stages that share the cores, from which on one of them limits"""
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def refuse_without_estimate(context: typer.Context) -> None:
    """Raise ConfigError for options that are passed over without --estimate; in the environment they do no harm."""
    refuse_given(context, OF_AN_ESTIMATE, "does nothing without --estimate", hint="add --estimate, or leave it out")


def take_estimate(settings: RunSettings, wanted: EstimateSettings, *, url: str, stdin: BinaryIO) -> Plan:
    """The plan with its estimate, while progress is shown."""
    from pipeline.estimate import estimate_plan
    from pipeline.progress import Progress

    progress = Progress()
    with interruptible(progress), progress_shown(progress):
        return estimate_plan(settings, wanted, url=url, progress=progress, stdin=stdin)


def print_estimate(found: Estimate) -> None:
    print_table(("what", "expected", "between", "how"), _rows(found), long=(3,))
    say("measured from here, at this hour; loading the model and building the index come on top")


def _rows(found: Estimate) -> list[tuple[str, str, str, str]]:
    sample = f"{found.sampled:,} sampled"
    if found.bytes_per_image is not None and found.width is not None and found.height is not None:
        sample += f"; in the middle {size(found.bytes_per_image)}, {found.width:,.0f} × {found.height:,.0f} pixels"
    rows = [
        ("images", f"{found.to_fetch:,}", "", sample),
        ("download", size(found.download_bytes.expected), _between(found.download_bytes, size), ""),
        _stage("fetch", found.fetch),
        _stage("decode", found.decode),
        _stage("encode", found.encode),
        ("together", span(found.seconds.expected), _between(found.seconds, span), _limit(found)),
    ]
    if found.cost is not None:
        rows.append(
            ("cost", show_cost(found.cost.expected), _between(found.cost, show_cost), "at --gpu-price an hour")
        )
    codes = ", ".join(f"{code} {count:,}" for code, count in found.failures.items())
    rows.append(("failures", f"{sum(found.failures.values()):,}", "", codes))
    if found.size is not None:
        bytes_of_all = found.size.table_bytes + found.size.index_bytes
        parts = (
            f"{plural(found.vectors, 'vector')} {size(found.size.table_bytes)}, index {size(found.size.index_bytes)}"
        )
        rows.append(("database", size(bytes_of_all), "", parts))
    return rows


def _limit(found: Estimate) -> str:
    if found.limited_by != "decode and encode":
        return f"{found.limited_by} limits"
    shares = {"decode": found.decode.seconds.expected, "encode": found.encode.seconds.expected}
    most = max(shares, key=lambda stage: shares[stage])
    if shares[most] < NEARLY_ALL * sum(shares.values()):
        return "decode and encode limit, on the same cores"
    return f"{most} limits, with {min(shares, key=lambda stage: shares[stage])} on the same cores"


def _stage(name: str, stage: StageEstimate) -> tuple[str, str, str, str]:
    rate = f"{number(stage.images_per_s)} images/s, " if stage.images_per_s else ""
    return name, span(stage.seconds.expected), _between(stage.seconds, span), f"{rate}{stage.source}"


def _between(found: Range, show: Callable[[float], str]) -> str:
    low, high = show(found.low), show(found.high)
    return "" if low == high else f"{low} – {high}"


def size(size_bytes: float) -> str:
    """1.5 GB, 48 kB, 230 B: powers of 1,000, as networks and disks are sold."""
    power = 0
    while size_bytes >= 999.5 and power < len(UNITS) - 1:
        size_bytes, power = size_bytes / 1000, power + 1
    return f"{size_bytes:.1f} {UNITS[power]}" if power and size_bytes < 9.95 else f"{size_bytes:,.0f} {UNITS[power]}"

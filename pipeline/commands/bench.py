"""catvec bench: what this machine can do, stage by stage and altogether."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import Database, Home, Json, open_database, path, take, with_settings
from pipeline.commands.terminal import print_json, print_table, say
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, DecodeSettings, FetchSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from pipeline.bench.measurement import Bench, Conditions
    from pipeline.bench.rates import Rate

DOUBTFUL = 1.1
"""share of the lowest limit that cannot be; a little above 1 is the spread of what was measured"""

Images = Annotated[int, typer.Option("--images", min=1, help="images of the catalog to measure with")]
Seconds = Annotated[
    float,
    typer.Option("--seconds", min=0.1, help="seconds for each stage alone; everything at once takes four times"),
]
RandomWeights = Annotated[
    str,
    typer.Option("--weights", help="real; or random: a model as large as --model, where its weights cannot be had"),
]
Chart = Annotated[
    Path | None, typer.Option("--chart", parser=path, metavar="FILE", help="draw the limits as bars, .png or .svg")
]
DecodeThreads = Annotated[
    int | None,
    typer.Option(
        "--decode-threads", min=1, envvar="CATVEC_DECODE_THREADS", help="threads that decode; else one per core"
    ),
]


@with_settings(CatalogSettings, FetchSettings, DecodeSettings, ModelSettings)
def bench(
    db: Database = None,
    home: Home = None,
    images: Images = 500,
    seconds: Seconds = 3.0,
    weights: RandomWeights = "real",
    decode_threads: DecodeThreads = None,
    chart: Chart = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Measure what fetching, decoding, the model and the database can do here, each alone and all at once.

    Some images of the catalog are fetched and encoded again and again. Nothing stored is touched: vectors go into a
    schema of their own, which is dropped.
    """
    from pipeline.bench.measurement import BenchOptions, measure_all
    from pipeline.charts import draw_bench, require_charts

    wanted = BenchOptions(images=images, seconds=seconds, weights=weights)
    settings = _settings(options, decode_threads)
    if chart is not None:
        require_charts(chart)
    progress = Progress()
    with open_database(db, home) as url, interruptible(progress) as stop, progress_shown(progress):
        measured = measure_all(settings, wanted, url=url, progress=progress, stop=stop, stdin=sys.stdin.buffer)
    if json:
        print_json(measured)
    else:
        _print(measured)
    if chart is not None:
        # last, because it may fail, and then nothing that was measured is lost
        draw_bench(measured, chart)
        say(f"the chart is in {chart}")


def _settings(options: dict[str, Any], decode_threads: int | None) -> RunSettings:
    return RunSettings(
        catalog=take(CatalogSettings, options),
        fetch=take(FetchSettings, options),
        decode=take(DecodeSettings, options),
        model=take(ModelSettings, options),
        decode_threads=decode_threads,
        max_failure_rate=1.0,  # images that cannot be had leave the sample
    )


def _print(measured: Bench) -> None:
    where, pictures = measured.conditions, measured.pictures
    of_each = f", {where.per_host} from one host" if where.hosts else ""
    rows = [
        _row("fetch only", measured.fetch, f"{where.concurrency} at once{of_each}"),
        _row("decode only", measured.decode, f"{where.decode_threads} threads"),
        _row("forward only", measured.forward, _forward(where)),
        _row("write only", measured.write, f"{where.dims} dimensions, 512 in a transaction"),
        (
            "shared cores",
            f"{measured.shared_cores:,.1f}",
            "",
            "",
            f"{where.cores} cores ÷ core time of what runs on them",
        ),
        _row("everything", measured.whole, f"{measured.share_of_bound:.0%} of the lowest limit, {measured.bound_by}"),
    ]
    print_table(("what", "images/s", "slowest to fastest", "core ms", "with"), rows, right=(1, 2, 3))
    loads = [
        (load.stage, load.workers, f"{load.busy:.0%}", f"{load.starved:.0%}", f"{load.blocked:.0%}")
        for load in measured.stage_loads
    ]
    print_table(("stage", "workers", "busy", "waits for input", "waits to hand over"), loads, right=(1, 2, 3, 4))
    failed = sum(pictures.failures_by_code.values())
    weights = ", random weights" if where.weights == "random" else ""
    say(
        f"{pictures.images:,} images, the median has {pictures.width} × {pictures.height} pixels and "
        f"{pictures.size_bytes / 1000:,.0f} kB" + (f"; {failed:,} could not be used" if failed else "")
    )
    say(f"model {where.model}{weights}: {measured.whole.images_per_s:,.1f} images/s")
    if measured.share_of_bound > DOUBTFUL:
        say(
            "warning: everything at once was faster than the slowest stage alone: other programs took the cores "
            "meanwhile; measure again when they are idle",
            level="warning",
        )
    say(measured.limit)


def _forward(where: Conditions) -> str:
    compiled = ", compiled" if where.compiled else ""
    found = f"{where.device}, {where.precision}, batches of {where.batch_size}{compiled}"
    return found if where.devices == 1 else f"{found}; times {where.devices} devices"


def _row(name: str, rate: Rate, how: str) -> tuple[str, str, str, str, str]:
    spread = f"{rate.slowest:,.1f} to {rate.fastest:,.1f}"
    return name, f"{rate.images_per_s:,.1f}", spread, f"{rate.core_ms:,.2f}", how

"""All of `catvec bench` in order, and what it comes to."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.bench.rates import Rate, Stopwatch, median
from pipeline.bench.sample import sample_images
from pipeline.bench.stages import measure_decode, measure_forward, measure_write
from pipeline.bench.stream import Machine, Sample, stream_all, stream_fetches
from pipeline.encoding import decode_threads, usable_cores
from pipeline.errors import CatvecError, ConfigError
from pipeline.inputs import read_rows
from pipeline.limits import Circumstances, explain
from pipeline.on_demand import ModelOnDemand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress, Snapshot
    from pipeline.records import Decoded, StageLoad
    from pipeline.settings import RunSettings
    from pipeline.store.scratch import Scratch

WHOLE = 4
"""times as long as a stage: with a commit each second it takes a while until the rate is steady"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure: so many images of the catalog, each stage for so long, `weights` random or real."""

    images: int = 500
    seconds: float = 3.0
    weights: str = "real"

    def __post_init__(self) -> None:
        if self.weights not in {"real", "random"}:
            raise ConfigError(f"--weights is {self.weights!r}, expected random or real")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The images measured with; width, height and size are medians, `failures_by_code` counts the others."""

    images: int
    width: int
    height: int
    size_bytes: int
    failures_by_code: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Where and how it was measured. `weights` are real or random, `hosts` those of the images' URLs.

    `device` was measured, `devices` like it encode side by side in a run.
    `compiled` tells whether full batches went through compiled code (--compile on).
    """

    model: str
    weights: str
    dims: int
    device: str
    devices: int
    precision: str
    batch_size: int
    compiled: bool
    cores: int
    decode_threads: int
    concurrency: int
    per_host: int
    hosts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What was measured; its fields are the keys of `catvec bench --json`.

    fetch, decode, forward, write   each alone: {images_per_s, slowest, fastest, images, seconds, core_ms}; slowest
                                    and fastest of five parts of the time, core_ms: processor milliseconds an image;
                                    forward is measured on one device, and its rate that of all `devices`
    shared_cores                    images/s that the cores allow when fetching, decoding and, on a CPU, the forward
                                    pass share them: cores ÷ the sum of their core times
    bound                           the lowest of all these
    bound_by                        its name
    whole                           everything at once, through the engine of a run, as the others
    share_of_bound                  what whole reaches of bound
    stage_loads, limit              how busy the stages were then, as in `catvec run --json`, and what that means
    """

    conditions: Conditions
    pictures: Pictures
    fetch: Rate
    decode: Rate
    forward: Rate
    write: Rate
    shared_cores: float
    bound: float
    bound_by: str
    whole: Rate
    share_of_bound: float
    stage_loads: tuple[StageLoad, ...]
    limit: str


def measure_all(
    settings: RunSettings,
    options: BenchOptions,
    *,
    url: str,
    progress: Progress,
    stop: Stop,
    stdin: BinaryIO | None = None,
) -> Bench:
    """Measure each stage alone and the whole; nothing stored is touched. Raises CatvecError."""
    from pipeline.store.scratch import scratch_tables

    progress.begin("reading the catalog")
    sample = Sample(images=sample_images(read_rows(settings, stdin), options.images))
    progress.begin("loading the model")
    with _model(settings, options) as chosen:
        on_demand = ModelOnDemand(chosen, None, progress)
        on_demand.load()
        machine = Machine(settings=chosen, on_demand=on_demand, stop=stop)
        with scratch_tables(url, dims=on_demand.spec.dims, storage=chosen.storage) as scratch:
            limits, decoded = _measure_limits(machine, sample, options, scratch, progress)
            progress.begin("everything at once")
            whole, counters = _measure_whole(machine, sample, options, scratch)
        return _put_together(machine, options, sample, decoded, limits, whole, counters)


@contextmanager
def _model(settings: RunSettings, options: BenchOptions) -> Iterator[RunSettings]:
    """The settings, with a model of random weights in place of the real one if that is asked for."""
    if options.weights == "real":
        yield settings
        return
    from pipeline.models.registry import model_name
    from pipeline.models.untrained import write_untrained_model

    with tempfile.TemporaryDirectory(prefix="catvec-bench-") as folder:
        model = write_untrained_model(Path(folder) / "model", settings.model.model)
        made = replace(settings.model, model=str(model), model_name=model_name(settings.model))
        yield replace(settings, model=made)


def _measure_limits(
    machine: Machine, sample: Sample, options: BenchOptions, scratch: Scratch, progress: Progress
) -> tuple[dict[str, Rate], list[Decoded]]:
    """Each stage alone, by name; and the decoded images."""
    from pipeline.store.scratch import ROWS

    seconds, dims = options.seconds, machine.on_demand.spec.dims
    progress.begin("fetching only")
    watch = Stopwatch()
    fetch = _interruptible(machine, watch.rate(until=stream_fetches(machine, sample, watch, seconds=seconds)))
    _require(sample, "fetched")
    progress.begin("decoding only")
    decode, decoded = measure_decode(machine, sample, seconds=seconds)
    _require(sample, "decoded", is_left=bool(decoded))
    progress.begin("forward pass only")
    forward = measure_forward(machine, decoded, seconds=seconds).times(machine.on_demand.devices_beside())
    progress.begin("writing only")
    write = measure_write(scratch.write, dims=dims, image_ids=ROWS, seconds=seconds)
    return {"fetch": fetch, "decode": decode, "forward": forward, "write": write}, decoded


def _measure_whole(
    machine: Machine, sample: Sample, options: BenchOptions, scratch: Scratch
) -> tuple[Rate, Snapshot]:
    from pipeline.store.scratch import ROWS

    watch = Stopwatch()
    ended, counters = stream_all(
        machine,
        sample,
        watch,
        seconds=WHOLE * options.seconds,
        image_ids=ROWS,
        find_known=scratch.find_known,
        write=scratch.write,
    )
    return _interruptible(machine, watch.rate(until=ended)), counters


def _put_together(
    machine: Machine,
    options: BenchOptions,
    sample: Sample,
    decoded: list[Decoded],
    limits: dict[str, Rate],
    whole: Rate,
    counters: Snapshot,
) -> Bench:
    conditions, loads = _conditions(machine, options, counters), counters.loads()
    shared = _shared_cores(limits, conditions)
    bounds = {name: rate.images_per_s for name, rate in limits.items()} | ({"shared cores": shared} if shared else {})
    bound_by = min(bounds, key=lambda name: bounds[name])
    circumstances = Circumstances(
        settings=machine.settings,
        device=conditions.device,
        precision=conditions.precision,
        hosts=conditions.hosts,
        cores=conditions.cores,
    )
    return Bench(
        conditions=conditions,
        pictures=_pictures(sample, decoded),
        **limits,
        shared_cores=shared,
        bound=bounds[bound_by],
        bound_by=bound_by,
        whole=whole,
        share_of_bound=round(whole.images_per_s / bounds[bound_by], 3),
        stage_loads=loads,
        limit=explain(loads, circumstances).sentence,
    )


def _interruptible(machine: Machine, rate: Rate) -> Rate:
    """The rate, unless it is that of a stream which somebody stopped."""
    if machine.stop.is_asked():
        raise KeyboardInterrupt
    return rate


def _require(sample: Sample, what: str, *, is_left: bool = True) -> None:
    """Raise CatvecError when there is nothing left to measure with."""
    if sample.images and sample.fetched and is_left:
        return
    codes = ", ".join(f"{code} {count:,}" for code, count in sample.failures.most_common())
    why = f", the last because: {sample.last.detail}" if sample.last else ""
    raise CatvecError(f"none of the chosen images could be {what}{why}", hint=f"by code: {codes}" if codes else None)


def _shared_cores(limits: Mapping[str, Rate], conditions: Conditions) -> float:
    names = ["fetch", "decode", *(["forward"] if conditions.device == "cpu" else [])]
    core_ms = sum(limits[name].core_ms for name in names)
    return round(1000 * conditions.cores / core_ms, 1) if core_ms else 0.0


def _conditions(machine: Machine, options: BenchOptions, counters: Snapshot) -> Conditions:
    encoder, fetch = machine.on_demand.load(), machine.settings.fetch
    return Conditions(
        model=encoder.spec.name,
        weights=options.weights,
        dims=encoder.spec.dims,
        device=encoder.device,
        devices=machine.on_demand.devices_beside(),
        precision=encoder.precision,
        batch_size=encoder.batch_size,
        compiled=encoder.compiled is not None,
        cores=usable_cores(),
        decode_threads=decode_threads(machine.settings),
        concurrency=fetch.concurrency,
        per_host=fetch.per_host,
        hosts=counters.hosts,
    )


def _pictures(sample: Sample, decoded: list[Decoded]) -> Pictures:
    return Pictures(
        images=len(sample.images),
        width=median([found.width for found in decoded]),
        height=median([found.height for found in decoded]),
        size_bytes=median([len(fetched.data) for fetched in sample.fetched.values()]),
        failures_by_code=dict(sample.failures.most_common()),
    )

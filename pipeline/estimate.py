"""What `catvec plan --estimate` foretells: bytes, time and money of a run, from a sample of what it would fetch.

Some of the images that the plan counts are fetched and decoded through the run's own code, and the vectors are thrown
away. Fetching takes as long as it took here, decoding shares out the measured core time among the cores to be rented,
encoding is measured on the device here or stated for the one to be rented. The stages of a run overlap, so the
slowest makes the time; only on a CPU do decoding and encoding take it from each other.

Ranges are what 90 of 100 samples like this one would say (bootstrap). They know nothing of a server that is slower at
another hour, or from another place: so ask from where the run is to be.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from pipeline.errors import ConfigError, ItemError, ModelError
from pipeline.pace import cost_of, remaining_s
from pipeline.records import Fetched
from pipeline.stated import check_dims, find_stated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.models.shape import ModelShape
    from pipeline.plan import Plan
    from pipeline.progress import Progress
    from pipeline.records import Decoded, ImageRef, PreprocessSpec
    from pipeline.settings import EstimateSettings, RunSettings
    from pipeline.stated import StatedRate
    from pipeline.store.models import StoredModel
    from pipeline.store.size import VectorSize

KEPT_BYTES: Final = 256 * 2**20
"""of the sample, to be decoded; what comes after them is only counted (law 8)"""
DECODE_S: Final = 20.0
ENCODE_S: Final = 10.0
"""after which no more of the sample is decoded, and no more batches are encoded"""
LEAST_BATCHES: Final = 3
EDGE: Final = 0.1
"""of the fetches at the beginning and at the end: connections are opened, and stragglers waited for"""
BLOCKS: Final = 20
"""pieces of the fetches whose times are taken as independent of each other"""
RESAMPLES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What is expected, and between what 90 of 100 such samples would place it."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(low=self.low * factor, expected=self.expected * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """A stage alone: `images_per_s` of the images that come to it, None if it has none; `source` says whence."""

    images_per_s: float | None
    seconds: Range
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would take; its fields are the keys of `estimate` in `catvec plan --estimate --json`.

    sampled         images that were asked for
    to_fetch        images that a run would ask for
    download_bytes  {low, expected, high} of all, and so are all ranges
    bytes_per_image, width, height  medians of the sample; null when none of it could be read
    fetch, decode, encode           {images_per_s, seconds: range, source}: each stage alone
    limited_by      the stage that takes longest; "decode and encode" where they share the cores
    seconds         range; `cost` likewise at --gpu-price, null without one
    failures        expected number by code
    vectors         rows that come into the table, {table_bytes, index_bytes} of which are `size`, null when the
                    length of the vectors is not known

    Times are seconds of work: the start of the program, the loading of the model and the index come on top.
    """

    sampled: int
    to_fetch: int
    download_bytes: Range
    bytes_per_image: float | None
    width: float | None
    height: float | None
    fetch: StageEstimate
    decode: StageEstimate
    encode: StageEstimate
    limited_by: str
    seconds: Range
    cost: Range | None
    failures: Mapping[str, int]
    vectors: int
    size: VectorSize | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """The machine that is to do it: how many threads decode, what encodes (an encoder here, or a stated rate), and
    how images are prepared for that. `devices` encode side by side, each at the rate measured or stated. `dims`
    None: not known without the model."""

    threads: int
    preprocess: PreprocessSpec
    dims: int | None
    storage: str
    encoder: Encoder | None
    stated: StatedRate | None
    devices: int = 1

    @property
    def source(self) -> str:
        if self.encoder is not None:
            on = f"measured on {self.encoder.device} in {self.encoder.precision}"
        else:
            on = self.stated.source if self.stated else "not known"
        return on if self.devices == 1 else f"{on}, for {self.devices}"

    @property
    def is_cpu(self) -> bool:
        """Whether encoding takes its time from decoding."""
        measured = self.encoder or self.stated
        return measured is not None and measured.device == "cpu"


@dataclass(slots=True)
class _Fetches:
    """What became of the sample, which came from so many `hosts`; `ended_s` are the moments at which answers came,
    in order."""

    hosts: int = 0
    fetched: list[Fetched] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    unchanged: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    ended_s: list[float] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return len(self.ended_s)


@dataclass(slots=True)
class _Decodes:
    """Core seconds of each image that was decoded or refused."""

    decoded: list[Decoded] = field(default_factory=list)
    core_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


def estimate_plan(
    settings: RunSettings,
    wanted: EstimateSettings,
    *,
    url: str,
    progress: Progress,
    stdin: BinaryIO | None = None,
) -> Plan:
    """The plan of a run, with what it would take if there is anything to fetch. Fetches a sample, writes nothing.

    Raises CatvecError.
    """
    from pipeline.plan import look

    stated = find_stated(wanted, settings.model)
    progress.begin("comparing the catalog")
    found = look(settings, url=url, stdin=stdin, sample=wanted.sample)
    if not found.sample:
        return found.plan
    progress.begin("loading the model")
    box = _choose_box(settings, wanted, found.model, stated)
    progress.begin("fetching a sample")
    fetches = asyncio.run(_fetch(settings, found.sample, progress))
    progress.begin("decoding the sample")
    decodes = _decode(settings, box, fetches.fetched, progress)
    progress.begin("encoding the sample")
    encodes_s = _encode(box, [decoded.pixels for decoded in decodes.decoded])
    return replace(found.plan, estimate=_foretell(settings, box, found.plan.to_fetch, fetches, decodes, encodes_s))


def _choose_box(
    settings: RunSettings, wanted: EstimateSettings, stored: StoredModel | None, stated: StatedRate | None
) -> _Box:
    """With a stated rate nothing is loaded, and of the usual models nothing downloaded."""
    from pipeline.encoding import usable_cores

    encoder = None if stated else _load(settings, stored)
    shape = _shape(settings, stored) if encoder is None else encoder.spec
    if stated is not None:
        check_dims(stated, shape.dims)
    return _Box(
        threads=settings.decode_threads or wanted.cores or usable_cores(),
        preprocess=shape.preprocess,
        dims=shape.dims,
        storage=settings.storage or (stored.storage if stored else "halfvec"),
        encoder=encoder,
        stated=stated,
        devices=_count_devices(settings, wanted),
    )


def _count_devices(settings: RunSettings, wanted: EstimateSettings) -> int:
    """Those to encode at the rate that is measured or stated of one; a benchmark's is that of its whole machine."""
    if wanted.bench is not None:
        return 1
    if wanted.images_per_s is not None:
        return settings.model.device.count(",") + 1  # they need not be here
    from pipeline.models.device import choose_placements, count_beside

    return count_beside(choose_placements(settings.model))


def _load(settings: RunSettings, stored: StoredModel | None) -> Encoder:
    from pipeline.models.compilation import compile_images
    from pipeline.models.encoder import load_encoder

    try:
        encoder = load_encoder(settings.model, registered_revision=stored.revision if stored else None)
        if settings.model.compile == "on":
            compile_images([encoder], is_optional=False)
        return encoder
    except (ModelError, ConfigError) as error:
        hint = "to do without the model, say what the device will encode: --images-per-s N"
        raise type(error)(error.message, hint=f"{error.hint}; {hint}" if error.hint else hint) from error


def _shape(settings: RunSettings, stored: StoredModel | None) -> ModelShape:
    from pipeline.models.shape import find_shape

    shape = find_shape(settings.model)
    return replace(shape, dims=stored.dims) if stored else shape


# ---- what is measured


async def _fetch(settings: RunSettings, images: Sequence[ImageRef], progress: Progress) -> _Fetches:
    """All of the sample at once, as far as --concurrency and --per-host let it."""
    from pipeline.encoding import open_fetcher
    from pipeline.engine.breaker import host_of

    hosts = {host for image in images if (host := host_of(image.url)) is not None}
    found, room, began = _Fetches(hosts=len(hosts)), KEPT_BYTES, time.perf_counter()

    async def fetch_one(image: ImageRef) -> None:
        nonlocal room
        try:
            answer = await fetcher.fetch(image)
        except ItemError as error:
            found.failures[error.code] += 1
        else:
            if isinstance(answer, Fetched):
                found.sizes.append(len(answer.data))
                room -= len(answer.data)
                if room >= 0:
                    found.fetched.append(answer)
            else:
                found.unchanged += 1
        found.ended_s.append(time.perf_counter() - began)
        progress.step(found.asked, len(images), unit="images")

    async with open_fetcher(settings) as fetcher:
        await asyncio.gather(*(fetch_one(image) for image in images))
    return found


def _decode(settings: RunSettings, box: _Box, fetched: Sequence[Fetched], progress: Progress) -> _Decodes:
    """One after the other, on one core."""
    decode_one = partial(_decode_one, settings, box)
    for image in fetched[:1]:
        decode_one(image, _Decodes())  # the first one loads the plugins of Pillow
    found, began = _Decodes(), time.perf_counter()
    for image in fetched:
        if time.perf_counter() - began > DECODE_S:
            break
        decode_one(image, found)
        progress.step(len(found.core_s), len(fetched), unit="images")
    return found


def _decode_one(settings: RunSettings, box: _Box, image: Fetched, found: _Decodes) -> None:
    from pipeline.images.decode import decode

    began = time.thread_time()
    try:
        found.decoded.append(decode(image, box.preprocess, settings.decode))
    except ItemError as error:
        found.failures[error.code] += 1
    found.core_s.append(time.thread_time() - began)


def _encode(box: _Box, pixels: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Seconds an image in each of some full batches, after one to warm up; none with a stated rate."""
    if box.encoder is None or not pixels:
        return []
    size, seconds = box.encoder.batch_size, list[float]()
    batch = np.stack([pixels[place % len(pixels)] for place in range(size)])
    box.encoder.encode_images(batch)
    while len(seconds) < LEAST_BATCHES or (sum(seconds) * size < ENCODE_S and len(seconds) * size < len(pixels)):
        began = time.perf_counter()
        box.encoder.encode_images(batch)
        seconds.append((time.perf_counter() - began) / size)
    return seconds


# ---- what follows from it


def _foretell(
    settings: RunSettings, box: _Box, images: int, fetches: _Fetches, decodes: _Decodes, encodes_s: Sequence[float]
) -> Estimate:
    to_decode = images * len(fetches.sizes) / fetches.asked
    vectors = round(to_decode * len(decodes.decoded) / max(1, len(decodes.core_s)))
    encode_s = mean_range(encodes_s if box.stated is None else [1 / box.stated.images_per_s])
    fetch = _stage(images, mean_range(seconds_an_image(fetches.ended_s)), source=_at_once(settings, fetches.hosts))
    decode = _stage(to_decode, mean_range(decodes.core_s).times(1 / box.threads), source=_on_cores(box.threads))
    encode = _stage(vectors, encode_s.times(1 / box.devices), source=box.source)
    limited_by, seconds = _slowest(fetch, decode, encode, shares_cores=box.is_cpu)
    pictures = decodes.decoded
    return Estimate(
        sampled=fetches.asked,
        to_fetch=images,
        download_bytes=mean_range([*fetches.sizes, *[0] * (fetches.asked - len(fetches.sizes))]).times(images),
        bytes_per_image=median(fetches.sizes) if fetches.sizes else None,
        width=median(picture.width for picture in pictures) if pictures else None,
        height=median(picture.height for picture in pictures) if pictures else None,
        fetch=fetch,
        decode=decode,
        encode=encode,
        limited_by=limited_by,
        seconds=seconds,
        cost=_costs(seconds, settings.gpu_price),
        failures=_expected_failures(images, to_decode, fetches, decodes),
        vectors=vectors,
        size=_size(vectors, box),
    )


def _at_once(settings: RunSettings, hosts: int) -> str:
    of_each = f" and {settings.fetch.per_host} from one host" if hosts else ""
    return f"measured, {settings.fetch.concurrency} at once{of_each}"


def _on_cores(count: int) -> str:
    return f"measured on one core, for {count}"


def _stage(images: float, each_s: Range, *, source: str) -> StageEstimate:
    rate = 1 / each_s.expected if each_s.expected else None
    seconds = Range(low=images * each_s.low, expected=remaining_s(images, rate) or 0.0, high=images * each_s.high)
    return StageEstimate(images_per_s=rate, seconds=seconds, source=source)


def _slowest(
    fetch: StageEstimate, decode: StageEstimate, encode: StageEstimate, *, shares_cores: bool
) -> tuple[str, Range]:
    """The stage that makes the time, and the time: the slowest at each end of the range."""
    stages = {"fetch": fetch.seconds, "decode": decode.seconds, "encode": encode.seconds}
    if shares_cores:
        both = zip(*((s.low, s.expected, s.high) for s in (stages.pop("decode"), stages.pop("encode"))), strict=True)
        low, expected, high = map(sum, both)
        stages["decode and encode"] = Range(low=low, expected=expected, high=high)
    name = max(stages, key=lambda stage: stages[stage].expected)
    return name, Range(
        low=max(stage.low for stage in stages.values()),
        expected=stages[name].expected,
        high=max(stage.high for stage in stages.values()),
    )


def _costs(seconds: Range, price: float | None) -> Range | None:
    costs = [cost_of(value, price) for value in (seconds.low, seconds.expected, seconds.high)]
    if costs[0] is None or costs[1] is None or costs[2] is None:
        return None
    return Range(low=costs[0], expected=costs[1], high=costs[2])


def _expected_failures(images: int, to_decode: float, fetches: _Fetches, decodes: _Decodes) -> dict[str, int]:
    expected = {code: images * count / fetches.asked for code, count in fetches.failures.items()}
    for code, count in decodes.failures.items():
        expected[code] = expected.get(code, 0.0) + to_decode * count / len(decodes.core_s)
    return {code: round(count) for code, count in sorted(expected.items(), key=lambda item: -item[1])}


def _size(vectors: int, box: _Box) -> VectorSize | None:
    from pipeline.store.size import predict_size

    return None if box.dims is None else predict_size(vectors, dims=box.dims, storage=box.storage)


def seconds_an_image(ended_s: Sequence[float]) -> list[float]:
    """How long an image took in each of several pieces of the middle, from the moments at which they ended."""
    images, edge = len(ended_s), int(EDGE * len(ended_s))
    middle = [0.0, *ended_s] if not edge else list(ended_s[edge - 1 : images - edge])
    step = max(1, (len(middle) - 1) // BLOCKS)
    marks = middle[::step]
    return [(later - earlier) / step for earlier, later in pairwise(marks)]


def mean_range(values: Sequence[float]) -> Range:
    """The mean of the values, and the 5th and 95th percentile of the means of 1,000 samples drawn from them."""
    if not values:
        return Range(low=0.0, expected=0.0, high=0.0)
    given = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).choice(given, size=(RESAMPLES, len(given)))
    low, high = np.percentile(drawn.mean(axis=1), (5, 95))
    return Range(low=float(low), expected=float(given.mean()), high=float(high))

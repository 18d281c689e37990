"""Decoding, encoding and writing, each by itself with what it needs in memory."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bench.rates import Rate, Stopwatch, repeat
from pipeline.encoding import decode_threads
from pipeline.errors import DecodeError
from pipeline.images.decoder import choose_decoder
from pipeline.records import Content, Embedding, Failure, ImageRef, Outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.bench.stream import Machine, Sample
    from pipeline.images.decoder import Decoder
    from pipeline.records import Decoded

KEPT_PIXELS = 64 * 1024 * 1024
"""bytes of decoded images to encode: 440 of 224 × 224, more would be the same again"""
WRITTEN_AT_ONCE = 512
"""as the engine does"""
FORWARD_BATCHES, WRITES = 4, 5


def measure_decode(machine: Machine, sample: Sample, *, seconds: float) -> tuple[Rate, list[Decoded]]:
    """Decode the bytes of the sample as a run does, in as many threads. Returns some of the decoded images, too."""
    devices = [encoder.device for encoder in machine.on_demand.encoders()]
    decoder = choose_decoder(machine.settings.decode, machine.on_demand.spec.preprocess, devices)
    decoded = _decode_once(sample, decoder)
    good = [sample.fetched[found.content.image.image_id] for found in decoded]
    watch = Stopwatch()

    def work(first: int) -> None:
        files = cycle(good[first:] + good[:first])
        while good and watch.seconds < seconds:
            watch.add(len(decoder.decode_many(list(islice(files, decoder.at_once)))))

    threads = decode_threads(machine.settings)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        # each begins at another image
        list(pool.map(work, (number * len(good) // threads for number in range(threads))))
    return watch.rate(), decoded


def _decode_once(sample: Sample, decoder: Decoder) -> list[Decoded]:
    """Each once, to warm up; what cannot be decoded leaves the sample."""
    decoded, failures, size_bytes = [], [], 0
    for fetched in sample.fetched.values():
        [found] = decoder.decode_many([fetched])
        if isinstance(found, DecodeError):
            image = fetched.content.image
            failures.append(
                Failure(image=image, stage="decode", code=found.code, detail=found.message, is_retryable=False)
            )
            continue
        if isinstance(found, Exception):
            raise found
        decoded.append(found)
        size_bytes += found.pixels.nbytes
        if size_bytes > KEPT_PIXELS:
            break
    sample.drop(failures)
    return decoded


def measure_forward(machine: Machine, decoded: list[Decoded], *, seconds: float) -> Rate:
    """Encode whole batches of decoded images, which wait in memory; each ends when its vectors are back."""
    pixels = [found.pixels for found in decoded]
    batches = _batches(pixels, machine.on_demand.batch_size())

    def step() -> int:
        batch = next(batches)
        machine.on_demand.load().encode_images(batch)
        return len(batch)

    # in a thread that is not the main one, as the engine does: OpenMP gives each a team of its own, and with more
    # threads than cores they hardly spin while they wait, which costs less where something else runs on these cores
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        return pool.submit(repeat, step, seconds=seconds, least=FORWARD_BATCHES).result()


def _batches(pixels: list[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    rows = (pixels[number % len(pixels)] for number in count())
    while True:
        yield np.stack(list(islice(rows, size)))


def measure_write(write: Callable[[Outcomes], Outcomes], *, dims: int, image_ids: int, seconds: float) -> Rate:
    """Commit embeddings that exist in memory, 512 in a transaction."""
    embeddings = _embeddings(dims, image_ids)

    def step() -> int:
        return len(write(Outcomes(embedded=tuple(islice(embeddings, WRITTEN_AT_ONCE)))))

    return repeat(step, seconds=seconds, least=WRITES)


def _embeddings(dims: int, image_ids: int) -> Iterator[Embedding]:
    rows = np.random.default_rng(0).standard_normal((WRITTEN_AT_ONCE, dims), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for number in count():
        image = ImageRef(image_id=number % image_ids + 1, product_id="P", url="")
        sha256 = hashlib.sha256(b"write only" + number.to_bytes(8)).digest()
        content = Content(image=image, sha256=sha256, size_bytes=80_000, mime="image/jpeg", etag='"0123456789abcdef"')
        yield Embedding(content=content, width=400, height=533, vector=rows[number % WRITTEN_AT_ONCE])

"""Decoding by threads and by processes, beside each other: images/s, and what an image costs in processor time.

    python -m benchmarks.decode_workers CATALOG.CSV [--workers 1,2,4,8,16] [--photos 512] [--rounds 5]

The same function of catvec decodes the same photos, whose bytes are in memory, and every array of pixels ends in this
process. Threads share its memory, as in a run; processes get bytes and give arrays through pipes, eight photos at a
time, and are started beforehand. Contenders take turns; the first round is not counted. By default 1, 2, 4 … workers,
up to the cores. Writes results/decode_workers.json. A minute on two quiet cores, as long on 16.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.catalog import describe_sizes, write_catalog
from benchmarks.conditions import RESULTS, spread, usable_cores, write_result
from pipeline.images.decode import decode_pixels
from pipeline.models.preprocess import clip_preprocess
from pipeline.settings import DecodeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

PHOTOS, ROUNDS, IMAGE_SIZE = 512, 5, 224
CHUNK = 8
"""photos a process takes at once: fewer round trips through its pipe; threads need none"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure decoding by threads and by processes.")
    parser.add_argument("catalog", type=Path, help="a CSV file with paths to photos in its column image")
    parser.add_argument("--workers", help="how many, with commas; default: powers of two up to the cores")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--name", default="decode_workers", help="name of the result file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        photos = write_catalog(
            arguments.catalog, Path(scratch) / "catalog.csv", "http://unused", photos=arguments.photos
        )
    data = [photo.path.read_bytes() for photo in photos]
    workers = [int(count) for count in arguments.workers.split(",")] if arguments.workers else powers(usable_cores())
    lines = measure(data, workers, rounds=arguments.rounds)
    for line in lines:
        rate, cost = line["images_per_s"], line["core_ms"]
        print(
            f"{line['workers']:3} {line['kind']:10} {rate['median']:9,.1f} images/s "
            f"({rate['min']:,.1f} to {rate['max']:,.1f}), {cost['median']:.2f} core ms an image"
        )
    result = {"photos": describe_sizes(photos), "image_size": IMAGE_SIZE, "rounds": arguments.rounds, "lines": lines}
    print(write_result(arguments.name, result, arguments.results))


def powers(cores: int) -> list[int]:
    """1, 2, 4 … and the cores."""
    return sorted({*(2**number for number in range(cores.bit_length()) if 2**number <= cores), cores})


def measure(data: Sequence[bytes], workers: Sequence[int], *, rounds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        pools: dict[tuple[str, int], Executor] = {}
        children: dict[tuple[str, int], list[int]] = {}
        for count in workers:
            pools["threads", count] = stack.enter_context(ThreadPoolExecutor(count))
            # not forked: this process has threads
            context, before = multiprocessing.get_context("spawn"), pids()
            pools["processes", count] = stack.enter_context(ProcessPoolExecutor(count, mp_context=context))
            decode_all(pools["processes", count], data)  # starts them
            children["processes", count] = list(pids() - before)
        found: dict[tuple[str, int], list[tuple[float, float]]] = {name: [] for name in pools}
        for number in range(1 + rounds):
            for name in pools if number % 2 else reversed(pools):
                found[name].append(take_time(pools[name], data, children.get(name, [])))
    return [
        {
            "kind": kind,
            "workers": count,
            "images_per_s": spread([len(data) / seconds for seconds, _ in counted]),
            "core_ms": spread([1000 * core_s / len(data) for _, core_s in counted]),
        }
        for (kind, count), times in found.items()
        if (counted := times[1:])
    ]


def take_time(pool: Executor, data: Sequence[bytes], children: Sequence[int]) -> tuple[float, float]:
    """Seconds, and processor seconds of this process and the children."""
    core_before, before = core_seconds(children), time.perf_counter()
    decode_all(pool, data)
    return time.perf_counter() - before, core_seconds(children) - core_before


def decode_all(pool: Executor, data: Sequence[bytes]) -> None:
    """All of it, as arrays in this process."""
    decode: partial[NDArray[np.uint8]] = partial(
        decode_pixels, spec=clip_preprocess(IMAGE_SIZE), settings=DecodeSettings()
    )
    for pixels in pool.map(decode, data, chunksize=CHUNK):
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)


def pids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def core_seconds(children: Sequence[int]) -> float:
    return time.process_time() + sum(core_seconds_of(pid) for pid in children)


def core_seconds_of(pid: int) -> float:
    """User and system time of a process so far; of Linux's /proc, whose file is described in proc(5)."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

"""Memory of a process while it runs, beside how many images it has done. Linux only: it reads /proc."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

EVERY_S = 0.2
AROUND_IMAGES = 100
"""what is resident goes up and down by a few MB with every batch; a mark is the median over this many images"""

DONE = """
SELECT unchanged + reused + embedded + failed
  FROM catvec.run_status
 WHERE pid = %s
 ORDER BY run_id DESC
 LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a process; `rss_mb` holds files mapped into memory too, `anonymous_mb` does not."""

    seconds: float
    images: int
    rss_mb: float
    anonymous_mb: float
    peak_mb: float


def sample_memory(process: subprocess.Popen[bytes], url: str) -> list[Sample]:
    """Look at the process until it ends; the images done are those of its run in the database at `url`."""
    samples: list[Sample] = []
    started = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        while process.poll() is None:
            memory_mb = _read_status(process.pid)
            if memory_mb is not None:
                samples.append(
                    Sample(
                        seconds=round(time.monotonic() - started, 2),
                        images=_images_done(connection, process.pid),
                        rss_mb=memory_mb["VmRSS"],
                        anonymous_mb=memory_mb["RssAnon"],
                        peak_mb=memory_mb["VmHWM"],
                    )
                )
            time.sleep(EVERY_S)
    return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Memory of a process when it had done so many images."""

    images: int
    rss_mb: float
    anonymous_mb: float


def mark_memory(process: subprocess.Popen[bytes], at: Sequence[int], count_done: Callable[[], int]) -> list[Mark]:
    """Look at the process until it ends: what is resident when `count_done` comes to each of `at`, the median of a
    second of looks."""
    marks: list[Mark] = []
    while process.poll() is None:
        if len(marks) < len(at) and count_done() >= at[len(marks)]:
            found = []
            for _ in range(5):
                found.append(_read_status(process.pid))
                time.sleep(EVERY_S)
            looks = [look for look in found if look is not None]
            if looks:
                marks.append(
                    Mark(
                        images=at[len(marks)],
                        rss_mb=statistics.median(look["VmRSS"] for look in looks),
                        anonymous_mb=statistics.median(look["RssAnon"] for look in looks),
                    )
                )
        time.sleep(EVERY_S)
    return marks


def mark(samples: list[Sample], images: int) -> dict[str, float] | None:
    """Memory when so many images were done: the median over the next hundred; None if it never came to that."""
    later = [sample for sample in samples if sample.images >= images]
    if not later:
        return None
    near = [sample for sample in later if sample.images < images + AROUND_IMAGES] or later[:1]
    return {
        "samples": len(near),
        "rss_mb": statistics.median(sample.rss_mb for sample in near),
        "anonymous_mb": statistics.median(sample.anonymous_mb for sample in near),
        "peak_mb": max(sample.peak_mb for sample in near),
    }


def _read_status(pid: int) -> dict[str, float] | None:
    """The sizes in /proc/PID/status in MB; None when the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    sizes = dict(line.split(":", 1) for line in lines if line.endswith(" kB"))
    if "VmRSS" not in sizes:  # a zombie has no memory
        return None
    return {name: round(int(size.split()[0]) * 1024 / 1e6, 1) for name, size in sizes.items()}


def _images_done(connection: psycopg.Connection[tuple[int]], pid: int) -> int:
    try:
        row = connection.execute(DONE, (pid,)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return 0  # a first run makes its tables itself
    return row[0] if row else 0

"""What a run leaves for monitoring: a file that node_exporter's textfile collector reads.

One file for each catalog and model, because a run replaces it whole. Two numbers are worth an alarm: the age of
catvec_run_last_success_timestamp_seconds, and catvec_run_images{state="failed"} beside the other states.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import ConfigError
from pipeline.files import check_writable, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import RunSummary

logger = logging.getLogger(__name__)

SUFFIX = ".prom"
PREFIX = "catvec_run_"
LAST_SUCCESS = "last_success_timestamp_seconds"
STATES = ("unchanged", "reused", "embedded", "failed", "pending")

HELP = {
    "last_end_timestamp_seconds": "when the last run ended, well or not, in seconds since 1970",
    LAST_SUCCESS: "when a run last saw the whole catalog through and exited with 0, in seconds since 1970",
    "exit_code": "exit code of the last run: 0 done, 3 too many images failed, 4 a server was down, 75 another run",
    "finished": "1 when the last run saw the whole catalog through, 0 when it stopped or failed before",
    "duration_seconds": "how long the last run took, in seconds",
    "images": "images that the last run saw, by what became of them; their sum is all of them",
    "images_checked": "images with a vector whose server or file was asked in the last run whether they changed",
    "images_changed": "images that showed other bytes in the last run than before",
    "images_removed": "images that left the search results in the last run",
    "failures": "images and catalog rows that stand as failed after the last run, by code",
    "images_per_second": "images embedded, reused or checked and unchanged per second in the last run",
}


def check_metrics_path(path: Path) -> None:
    """Raise ConfigError for a file that node_exporter would not read or this user cannot write; before the run."""
    if not path.name.endswith(SUFFIX):
        raise ConfigError(
            f"--metrics-file is {str(path)!r}, expected a name that ends in {SUFFIX}",
            hint=f"node_exporter reads no other files; name it for example {path.with_suffix(SUFFIX).name}",
        )
    check_writable(path, "--metrics-file")


def write_metrics(
    path: Path,
    *,
    summary: RunSummary | None,
    exit_code: int,
    ended_at: float,
    catalog: str,
    model: str,
) -> None:
    """Replace the file by the numbers of this run; without a summary (it died early) by how it ended alone.

    `ended_at` is seconds since 1970. When the last success was is kept over a run that is none. Raises CatvecError
    when the file cannot be written.
    """
    numbers = _Numbers({"catalog": catalog, "model": model})
    finished = summary is not None and summary.finished
    success = ended_at if finished and exit_code == 0 else _last_success(path, numbers.labels)
    numbers.put("last_end_timestamp_seconds", ended_at)
    if success is not None:
        numbers.put(LAST_SUCCESS, success)
    numbers.put("exit_code", exit_code)
    numbers.put("finished", int(finished))
    if summary is not None:
        _put_summary(numbers, summary)
    write_atomically(path, generate_latest(numbers.registry))


def _put_summary(numbers: _Numbers, summary: RunSummary) -> None:
    numbers.put("duration_seconds", summary.seconds)
    for state in STATES:
        numbers.put("images", getattr(summary, state), state=state)
    for what in ("checked", "changed", "removed"):
        numbers.put(f"images_{what}", getattr(summary, what))
    for code, failures in summary.failures_by_code.items():
        numbers.put("failures", failures, code=code)
    numbers.put("images_per_second", summary.images_per_s)


class _Numbers:
    """Gauges in a registry of their own, all with the same first labels."""

    def __init__(self, labels: dict[str, str]) -> None:
        # the default registry would add the memory and file handles of a process that is gone when they are read
        self.registry = CollectorRegistry()
        self.labels = labels
        self._gauges: dict[str, Gauge] = {}

    def put(self, name: str, value: float, **more: str) -> None:
        labels = {**self.labels, **more}
        if name not in self._gauges:
            self._gauges[name] = Gauge(PREFIX + name, HELP[name], list(labels), registry=self.registry)
        self._gauges[name].labels(**labels).set(value)


def _last_success(path: Path, labels: dict[str, str]) -> float | None:
    """When the file that is there says that the same catalog and model last succeeded."""
    try:
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, so the time of the last success is lost: %s", path, error)
        return None
    samples = (sample for family in families for sample in family.samples)
    return next(
        (sample.value for sample in samples if sample.name == PREFIX + LAST_SUCCESS and sample.labels == labels), None
    )

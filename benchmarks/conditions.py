"""What every result file says about where it was measured, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results"


def describe_conditions() -> dict[str, Any]:
    """Commit, processor, device and versions."""
    import torch

    packages = ("torch", "transformers", "pillow", "numpy", "aiohttp", "uvloop", "psycopg", "pgvector")
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `{name}.json` with the conditions; give its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"conditions": describe_conditions()} | result, indent=2) + "\n")
    return path


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(values: Sequence[float]) -> dict[str, float]:
    """What repeated measurements come to."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()} | {"repeats": len(values)}


def _commit() -> str | None:
    """The commit, with `+` if files differ from it; None before the first one."""
    root = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    if head.returncode != 0:
        return None
    changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changes.stdout else "")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    return " ".join([names[0] if names else platform.machine(), *flags])

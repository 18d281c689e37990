"""Checks of this machine: the installation, the device, memory, disk, the way out to the network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.doctor.finding import Finding, Verdict, ok, problem, run_check, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.models.health import Hardware

LIBRARIES = ("torch", "transformers", "pillow", "psycopg", "pgvector", "aiohttp")

GIGABYTE = 1024**3
MEMORY_GB = 3.0
"""a run with ViT-B/32 peaks below 2.5 GB"""
DATABASE_GB = 5.0
"""100,000 images take 0.4 GB with their index, and up to 4 GB of write-ahead log while they are loaded"""
WEIGHTS_GB = 2.0
"""the largest of the named models, ViT-L/14, takes 1.7 GB"""
LEAST_GB = 0.3
"""below this PostgreSQL soon stops in the middle of something"""

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
GPU_SIGNS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/dev/kfd"))
"""what a driver for NVIDIA's or AMD's GPUs leaves on Linux"""


def examine_machine(environ: Mapping[str, str], *, home: Path | None) -> list[Finding]:
    """`home` is the folder of catvec's own server, None when another database is used."""
    checks: dict[str, Callable[[], Verdict]] = {
        "catvec": check_installation,
        "libraries": check_libraries,
        "image formats": check_formats,
        "device": partial(check_device, environ),
        "memory": check_memory,
        "space for weights": check_weights_space,
        "proxy": partial(check_proxy, environ),
    }
    if home is not None:
        checks["space for the database"] = partial(check_database_space, home)
    return [run_check(name, check) for name, check in checks.items()]


def check_installation() -> Verdict:
    return ok(f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def check_libraries() -> Verdict:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return problem(f"not installed: {', '.join(missing)}", "install catvec again: pip install catvec")
    return ok(", ".join(found))


def check_formats() -> Verdict:
    from pipeline.images.health import decodable_formats

    formats = decodable_formats()
    lacking = [name for name, is_decodable in formats.items() if not is_decodable]
    if lacking:
        return warning(
            f"this Pillow cannot decode {', '.join(lacking)}: such images will fail",
            "install Pillow's own wheel, which has them all: pip install --force-reinstall pillow",
        )
    return ok(f"{', '.join(formats)}, GIF, BMP")


def check_device(environ: Mapping[str, str]) -> Verdict:
    from pipeline.models.health import see_hardware

    hardware = see_hardware()
    placement = hardware.placement
    name = f"{placement.device} ({hardware.gpu})" if hardware.gpu else placement.device
    detail = f"{name} in {placement.precision}, batches of {placement.batch_size} images"
    if hardware.remarks:
        return warning(f"{detail}; torch says: {hardware.remarks[0]}", "update the GPU's driver or torch")
    if placement.device != "cpu":
        return ok(detail)
    return _judge_cpu(hardware, detail, environ)


def _judge_cpu(hardware: Hardware, detail: str, environ: Mapping[str, str]) -> Verdict:
    if environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return warning(f"{detail}; CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    has_gpu = shutil.which("nvidia-smi") or any(sign.exists() for sign in GPU_SIGNS)
    if has_gpu and hardware.gpu_cure:
        return warning(f"{detail}, although this machine has a GPU", hardware.gpu_cure)
    if hardware.built_for:
        return ok(
            f"{detail}; torch is built for CUDA {hardware.built_for} and sees no GPU",
            "where there should be a GPU, run with --device cuda: it then stops instead of taking the CPU",
        )
    return ok(detail)


def check_memory() -> Verdict:
    from pipeline.store.embedded.bootstrap import memory_bytes

    gigabytes = memory_bytes() / GIGABYTE
    detail = f"{gigabytes:,.1f} GB"
    if gigabytes < MEMORY_GB:
        return warning(
            f"{detail}, a run with ViT-B/32 takes up to 2.5 GB",
            "run where there is more, or with a smaller --batch-size and --concurrency",
        )
    return ok(detail)


def check_weights_space() -> Verdict:
    from pipeline.models.health import hub_cache

    folder = hub_cache()
    nearest = _nearest(folder)
    if not os.access(nearest, os.W_OK):
        return warning(
            f"{nearest} is closed to this user, so no weights can be downloaded",
            "set HF_HOME to a folder of your own, or give a local folder as --model",
        )
    return _judge_space(folder, WEIGHTS_GB, "set HF_HOME to a folder with more space", least_gb=0)


def check_database_space(home: Path) -> Verdict:
    cure = "free some space, set CATVEC_HOME to a folder with more, or name another database with --db"
    return _judge_space(home, DATABASE_GB, cure, least_gb=LEAST_GB)


def _judge_space(folder: Path, wanted_gb: float, cure: str, *, least_gb: float) -> Verdict:
    try:
        free_gb = shutil.disk_usage(_nearest(folder)).free / GIGABYTE
    except OSError as error:
        return problem(f"{folder} cannot be looked at: {error.strerror}", cure)
    detail = f"{free_gb:,.1f} GB free for {folder}"
    if free_gb < least_gb:
        return problem(detail, cure)
    return ok(detail) if free_gb >= wanted_gb else warning(f"{detail}, expected {wanted_gb:g} GB", cure)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: that is where it would be made."""
    return next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path("/"))


def check_proxy(environ: Mapping[str, str]) -> Verdict:
    """Only the names of variables are shown: a proxy's address may hold a password."""
    found = [name for proxy in PROXIES for name in (proxy, proxy.lower()) if environ.get(name)]
    if not found:
        return ok("none; images are fetched directly")
    verb = "is" if len(found) == 1 else "are"
    return warning(
        f"{', '.join(found)} {verb} set, but images are fetched without a proxy; only weights come through it",
        "let this machine reach the image hosts directly, or run catvec where it can",
    )

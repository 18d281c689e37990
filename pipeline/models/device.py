"""Where a model runs, in which precision, and how many images at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.settings import ModelSettings

# CPU: the fastest of 1, 8, 16, 32 and 64 with ViT-B/32 (benchmarks/results/encode.json), and a batch of 32 in
# flight costs little to repeat. CUDA and MPS are not measured: where a long run begins, before it tries which batch
# suits the device (`batch`).
_BATCH_SIZES = {"cpu": 32, "cuda": 256, "mps": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a model runs."""

    device: str
    precision: str
    batch_size: int


def choose_placements(settings: ModelSettings) -> tuple[Placement, ...]:
    """What the settings ask for, and the best that is here for what they leave open: one for each device.

    Raises:
        ConfigError: there is no such device here.
    """
    if settings.device == "all":
        devices = _all_devices()
    else:
        devices = [choose_device(name) for name in settings.device.split(",")]
    return tuple(_place(settings, device) for device in devices)


def count_beside(placements: Sequence[Placement]) -> int:
    """How many of these add the rate of the first one: those of its kind; copies on the CPU share its cores."""
    kinds = [placement.device.partition(":")[0] for placement in placements]
    return 1 if kinds[0] == "cpu" else kinds.count(kinds[0])


def _all_devices() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [choose_device("auto")]


def _place(settings: ModelSettings, device: str) -> Placement:
    return Placement(
        device=device,
        precision=choose_precision(settings.precision, device),
        batch_size=settings.batch_size or _BATCH_SIZES[device.partition(":")[0]],
    )


def choose_device(requested: str) -> str:
    """`auto` is CUDA, then MPS, then CPU; `cpu`, `mps`, `cuda` and `cuda:1` must be there.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if requested == "mps" and not has_mps:
        raise ConfigError("--device is 'mps', but torch finds no Apple GPU", hint="use --device auto or cpu")
    if requested.startswith("cuda"):
        _check_cuda(requested)
    return requested


def choose_precision(requested: str, device: str) -> str:
    """`auto` is half precision where the hardware computes in it, and fp32 elsewhere."""
    if requested != "auto":
        return requested
    if device.startswith("cuda"):
        return _cuda_half(device)
    if device == "mps":
        return "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _check_cuda(requested: str) -> None:
    import torch

    if not torch.cuda.is_available():
        cure = (
            "this torch is built without CUDA: install one from the CUDA index of pytorch.org, or use --device auto"
            if torch.version.cuda is None and torch.version.hip is None
            else "torch sees no GPU: check nvidia-smi and, in a container, that it was given one (--gpus all)"
        )
        raise ConfigError(f"--device is {requested!r}, but torch finds no CUDA device", hint=cure)
    index = int(requested.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"--device is {requested!r}, but there are {torch.cuda.device_count()} CUDA devices",
            hint=f"use cuda:0 to cuda:{torch.cuda.device_count() - 1}",
        )


def _cuda_half(device: str) -> str:
    import torch

    # bf16 arithmetic came with compute capability 8.0 (Ampere); older ones have fp16 only
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


@cache
def _cpu_has_bf16() -> bool:
    """Whether matrix products in bf16 are faster than in fp32: AMX, AVX512-BF16 or ARM's BF16.

    AVX512-BF16 without AMX doubles the images/s of fp32 (benchmarks/results/encode.json). Without any of them
    bf16 is emulated, and slower than fp32.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        import torch

        # no Linux; torch's own probe, which is private and may go
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(probe and probe())
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})

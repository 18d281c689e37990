"""The rate of a device that is elsewhere, as somebody states it or as `catvec bench` measured it there.

What was measured is of one model in one precision, and says nothing of others: those are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.settings import EstimateSettings, ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedRate:
    """Images a second that a device encodes; `source` says whence. `device` and `dims`, the length of the vectors, as
    far as they are known."""

    images_per_s: float
    source: str
    device: str | None = None
    dims: int | None = None


def find_stated(wanted: EstimateSettings, model: ModelSettings) -> StatedRate | None:
    """The rate that --images-per-s or --bench gives for this model; None without either. Raises ConfigError."""
    if wanted.bench is not None:
        return _read_bench(wanted.bench, model)
    return StatedRate(images_per_s=wanted.images_per_s, source="as stated") if wanted.images_per_s else None


def check_dims(stated: StatedRate, dims: int | None) -> None:
    """Raise ConfigError when the vectors measured were longer or shorter than those of the plan's model."""
    if None not in {stated.dims, dims} and stated.dims != dims:
        raise ConfigError(
            f"--bench is of a model of {stated.dims} dimensions, the plan's has {dims}",
            hint=_hint(stated.images_per_s),
        )


def _read_bench(path: Path, model: ModelSettings) -> StatedRate:
    """What `catvec bench --json` printed, alone or at the end of other output."""
    try:
        found = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
        rate, where = float(found["forward"]["images_per_s"]), found["conditions"]
        source = f"from {path.name}: {where['device']}, {where['precision']}"
        stated = StatedRate(images_per_s=rate, source=source, device=str(where["device"]), dims=int(where["dims"]))
        _refuse_other_model(path, where, rate, model)
    except OSError as error:
        raise ConfigError(f"--bench {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise _not_a_bench(path) from error
    if not rate > 0:
        raise _not_a_bench(path)
    return stated


def _refuse_other_model(path: Path, where: Mapping[str, Any], rate: float, model: ModelSettings) -> None:
    from pipeline.models.registry import model_name

    names = {model_name(model), model_name(replace(model, model_name=None))}  # either may have been left out there
    if where["model"] not in names:
        expected = " or ".join(sorted(names))
        raise ConfigError(
            f"--bench {str(path)!r} was measured with model {where['model']}, expected {expected}", hint=_hint(rate)
        )
    if model.precision not in {"auto", where["precision"]}:
        raise ConfigError(
            f"--bench {str(path)!r} was measured in {where['precision']}, --precision is {model.precision!r}",
            hint=_hint(rate),
        )


def _hint(rate: float) -> str:
    same = "measure with the same --model and --precision there"
    return f"{same}; or, if it is as fast, state it: --images-per-s {rate:g}"


def _not_a_bench(path: Path) -> ConfigError:
    return ConfigError(
        f"--bench {str(path)!r} has no forward.images_per_s and conditions, which catvec bench --json prints"
    )

"""What is here to run models with, and where a registered model's files are, for `catvec doctor`. Loads no model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, ModelError
from pipeline.models import folder as model_folder
from pipeline.models.device import choose_device, choose_placements
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from pipeline.models.device import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What `auto` picks here. `gpu_cure` is how to get CUDA, None where it is in use.

    `remarks` is what torch itself warned of while it looked: an old driver, a GPU that it was not built for.
    """

    placement: Placement
    gpu: str | None
    built_for: str | None
    gpu_cure: str | None
    remarks: tuple[str, ...]


def see_hardware() -> Hardware:
    """Look for devices. Raises ModelError when torch itself cannot be loaded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import torch

            [placement] = choose_placements(ModelSettings())
        except (ImportError, OSError, RuntimeError) as error:
            # OSError: a shared library that is missing; RuntimeError: a driver that gives up
            raise ModelError(
                f"torch does not load: {type(error).__name__}: {str(error).splitlines()[0]}",
                hint="install it again: pip install --force-reinstall torch",
            ) from error
        is_cuda = placement.device.startswith("cuda")
        return Hardware(
            placement=placement,
            gpu=torch.cuda.get_device_name(placement.device) if is_cuda else None,
            built_for=torch.version.cuda or torch.version.hip,
            gpu_cure=None if is_cuda else _cuda_cure(),
            remarks=tuple(str(warning.message).splitlines()[0] for warning in caught),
        )


def _cuda_cure() -> str | None:
    try:
        choose_device("cuda")
    except ConfigError as error:
        return error.hint
    return None


def hub_cache() -> Path:
    """Where weights from the Hub are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def locate_model(*, source: str, revision: str, location: str) -> Path | None:
    """The folder that a registered model would be loaded from on this machine; None when it is not here."""
    if source == "folder":
        folder = Path(location)
    else:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(source, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    try:
        return folder if model_folder.is_complete(folder) else None
    except ModelError:
        return None

"""transformers' models, loaded whole or not at all.

transformers fills weights that it does not find with random numbers and says so in a warning. Here that is an
error, as is everything else that would give plausible vectors of a model that nobody asked for.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.folder import read_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# what transformers, torch, pickle and a nonsensical config.json were seen to raise, beside two of their own
_LOAD_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
)
_IMAGE_ONLY = "VisionModelWithProjection"
_COPY_AGAIN = "copy the model folder again, or run git lfs pull if it is a Git clone of the Hub"


def load_model(folder: Path) -> Any:
    """The model in `folder` in fp32 on the CPU, in evaluation mode.

    It has `get_image_features` and `get_text_features`, or is an image side with a projection.

    Raises:
        ModelError: it is another kind of model, or its weights are damaged or are not those of its config.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig

    load_errors = (*_LOAD_ERRORS, SafetensorError, StrictDataclassError)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except load_errors as error:
            raise ModelError(f"{folder / 'config.json'} describes no known model: {brief(error)}") from error
        kind = _model_class(folder, config)
        try:
            model, report = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that the report names them
                output_loading_info=True,
            )
        except load_errors as error:
            # torch's own text advises to run what is pickled
            is_code = isinstance(error, UnpicklingError)
            reason = "they are not plain weights, and code in them is not run" if is_code else brief(error)
            raise ModelError(f"the weights in {folder} cannot be loaded: {reason}", hint=_COPY_AGAIN) from error
    _check_report(folder, model, report)
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, reports and warnings off stderr; ModelErrors say what matters."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def brief(error: BaseException) -> str:
    """A foreign message on one line, cut: some run over pages."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def has_text(model: Any) -> bool:
    return hasattr(model, "get_text_features")


def _model_class(folder: Path, config: Any) -> Any:
    import transformers

    listed = read_config(folder).get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    if architecture.endswith(_IMAGE_ONLY) and hasattr(transformers, architecture):
        return getattr(transformers, architecture)
    known = transformers.MODEL_MAPPING.get(type(config), None)
    if hasattr(known, "get_image_features") and hasattr(known, "get_text_features"):
        return known
    raise ModelError(
        f"{folder} holds a {architecture or config.model_type}, expected a model with image and text features "
        f"(CLIP, SigLIP, …) or an image side with a projection (CLIP{_IMAGE_ONLY})"
    )


def _check_report(folder: Path, model: Any, report: dict[str, Any]) -> None:
    """Refuse weights that are missing, of another shape, or left over.

    Left over counts only inside the parts that are used: a whole CLIP read as an image side leaves its text
    side, and old files hold position numbers (`position_ids`) that are computed now.
    """
    parts = {name for name, _ in model.named_children()}
    left_over = {
        name
        for name in report.get("unexpected_keys", ())
        if name.split(".")[0] in parts and not name.endswith("position_ids")
    }
    mismatched = {name if isinstance(name, str) else name[0] for name in report.get("mismatched_keys", ())}
    for names, verb in (
        (set(report.get("missing_keys", ())), "lack"),
        (mismatched, "have another shape of"),
        (left_over, "have more than config.json describes:"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"the weights in {folder} {verb} {min(names)}{more}",
                hint=f"config.json may be of another model: {_COPY_AGAIN}",
            )

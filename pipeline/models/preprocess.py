"""transformers' image processor settings → PreprocessSpec. Reads JSON only; the pixels are made in images/.

What the record cannot say is refused by name: a vector of wrongly prepared pixels looks like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.records import PreprocessSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

_BASE: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_CROP = {"do_center_crop": True, "size": {"shortest_edge": 224}, "crop_size": 224}
_SQUARE = {"height": 224, "width": 224}

# What each of transformers' processors does with settings that its file leaves out; read from their classes
# (transformers 5.23) and compared with them by a test. `int_is_square`: what a bare number for size means.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _BASE | _CROP,
    "ChineseCLIP": _BASE | _CROP,
    "Siglip": _BASE | {"size": _SQUARE, "image_mean": _HALF, "image_std": _HALF},
    "Blip": _BASE | {"size": {"height": 384, "width": 384}, "int_is_square": True},
    "ViT": _BASE | {"size": _SQUARE, "resample": 2, "image_mean": _HALF, "image_std": _HALF, "int_is_square": True},
}
_FAMILY_OF_MODEL = {
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "metaclip_2": "CLIP",
    "chinese_clip": "ChineseCLIP",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
    "blip": "Blip",
}
_REFUSED_STEPS = ("do_pad", "do_convert_grayscale", "do_image_splitting", "do_rescale_offset", "crop_pct")


def read_preprocess(folder: Path, *, model_type: str) -> PreprocessSpec:
    """The settings of the folder's image processor; `model_type` decides where the file names none.

    Raises:
        ModelError: there are none, they cannot be read, or they ask for a step that is not supported.
    """
    config = _read_config(folder)
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = named.removesuffix("Fast").removesuffix("Pil")
    family = family.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    family = family or _FAMILY_OF_MODEL.get(model_type, "")
    if family not in _DEFAULTS:
        known = ", ".join(f"{family}ImageProcessor" for family in _DEFAULTS)
        found = repr(named) if named else f"none for a model of type {model_type!r}"
        raise ModelError(f"{folder}: image processor {found} is not supported, expected one of {known}")
    given = {key: value for key, value in config.items() if value is not None}
    try:
        return _spec(_DEFAULTS[family] | given)
    except ModelError as error:
        raise ModelError(f"{folder}: {error.message}", hint=error.hint) from error


def clip_preprocess(edge: int) -> PreprocessSpec:
    """That of OpenAI's CLIP models, for images of `edge` × `edge` pixels."""
    return _spec(_DEFAULTS["CLIP"] | {"size": {"shortest_edge": edge}, "crop_size": edge})


def fingerprint(spec: PreprocessSpec) -> str:
    """16 hex digits that change when any setting does."""
    text = json.dumps(asdict(spec), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_config(folder: Path) -> Mapping[str, Any]:
    """As transformers: the part of a composite processor_config.json before preprocessor_config.json."""
    for name in PROCESSOR_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not readable JSON", hint="copy the model folder again") from error
        if name == "processor_config.json" and isinstance(config, dict):
            config = config.get("image_processor")
        if isinstance(config, dict):
            return config
    raise ModelError(
        f"{folder} has no image processor settings, expected preprocessor_config.json",
        hint="copy that file from the model this one was made from, or save it there with "
        "AutoImageProcessor.from_pretrained(…).save_pretrained(…)",
    )


def _spec(config: Mapping[str, Any]) -> PreprocessSpec:
    for step in _REFUSED_STEPS:
        if config.get(step):
            raise ModelError(f"the image processor sets {step} = {config[step]!r}, which is not supported")
    if not config["do_resize"]:
        raise ModelError("the image processor sets do_resize = False, expected images of one size")
    size = _size(config.get("size"), int_is_square=config.get("int_is_square", False), name="size")
    crop = None
    if config["do_center_crop"]:
        crop = _size(config.get("crop_size"), int_is_square=True, name="crop_size")
    resize, resize_size, height, width = _geometry(size, crop)
    normalize = config["do_normalize"]
    return PreprocessSpec(
        resize=resize,
        resize_size=resize_size,
        height=height,
        width=width,
        resample=_resample(config["resample"]),
        rescale=_number(config["rescale_factor"], "rescale_factor") if config["do_rescale"] else 1.0,
        mean=_channels(config["image_mean"], "image_mean") if normalize else (0.0, 0.0, 0.0),
        std=_channels(config["image_std"], "image_std", positive=True) if normalize else (1.0, 1.0, 1.0),
    )


def _geometry(size: dict[str, int], crop: dict[str, int] | None) -> tuple[str, int, int, int]:
    """(resize, resize_size, height, width), if a resize and a crop say it."""
    if set(size) == {"height", "width"}:
        height, width = size["height"], size["width"]
        if crop is not None and crop != size:
            raise ModelError(f"the image processor squashes to {size} and crops to {crop}: not supported")
        return "squash", max(height, width), height, width
    if set(size) != {"shortest_edge"}:
        raise ModelError(f"the image processor sets size = {size!r}, expected shortest_edge or height and width")
    edge = size["shortest_edge"]
    if crop is None or set(crop) != {"height", "width"}:
        raise ModelError(
            f"the image processor resizes the shortest edge to {edge} without a crop_size of height and width, "
            "expected images of one size"
        )
    return "shortest_edge", edge, crop["height"], crop["width"]


def _size(value: object, *, int_is_square: bool, name: str) -> dict[str, int]:
    """One spelling for the four that transformers accepts: a number, a pair, a mapping with or without None."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = {"height": value, "width": value} if int_is_square else {"shortest_edge": value}
    elif isinstance(value, list) and len(value) == 2:
        size = {"height": value[0], "width": value[1]}
    elif isinstance(value, dict):
        size = {key: edge for key, edge in value.items() if edge is not None}
    else:
        size = {}
    if not size or not all(type(edge) is int and 0 < edge <= 4096 for edge in size.values()):
        raise ModelError(f"the image processor sets {name} = {value!r}, expected pixels from 1 to 4096")
    return size


def _resample(value: object) -> int:
    if type(value) is int and 0 <= value <= 5:
        return value
    raise ModelError(f"the image processor sets resample = {value!r}, expected one of Pillow's filters 0 to 5")


def _number(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ModelError(f"the image processor sets {name} = {value!r}, expected a number")


def _channels(value: object, name: str, *, positive: bool = False) -> tuple[float, float, float]:
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = [_number(number, name) for number in values]
    if len(numbers) != 3 or (positive and min(numbers) <= 0):
        kind = "positive numbers" if positive else "numbers"
        raise ModelError(f"the image processor sets {name} = {value!r}, expected three {kind}")
    return numbers[0], numbers[1], numbers[2]

"""An RGB or grey image → the model's input size, exactly as transformers' Pillow processors do it.

A 10000 × 1 image at edge 224 would be 1.5 GB when resized; of such strips only the part that the centre crop
keeps is computed (Pillow's `box`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from pipeline.records import PreprocessSpec

Box: TypeAlias = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of an image; fractions are allowed"""

# in areas of the crop. Why not always by `box`, which saves a quarter of the time: Pillow picks the order of its
# two passes by cost, a box changes the choice, and pixels of noise then differ by up to 24. An image that was decoded
# reduced differs by more than that anyway.
_WHOLE_AT_MOST = 16


def resized_size(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Give the (width, height) an image of this size is resized to before the crop.

    The long edge is cut off, not rounded: transformers.image_transforms.get_resize_output_image_size.
    """
    if spec.resize == "squash":
        return spec.width, spec.height
    long_edge = int(spec.resize_size * max(width, height) / min(width, height))
    return (spec.resize_size, long_edge) if width <= height else (long_edge, spec.resize_size)


def resize_and_crop(
    image: Image.Image, box: Box, resized: tuple[int, int], spec: PreprocessSpec, *, is_reduced: bool = False
) -> NDArray[np.uint8]:
    """Resize the `box` of `image` (mode L or RGB) to `resized`, then crop the centre: uint8 [H, W, 3].

    Where the resized image is smaller than the crop, black is added around it, one more row or column before it
    than after it: transformers.image_transforms.center_crop.
    """
    left, columns, pad_left = _centre(resized[0], spec.width)
    top, rows, pad_top = _centre(resized[1], spec.height)
    kept = (left, top, left + columns, top + rows)
    if not is_reduced and resized[0] * resized[1] <= _WHOLE_AT_MOST * spec.width * spec.height:
        part = image.resize(resized, spec.resample, box=box).crop(kept)
    else:
        scale_x, scale_y = (box[2] - box[0]) / resized[0], (box[3] - box[1]) / resized[1]
        inside = (
            box[0] + kept[0] * scale_x,
            box[1] + kept[1] * scale_y,
            min(box[0] + kept[2] * scale_x, box[2]),
            min(box[1] + kept[3] * scale_y, box[3]),
        )
        part = image.resize((columns, rows), spec.resample, box=inside)
    pixels = np.array(part.convert("RGB"))
    if pixels.shape[:2] == (spec.height, spec.width):
        return pixels
    padded = np.zeros((spec.height, spec.width, 3), dtype=np.uint8)
    padded[pad_top : pad_top + rows, pad_left : pad_left + columns] = pixels
    return padded


def _centre(resized: int, wanted: int) -> tuple[int, int, int]:
    """Give (first pixel kept, pixels kept, pixels of padding before them) along one axis."""
    if resized >= wanted:
        return (resized - wanted) // 2, wanted, 0
    return 0, resized, (wanted - resized + 1) // 2

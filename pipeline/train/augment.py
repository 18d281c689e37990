"""Batches of images, each shown a little differently every time: another crop, mirrored, in another light.

What a product is must stay readable, and its colour must keep its name: there is no change of hue, and the light
changes by a tenth. Computed for the whole batch at once, where the model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import affine_grid, grid_sample

if TYPE_CHECKING:
    from torch import Tensor

DRAWS: Final = 8
"""random numbers that an image takes"""
LEAST_AREA: Final = 0.7
"""of the image in a crop; with less, a striped shirt may show no stripes any more"""
WIDEST: Final = 1.15
"""times the height that a crop may be wider, or the other way round, than the image"""
LIGHT: Final = 0.1
"""by how much brightness, contrast and saturation may differ from 1"""


def vary(pixels: Tensor, draws: Tensor, height: int, width: int) -> Tensor:
    """Other views of uint8 [N, H, W, 3]: float [N, 3, height, width], still of 0 to 255.

    `draws` are numbers of 0 to 1 [N, DRAWS], which decide everything.
    """
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(_crops(draws), [len(images), 3, height, width], align_corners=False)
    views = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _relight(views, draws[:, 5:8])


def _crops(draws: Tensor) -> Tensor:
    """Which part is shown, and whether mirrored: affine maps [N, 2, 3] from the view to the image, both -1 to 1."""
    area = LEAST_AREA + (1 - LEAST_AREA) * draws[:, 0]
    aspect = WIDEST ** (2 * draws[:, 1] - 1)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    maps = torch.zeros(len(draws), 2, 3, device=draws.device)
    maps[:, 0, 0] = torch.where(draws[:, 4] < 0.5, -width, width)
    maps[:, 1, 1] = height
    maps[:, 0, 2] = (1 - width) * (2 * draws[:, 2] - 1)
    maps[:, 1, 2] = (1 - height) * (2 * draws[:, 3] - 1)
    return maps


def _relight(views: Tensor, draws: Tensor) -> Tensor:
    brightness, contrast, saturation = ((1 + LIGHT * (2 * draws - 1)).view(-1, 3, 1, 1, 1)).unbind(dim=1)
    grey = views.mean(dim=1, keepdim=True)
    middle = grey.mean(dim=(2, 3), keepdim=True)
    # one pass over the pixels: grey + saturation (x - grey), then middle + contrast (… - middle), then brightness
    own, of_grey = saturation * contrast, (1 - saturation) * contrast
    return ((views * own + grey * of_grey + middle * (1 - contrast)) * brightness).clamp_(0, 255)

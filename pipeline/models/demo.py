"""A stand-in model for the demo: it was never trained, and it knows pictures only, no text.

Its weights are set by rule and by seed, so that an ordinary transformers CLIP vision tower computes what is
easy to see: which colours the thing in the middle has, where it stands out from a light wall, and how its
surface is patterned. That gives sensible neighbours among the demo's drawings, and understands nothing else.

How: channels of a token are set apart for one use each. The first layer's MLP turns a patch's mean colour and
texture into random features, and says how much the patch stands out; the second layer's attention lets the
class token average them over the patches. The projection picks the averages.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.models.weights import quiet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor

DEMO_IMAGE_SIZE = 64
DEMO_DIMS = 128

_PATCH, _GRID = 8, 8
_CELLS = _GRID * _GRID
_HIDDEN, _HEAD = 256, 64

# what each channel of a token holds; one head of 64 channels each for colour, layout and texture
_COLOUR, _LAYOUT, _TEXTURE = slice(0, 64), slice(64, 96), slice(128, 160)
_RGB, _FILTERS, _SALIENCE = slice(192, 195), slice(96, 128), 195
_POSITION = 160
"""of the class token's own channel; a patch's channel is `_position(cell)`"""

_COLOUR_UNITS = 96
_SALIENT_BELOW, _FULLY_BELOW = 0.33, 0.05
"""a colour channel of -0.5 to 0.5 under the first stands out from a light wall, under the second fully"""

_ANCHOR = 16.0
"""Every token has this in its own position channel and nowhere else. It dwarfs all other channels, so each
layer norm divides by nearly √(16² / 256) = 1 and lets the other channels pass as they are."""

_BLOCK_GAINS = {"colour": 1.0, "layout": 0.19, "texture": 0.16}
"""chosen so that layout and texture have a fifth of colour's length in the vector of a demo drawing: at half
of it, neighbours begin to share the outline instead of the colour"""


def write_demo_model(folder: Path, *, seed: int = 7) -> Path:
    """Write the untrained stand-in model as an ordinary transformers folder, and return the folder.

    A `CLIPVisionModelWithProjection` of 64 × 64 pixels and 128 dimensions, without a text side, 4.5 MB.

    Raises: ModelError if the folder cannot be written.
    """
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=_HIDDEN,
        intermediate_size=_COLOUR_UNITS + 6 + 6 * _CELLS + 64,
        num_hidden_layers=2,
        num_attention_heads=_HIDDEN // _HEAD,
        image_size=DEMO_IMAGE_SIZE,
        patch_size=_PATCH,
        projection_dim=DEMO_DIMS,
        hidden_act="relu",
    )
    model = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        _set_weights(model, torch.Generator().manual_seed(seed))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be written to {str(folder)!r}: {error.strerror or error}",
            hint="choose another folder",
        ) from error
    return folder


_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": DEMO_IMAGE_SIZE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": DEMO_IMAGE_SIZE, "width": DEMO_IMAGE_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _set_weights(model: Any, generator: Generator) -> None:
    tower = model.vision_model
    for parameter in model.parameters():
        parameter.zero_()
    first, second = tower.encoder.layers
    for norm in (tower.pre_layrnorm, first.layer_norm2, second.layer_norm1, tower.post_layernorm):
        norm.weight.fill_(1)
        norm.bias.fill_(_ANCHOR / _HIDDEN)  # gives back the mean, which is the anchor's
    _embed_patches(tower.embeddings, generator)
    _describe_patches(first.mlp, generator)
    _average_patches(second.self_attn)
    _project(model.visual_projection)
    _remove_mean(tower, _made_up_scenes(96, generator))


def _position(cell: int) -> int:
    """Return the position channel of a patch, counted row by row: 161 to 191, then 196 to 228."""
    return _POSITION + 1 + cell if cell < 31 else 196 + cell - 31


def _embed_patches(embeddings: Any, generator: Generator) -> None:
    """Give a patch its mean colour (-0.5 to 0.5), the answers of random gratings, and its position."""
    import torch

    kernel = embeddings.patch_embedding.weight
    for channel in range(3):
        kernel[_RGB.start + channel, channel] = 0.5 / _PATCH**2
    rows, columns = torch.meshgrid(torch.arange(_PATCH), torch.arange(_PATCH), indexing="ij")
    for index in range(_FILTERS.start, _FILTERS.stop):
        turn, phase, pace = torch.rand(3, generator=generator).tolist()
        across = rows * math.sin(math.pi * turn) + columns * math.cos(math.pi * turn)
        wave = torch.cos((0.5 + 1.2 * pace) * across + math.tau * phase)
        kernel[index] = (wave - wave.mean()) / _PATCH**2
    positions = embeddings.position_embedding.weight
    positions[0, _POSITION] = _ANCHOR
    for cell in range(_CELLS):
        positions[cell + 1, _position(cell)] = _ANCHOR


def _describe_patches(mlp: Any, generator: Generator) -> None:
    """Fill the colour, layout, texture and salience channels of a patch."""
    import torch

    fc1, fc2 = mlp.fc1, mlp.fc2
    directions = torch.nn.functional.normalize(torch.randn(_COLOUR_UNITS, 3, generator=generator), dim=1)
    fc1.weight[:_COLOUR_UNITS, _RGB] = 3 * directions
    fc1.bias[:_COLOUR_UNITS] = 3 * (torch.rand(_COLOUR_UNITS, generator=generator) - 0.5)
    mixing = torch.randn(_COLOUR.stop, _COLOUR_UNITS, generator=generator)
    fc2.weight[_COLOUR, :_COLOUR_UNITS] = 0.2 * mixing / _COLOUR_UNITS**0.5
    _measure_salience(mlp, unit=_COLOUR_UNITS, output=_SALIENCE, cell=None)
    for cell in range(_CELLS):
        row, column = divmod(cell, _GRID)
        mirrored = _LAYOUT.start + row * _GRID // 2 + min(column, _GRID - 1 - column)
        _measure_salience(mlp, unit=_COLOUR_UNITS + 6 + 6 * cell, output=mirrored, cell=cell)
    unit = _COLOUR_UNITS + 6 + 6 * _CELLS
    for index in range(32):
        for sign in (1, -1):  # the size of a grating's answer: relu(a) + relu(-a)
            fc1.weight[unit, _FILTERS.start + index] = sign
            fc2.weight[_TEXTURE.start + index, unit] = 1
            unit += 1


def _measure_salience(mlp: Any, *, unit: int, output: int, cell: int | None) -> None:
    """Add to `output` how far a patch's colour channels are below the wall's, 0 to 0.9.

    With a cell only its own patch answers: the gate of 1 closes the units of all others.
    """
    for channel in range(3):
        for threshold, sign in ((_SALIENT_BELOW, 1), (_FULLY_BELOW, -1)):
            mlp.fc1.weight[unit, _RGB.start + channel] = -1
            mlp.fc1.bias[unit] = threshold
            if cell is not None:
                mlp.fc1.weight[unit, _position(cell)] = 1 / _ANCHOR
                mlp.fc1.bias[unit] -= 1
            mlp.fc2.weight[output, unit] = sign
            unit += 1


def _average_patches(attention: Any) -> None:
    """Let colour and texture be averaged over what stands out near the middle, layout over everything."""
    import torch

    attention.v_proj.weight.copy_(torch.eye(_HIDDEN))
    attention.v_proj.weight[_LAYOUT] *= 16  # one patch in 65 answers: too faint beside what norms leak
    attention.out_proj.weight[: 3 * _HEAD, : 3 * _HEAD] = torch.eye(3 * _HEAD)
    for head in (0, 2):
        channel = head * _HEAD
        attention.q_proj.bias[channel] = _HEAD**0.5  # undoes the scaling of attention
        attention.k_proj.weight[channel, _SALIENCE] = 8
        attention.k_proj.weight[channel, _POSITION] = -20 / _ANCHOR
        for cell in range(_CELLS):
            row, column = divmod(cell, _GRID)
            distance = ((row - 3.5) ** 2 + (column - 3.5) ** 2) / 16
            attention.k_proj.weight[channel, _position(cell)] = -5 * distance / _ANCHOR


def _project(projection: Any) -> None:
    import torch

    blocks = {"colour": _COLOUR, "layout": _LAYOUT, "texture": _TEXTURE}
    row = 0
    for name, block in blocks.items():
        width = block.stop - block.start
        projection.weight[row : row + width, block] = _BLOCK_GAINS[name] * torch.eye(width)
        row += width


def _remove_mean(tower: Any, pixels: Tensor) -> None:
    """Centre the output on these scenes: without it, all pictures on light walls look alike.

    It is taken away where features are made, and again where they are averaged, so that half precision
    rounds small numbers; the last norm takes what is left.
    """
    first, second = tower.encoder.layers
    mean = _mean_output(tower, pixels)
    for block in (_COLOUR, _TEXTURE):
        first.mlp.fc2.bias[block] -= mean[block] / 2  # counts twice: the class token's own and the average
    mean = _mean_output(tower, pixels)
    for block in (_COLOUR, _LAYOUT, _TEXTURE):
        second.self_attn.out_proj.bias[block] -= mean[block]
    tower.post_layernorm.bias.sub_(_mean_output(tower, pixels))


def _mean_output(tower: Any, pixels: Tensor) -> Tensor:
    token: Tensor = tower(pixel_values=pixels).pooler_output
    return token.mean(dim=0)


def _made_up_scenes(scenes: int, generator: Generator) -> Tensor:
    """Return [N, 3, H, W] of -1 to 1: an ellipse of any colour in the middle of a light wall."""
    import torch

    def draw(*shape: int) -> Tensor:
        return torch.rand(scenes, *shape, generator=generator)

    wall, thing = 0.86 + 0.1 * draw(1, 1, 1) + 0.04 * (draw(3, 1, 1) - 0.5), draw(3, 1, 1)
    axis = torch.linspace(-1, 1, DEMO_IMAGE_SIZE)
    height, width = 0.45 + 0.4 * draw(1, 1, 1), 0.35 + 0.4 * draw(1, 1, 1)
    is_inside = (axis.view(1, 1, -1, 1) / height) ** 2 + (axis.view(1, 1, 1, -1) / width) ** 2 < 1
    return torch.where(is_inside, thing, wall).clamp(0, 1) * 2 - 1

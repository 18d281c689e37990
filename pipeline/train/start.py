"""The model that a training begins with: a folder as transformers has it, new or found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, ModelError
from pipeline.models.folder import has_tokenizer
from pipeline.models.preprocess import read_preprocess
from pipeline.models.text import Tokenizer, load_tokenizer
from pipeline.models.untrained import seeded
from pipeline.models.weights import has_text, load_model, quiet
from pipeline.train.tokens import VOCABULARY, room_for, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from pipeline.records import PreprocessSpec
    from pipeline.settings import NewModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a CLIP: pixels, and width and layers of its two sides."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    text_width: int
    text_layers: int
    dims: int


SHAPES = {
    "tiny": Shape(image_size=64, patch_size=8, width=128, layers=4, text_width=128, text_layers=3, dims=128),
    "small": Shape(image_size=128, patch_size=16, width=256, layers=6, text_width=256, text_layers=4, dims=256),
    "base": Shape(image_size=224, patch_size=16, width=384, layers=12, text_width=384, text_layers=6, dims=384),
}
DEFAULT_SIZE = "small"
POSITIONS = 0.3
"""height of the waves that tell a patch where it is: as much as the patch's own content, at first"""
HEAD = 32
"""numbers of an attention head where a layer has fewer than 384, else 64: a tiny one would have but two such heads"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A model in fp32 on the CPU, with what reads its texts and prepares its images."""

    folder: Path
    model: Any
    tokenizer: Tokenizer
    preprocess: PreprocessSpec


def shape_of(new: NewModelSettings) -> Shape:
    """The size's shape with what is said otherwise. Raises ConfigError when patches do not fill the image."""
    said = {name: getattr(new, name) for name in Shape.__slots__}
    shape = replace(
        SHAPES[new.size or DEFAULT_SIZE], **{name: value for name, value in said.items() if value is not None}
    )
    if shape.image_size % shape.patch_size:
        raise ConfigError(
            f"--image-size is {shape.image_size} and --patch-size {shape.patch_size}, expected a multiple of it"
        )
    return shape


def write_new_model(folder: Path, new: NewModelSettings, titles: Sequence[str], *, seed: int) -> None:
    """Write a model of random weights, with a tokenizer made of the titles. Raises ConfigError and OSError."""
    from transformers import CLIPImageProcessorPil, CLIPModel

    shape = shape_of(new)
    tokenizer = train_tokenizer(titles, new.vocabulary or VOCABULARY)
    tokenizer.model_max_length = room_for(tokenizer, titles)
    with seeded(seed):
        model = CLIPModel(_config(shape, tokenizer))
    _place_patches(model.vision_model.embeddings.position_embedding.weight.data, shape)
    square = {"height": shape.image_size, "width": shape.image_size}
    fit: dict[str, Any] = {"size": {"shortest_edge": shape.image_size}, "crop_size": square}
    if new.fit == "squash":
        fit = {"size": square, "do_center_crop": False}
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil(**fit).save_pretrained(folder)


def _place_patches(positions: Tensor, shape: Shape) -> None:
    """Let each patch know its row and column from the start: fill [1 + patches, width] but for the class token's row.

    Sines and cosines of both, as of Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"; they go on
    learning. transformers' random numbers are a tenth of a patch's content: its place would have to be learned first.
    """
    import torch

    grid = torch.arange(shape.image_size // shape.patch_size).float()
    waves = 10_000 ** -(torch.arange(shape.width // 4) / (shape.width // 4))
    angles = [axis.reshape(-1, 1) * waves for axis in torch.meshgrid(grid, grid, indexing="ij")]
    positions[1:] = POSITIONS * torch.cat([turn(angle) for angle in angles for turn in (torch.sin, torch.cos)], dim=1)


def _config(shape: Shape, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids |= {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    return CLIPConfig(
        projection_dim=shape.dims,
        text_config=_side(shape.text_width, shape.text_layers, shape.dims)
        | ids
        | {"max_position_embeddings": tokenizer.model_max_length},
        vision_config=_side(shape.width, shape.layers, shape.dims)
        | {"image_size": shape.image_size, "patch_size": shape.patch_size},
    )


def _side(width: int, layers: int, dims: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // (HEAD if width < 384 or width % 64 else 2 * HEAD),
        "projection_dim": dims,
        # as good as OpenAI's quick_gelu, which takes three passes over memory where this takes one
        "hidden_act": "gelu",
    }


def open_start(folder: Path, name: str) -> Start:
    """Load a model that has both sides. Raises ModelError for one that has not, or is damaged."""
    model = load_model(folder)
    if not (has_text(model) and has_tokenizer(folder)):
        raise ModelError(
            f"model {name!r} has no text side, expected one: training compares images with titles",
            hint="take a model with image and text features and its tokenizer files; without --from one is made",
        )
    return Start(
        folder=folder,
        model=model,
        tokenizer=load_tokenizer(folder, model),
        preprocess=read_preprocess(folder, model_type=model.config.model_type),
    )

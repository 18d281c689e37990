"""Models of the usual sizes with random weights: as slow as the real ones, and their vectors mean nothing.

For measuring where weights cannot be had. Only the image side is made: nothing else runs when images are encoded.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, ModelError
from pipeline.models.weights import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The shape of a CLIP's image side."""

    image_size: int = 224
    patch_size: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    dims: int = 512


_LARGE = {"patch_size": 14, "width": 1024, "layers": 24, "heads": 16, "dims": 768}
SIZES = {
    "vit-b-32": Size(patch_size=32),
    "vit-b-16": Size(patch_size=16),
    "vit-l-14": Size(**_LARGE),
    "vit-l-14-336": Size(image_size=336, **_LARGE),
}
"""as in the config.json of openai/clip-vit-base-patch32, -base-patch16, -large-patch14 and -large-patch14-336"""


def write_untrained_model(folder: Path, size: str, *, seed: int = 0) -> Path:
    """Write a model of the size of `vit-b-32` and the like as an ordinary transformers folder; returns the folder.

    350 MB to 1.2 GB in fp32. Raises ConfigError for another name, ModelError for a folder that cannot be written.
    """
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    if size not in SIZES:
        raise ConfigError(f"there are no random weights for model {size!r}, expected {', '.join(SIZES)}")
    shape = SIZES[size]
    with seeded(seed):
        model = CLIPVisionModelWithProjection(make_config(shape)).eval()
        scale_weights(model)
    crop = {"height": shape.image_size, "width": shape.image_size}
    processor = CLIPImageProcessorPil(size={"shortest_edge": shape.image_size}, crop_size=crop)
    try:
        with quiet():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
    except OSError as error:
        raise ModelError(
            f"a model with random weights cannot be written to {str(folder)!r}: {error.strerror or error}",
            hint="it takes up to 1.2 GB; TMPDIR names another place for it",
        ) from error
    return folder


def make_config(size: Size) -> Any:
    """The transformers configuration of a `CLIPVisionModelWithProjection` of this size."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
        projection_dim=size.dims,
    )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside, and leave its generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        yield


def scale_weights(model: Any) -> None:
    """Give every matrix the gain 1 of its inputs, so that what differs at the input differs at the output.

    A freshly initialised CLIP gives nearly the same vector for every image (cosine 0.999).
    """
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or "position_embedding" in name:
            continue
        fan_in = 1 if "token_embedding" in name else math.prod(weight.shape[1:])
        # values and what follows them carry the image past the class token, which is the same for all
        gain = 2.0 if "v_proj" in name or "out_proj" in name else 1.0
        weight.normal_(std=gain / math.sqrt(fan_in))

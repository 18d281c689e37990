"""What one step of training computes: features of a batch, and their loss.

A batch larger than the device's memory is computed in chunks: forward without keeping anything but the features, and
once more chunk by chunk on the way back (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup"). The gradient is that of the whole batch, which adding up the gradients of small batches is not:
every image is told apart from every title.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ModelError
from pipeline.models.encoder import Normalizer, image_features, text_features
from pipeline.train.augment import vary
from pipeline.train.loss import HIGHEST_LOG_SCALE, info_nce, sigmoid_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipeline.records import PreprocessSpec


class Objective(nn.Module):
    """A dual encoder with its loss: what the trainer sees as the model."""

    def __init__(self, model: Any, preprocess: PreprocessSpec, *, device: str, chunk_size: int | None = None) -> None:
        """Raises ModelError for a model that has no temperature."""
        super().__init__()
        if not isinstance(getattr(model, "logit_scale", None), nn.Parameter):
            raise ModelError(
                f"a model of type {model.config.model_type!r} has no temperature (logit_scale), expected one that "
                "was made by comparing images and texts, such as CLIP or SigLIP"
            )
        self.model = model
        self._preprocess = preprocess
        self._normalizer = Normalizer(preprocess, device=device)
        self._chunk_size = chunk_size

    def forward(
        self, pixels: Tensor, titles: Tensor, draws: Tensor | None = None, **texts: Tensor
    ) -> dict[str, Tensor]:
        """The loss of uint8 `pixels` [N, H, W, 3], each with the number of its title in `texts` (int64 [N]).

        `texts` holds each title once, as the tokenizer gives it [T, tokens]; `draws` [N, DRAWS] varies the images.
        """
        parts = [pixels] if draws is None else [pixels, draws]
        images = self._in_chunks(self.encode_images, *parts)
        names = tuple(texts)
        encoded = self._in_chunks(
            lambda *part: self.encode_texts(**dict(zip(names, part, strict=True))), *texts.values()
        )
        with torch.autocast(images.device.type, enabled=False):
            return {"loss": self._compare(images.float(), encoded.float()[titles], titles)}

    def _compare(self, images: Tensor, texts: Tensor, titles: Tensor) -> Tensor:
        bias = getattr(self.model, "logit_bias", None)
        if bias is not None:
            return sigmoid_loss(images, texts, self.model.logit_scale.exp(), bias, titles)
        return info_nce(images, texts, self.model.logit_scale.exp(), titles)

    def limit_scale(self) -> None:
        """Hold the temperature at 0.01 at least, where CLIP's paper does; SigLIP's has no limit."""
        if getattr(self.model, "logit_bias", None) is None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=HIGHEST_LOG_SCALE)

    def is_finite(self) -> bool:
        """Whether all that can change is still numbers."""
        free = [weight for weight in self.parameters() if weight.requires_grad]
        return bool(torch.stack([torch.isfinite(weight).all() for weight in free]).all())

    @property
    def temperature(self) -> float:
        return float(torch.exp(-self.model.logit_scale.detach().float()).item())

    def _in_chunks(self, encode: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        size = self._chunk_size
        if size is None or len(parts[0]) <= size:
            return encode(*parts)
        chunks = ([part[first : first + size] for part in parts] for first in range(0, len(parts[0]), size))
        return torch.cat([checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks])

    def encode_images(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Unit rows [N, D] of uint8 pixels [N, H, W, 3]."""
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            if draws is None:
                images = pixels.permute(0, 3, 1, 2).float()
            else:
                images = vary(pixels, draws, self._preprocess.height, self._preprocess.width)
            images = self._normalizer.scale(images)
        return normalize(image_features(self.model, images), dim=-1)

    def encode_texts(self, **texts: Tensor) -> Tensor:
        return normalize(text_features(self.model, texts), dim=-1)

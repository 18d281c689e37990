"""What turns similarities of images and texts into probabilities: what a model learned beside its two sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LARGEST_SCALE = 100.0
"""where CLIP's training stops its scale (Radford et al. 2021, section 2.5); all of OpenAI's models ended there"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """A logit is `scale` · cosine + `bias`.

    With a bias the model learned to judge each pair on its own, by a sigmoid (SigLIP); without, it learned to choose
    among many, by a softmax (CLIP).
    """

    scale: float = LARGEST_SCALE
    bias: float | None = None


def read_scoring(model: Any) -> Scoring:
    """What a transformers model learned; CLIP's when it says nothing. Read it before the weights lose precision."""
    log_scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    scale = math.exp(log_scale.item()) if log_scale is not None else LARGEST_SCALE
    return Scoring(scale=scale, bias=None if bias is None else bias.item())

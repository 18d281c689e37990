"""How well images and titles find each other in a batch: the loss of CLIP, and that of SigLIP.

Titles that are the same are no wrong answers for each other's images. They are left out of the comparison (masked)
instead of being further right answers: with targets spread over all of them, the loss would never reach 0 and would
pull all images of one title together, though they are pictures of different things. With titles that all differ both
losses are those of transformers' own models (`return_loss=True`).

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, logsigmoid

if TYPE_CHECKING:
    from torch import Tensor

HIGHEST_LOG_SCALE = 4.6052
"""ln 100: CLIP's paper keeps logits from being scaled by more than 100, for training to be stable"""


def info_nce(images: Tensor, texts: Tensor, scale: Tensor, titles: Tensor) -> Tensor:
    """The mean cross entropy of finding each image's title and each title's image: a scalar.

    `images`, `texts` are unit rows [N, D], `scale` is 1 / temperature, `titles` int64 [N] is equal where titles are.
    """
    logits = (scale * images @ texts.T).masked_fill(_is_twin(titles), -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, titles: Tensor) -> Tensor:
    """The mean over titles of the sum over images of telling pairs from others, each by itself: a scalar."""
    logits = scale * texts @ images.T + bias
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -logsigmoid(sign * logits).masked_fill(_is_twin(titles), 0).sum(dim=1).mean()


def _is_twin(titles: Tensor) -> Tensor:
    """Whether two different places have the same title: bool [N, N]."""
    return (titles[:, None] == titles[None, :]).fill_diagonal_(fill_value=False)

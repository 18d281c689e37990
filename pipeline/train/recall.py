"""How often images and titles of products that were kept apart find each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pipeline.records import SAME_SIMILARITY
from pipeline.train.tokens import tokenize_titles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.text import Tokenizer
    from pipeline.train.objective import Objective
    from pipeline.train.pixels import Pixels
    from pipeline.train.tokens import Titles

AT: Final = (1, 5, 10)
MOST_JUDGED: Final = 2000
"""images that each evaluation looks at; more would cost small models as much as the training"""
AT_ONCE: Final = 256


def choose_judge(part: Pixels, titles: Sequence[str], tokenizer: Tokenizer, device: str, seed: int) -> Judge | None:
    """Some of the pairs that are kept apart, chosen by chance; None when the model sees fewer than two titles."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(titles))[:MOST_JUDGED])
    if len(chosen) < 2:
        return None
    known = tokenize_titles(tokenizer, [titles[place] for place in chosen])
    if len(known) < 2:
        return None
    return Judge(part.images[part.rows[chosen]], known, device)


class Judge:
    """Pairs that are kept apart, ready to be compared again and again."""

    def __init__(self, pixels: NDArray[np.uint8], titles: Titles, device: str) -> None:
        """`pixels` uint8 [N, H, W, 3] as `catvec run` would make them, `titles` of the same N pairs."""
        self._pixels = pixels
        self._titles = titles
        self._device = device

    def __len__(self) -> int:
        return len(self._pixels)

    def measure(self, objective: Objective) -> dict[str, float] | None:
        """Recall@1, 5 and 10 both ways and their means, by name: `recall@1`, `image_to_text_recall@1` …

        An image looks for its title among all different ones, a title for any image that has it, where
        `catvec evaluate` asks and finds products. Equal similarities count as wrong. None when a vector is not
        finite.
        """
        images, titles = self._encode_images(objective), self._encode_titles(objective)
        # autocast, which encoding may be under, would round similarities until most are equal
        with torch.autocast(device_type=images.device.type, enabled=False):
            similarity = images @ titles.T
            return self._count(similarity) if torch.isfinite(similarity).all() else None

    def _count(self, similarity: Tensor) -> dict[str, float]:
        """`similarity` float32 [N, titles]."""
        of_pairs = torch.from_numpy(self._titles.of_pairs).to(similarity.device)
        own = similarity[torch.arange(len(of_pairs)), of_pairs]
        is_own = torch.zeros_like(similarity, dtype=torch.bool)
        is_own[torch.arange(len(of_pairs)), of_pairs] = True
        # ranks from 1, as catvec evaluate counts them: how many others are as near as the own one
        image_ranks = 1 + ((similarity >= own[:, None] - SAME_SIMILARITY) & ~is_own).sum(dim=1)
        best = similarity.masked_fill(~is_own, -torch.inf).amax(dim=0)
        title_ranks = 1 + ((similarity >= best[None, :] - SAME_SIMILARITY) & ~is_own).sum(dim=0)
        found: dict[str, float] = {}
        for k in AT:
            by_image, by_title = (_share(ranks <= k) for ranks in (image_ranks, title_ranks))
            found |= {f"recall@{k}": (by_image + by_title) / 2}
            found |= {f"image_to_text_recall@{k}": by_image, f"text_to_image_recall@{k}": by_title}
        return found

    @torch.inference_mode()
    def _encode_images(self, objective: Objective) -> Tensor:
        batches = (self._pixels[first : first + AT_ONCE] for first in range(0, len(self._pixels), AT_ONCE))
        encoded = [objective.encode_images(torch.from_numpy(batch).to(self._device)).float() for batch in batches]
        return torch.cat(encoded)

    @torch.inference_mode()
    def _encode_titles(self, objective: Objective) -> Tensor:
        batches = (
            {name: tensor[first : first + AT_ONCE].to(self._device) for name, tensor in self._titles.tokens.items()}
            for first in range(0, len(self._titles), AT_ONCE)
        )
        return torch.cat([objective.encode_texts(**batch).float() for batch in batches])


def _share(is_so: Tensor) -> float:
    return round(is_so.double().mean().item(), 6)

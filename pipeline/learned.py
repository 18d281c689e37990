"""Which products a stored model, or a head on it, has learned from: neither is to be judged by those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.models.trained import TrainedProducts
    from pipeline.store.models import StoredModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What was learned from, as far as files say; `warnings` are what they should have said and do not."""

    trained: tuple[TrainedProducts, ...] = ()
    warnings: tuple[str, ...] = ()

    def hold(self, product_ids: Sequence[str], urls: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """Which of the products were learned from, bool [N], by themselves or by one of their images' URLs."""
        found = np.zeros(len(product_ids), dtype=bool)
        for trained in self.trained:
            found |= trained.hold_any(product_ids, urls)
        return found


def read_learned(model: StoredModel, weights: str | None = None) -> Learned:
    """What the folder of a stored model says, which is in `weights`, else where it was last.

    Models of the Hub say nothing: what they learned from was not this catalog. Raises ModelError for a damaged file.
    """
    from pipeline.models.trained import read_trained_products

    if weights is None and model.source != "folder":
        return Learned()
    folder = Path(weights or model.location)
    if not folder.is_dir():
        return Learned(
            warnings=(
                f"the folder of model {model.name} is no longer in {str(folder)!r}, so nobody knows which of these "
                "products it was trained on: the numbers may say little about products that it has not seen",
            )
        )
    trained = read_trained_products(folder)
    return Learned(trained=() if trained is None else (trained,))


def warn_of_learned(model: str, *, learned: int, products: int) -> tuple[str, ...]:
    """What must stand beside every number when a model is judged by what it was trained on."""
    if not learned:
        return ()
    return (
        f"model {model} was trained on {learned:,} of these {products:,} products: "
        "the numbers say little about products that it has not seen",
    )

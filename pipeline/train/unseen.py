"""What is kept apart, without the products that the model one begins with has learned: they are no test."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.models.trained import read_trained_products
from pipeline.train.card import LEARNED_BEFORE

if TYPE_CHECKING:
    from pipeline.train.job import Job, Part
    from pipeline.train.start import Start

LEAST_UNSEEN: Final = 20
"""products that are judged on alone; with fewer, Recall@K would change with each one of them"""


def leave_out_learned(job: Job, start: Start, judged: Part) -> Part:
    """The part without the products that `start` has learned, by their ids or by an image that they share with one.

    With a warning, and all of them, when hardly any would be left. Raises ModelError for a damaged file.
    """
    trained = read_trained_products(start.folder)
    if trained is None or not judged.pairs:
        return judged
    is_known = trained.hold_any(
        [pair.product_id for pair in judged.pairs], [(pair.image.url,) for pair in judged.pairs]
    )
    known = {judged.pairs[row].product_id for row in np.flatnonzero(is_known).tolist()}
    if not known:
        return judged
    rows = [row for row, pair in enumerate(judged.pairs) if pair.product_id not in known]
    products, left = len(judged.products), len(judged.products) - len(known)
    said = f"{job.settings.base} has learned {len(known):,} of the {products:,} products that are kept apart"
    if left < LEAST_UNSEEN:
        job.around.tell(
            f"{said}, and {left:,} others would be too few to judge on: it is judged on all, and Recall@K says "
            "little about products that it has not seen"
        )
        return replace(judged, counts={LEARNED_BEFORE: len(known)})
    job.around.tell(f"{said}: they are left out, and it is judged on the other {left:,}")
    return replace(
        judged,
        pairs=[judged.pairs[row] for row in rows],
        pixels=replace(judged.pixels, rows=judged.pixels.rows[rows]),
        counts={"products left out of those kept apart, learned from before": len(known)},
    )

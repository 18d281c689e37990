"""Some images of a catalog, chosen by chance, the same ones each time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pipeline.errors import CatalogError
from pipeline.records import ImageRef, Product

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.records import BadRow, Deletion


def sample_images(rows: Iterable[Product | BadRow | Deletion], most: int) -> list[ImageRef]:
    """Up to `most` images out of all rows, each as likely as the others. Raises CatalogError when there are none."""
    chance = random.Random(0)  # noqa: S311 - guards nothing
    kept: list[ImageRef] = []
    seen = 0
    for row in rows:
        if not isinstance(row, Product):
            continue
        for url in row.images:
            seen += 1
            image = ImageRef(image_id=seen, product_id=row.product_id, url=url)
            if len(kept) < most:
                kept.append(image)
            elif (place := chance.randrange(seen)) < most:  # Vitter's algorithm R
                kept[place] = image
    if not kept:
        raise CatalogError("the catalog names no image to measure with")
    return kept

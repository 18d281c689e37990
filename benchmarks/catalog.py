"""A CSV catalog with photos beside it, rewritten for photos behind URLs."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One row of the new catalog."""

    product_id: str
    path: Path
    url: str


def write_catalog(source: Path, target: Path, base_url: str, *, photos: int | None = None) -> list[Photo]:
    """Copy the catalog to `target` with URLs below `base_url` for the paths in its column `image`.

    `photos` rows are drawn with a seed and stay in order; None takes all of them. `base_url` serves the folder of
    `source`.
    """
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    if "image" not in columns or "product_id" not in columns:
        raise SystemExit(f"{source.name} has the columns {columns}, expected product_id and image among them")
    if photos is not None:
        if len(rows) < photos:
            raise SystemExit(f"{source.name} has {len(rows)} rows, expected at least {photos}")
        rows = [rows[number] for number in sorted(random.Random(0).sample(range(len(rows)), photos))]
    written = []
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            url = f"{base_url}/{quote(row['image'])}"
            writer.writerow(row | {"image": url})
            written.append(Photo(product_id=row["product_id"], path=source.parent / row["image"], url=url))
    return written


def describe_sizes(photos: list[Photo]) -> dict[str, object]:
    """What the photos are like, for the conditions of a result: pixels and bytes."""
    import numpy as np
    from PIL import Image

    sizes = []
    for photo in photos:
        with Image.open(photo.path) as image:
            sizes.append(image.size)
    lengths = [photo.path.stat().st_size for photo in photos]
    return {
        "photos": len(photos),
        "median_pixels": np.median(sizes, axis=0).tolist(),
        "largest_pixels": np.max(sizes, axis=0).tolist(),
        "median_kb": round(float(np.median(lengths)) / 1000, 1),
    }

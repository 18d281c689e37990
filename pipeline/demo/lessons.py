"""Draw what the demo's model learns from: many small products, titled as people word things, and some to judge on.

Combinations that are held out are never drawn here, and no product here is one of a demo catalog. Some titles
are the demo's own; the others leave words out, order them differently or begin as a sentence does, so that the model
understands "navy" and "a photo of a red dress" as well.

    python -m pipeline.demo.lessons FOLDER
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.demo.catalog import SIZES, combinations, save_picture
from pipeline.demo.drawing import draw_product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.demo.catalog import Combination

PRODUCTS: Final = 40_000
JUDGED: Final = 2_000
"""products to judge on while training, beside those to learn from"""
SHRUNK: Final = 0.4
"""times the edges of a demo picture: the model looks at 64 × 64 pixels, and small drawings take half the time"""
FIRST_SEED: Final = 1_000_000
"""a product is drawn by its seed; demo catalogs count theirs from 7"""

_COLUMNS = ("product_id", "title", "split", "kind", "colour", "pattern", "images")
_OWN_TITLES, _SENTENCES = 0.4, 0.3
_KEPT: Final = {"kind": 0.75, "colour": 0.4, "pattern": 0.5}
"""chances of the words of the other titles. Colours are learned in minutes, kinds last: few pairs of a batch differ
in the kind alone, so full titles say little about it, and titles of the kind alone much"""
_NEAR, _CUT_OUT = 0.2, 1 / 12
"""shares of nearer views, and of pictures without background, as in the demo's catalogs"""


def write_lessons(folder: Path, *, products: int = PRODUCTS, judged: int = JUDGED, seed: int = 7) -> Path:
    """Write `catalog.csv`, whose column `split` says train or validation, and `images/`; return the CSV file's path.

    The same arguments give the same bytes. Raises OSError.
    """
    rng = random.Random(f"lessons {seed}")  # noqa: S311 - a drawing, not a secret
    words = random.Random(f"titles {seed}")  # noqa: S311
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / "catalog.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for index, combination in enumerate(_choose(products + judged, rng)):
            split = "train" if index < products else "validation"
            picture = _draw(folder / "images", combination, FIRST_SEED * (1 + seed) + index, rng)
            writer.writerow(
                {
                    "product_id": f"lesson-{index + 1:05}",
                    "title": word(combination, words) if split == "train" else combination.title,
                    "split": split,
                    "kind": combination.kind,
                    "colour": combination.colour,
                    "pattern": combination.pattern,
                    "images": f"images/{picture.name}",
                }
            )
    return path


def _choose(products: int, rng: random.Random) -> Iterator[Combination]:
    """Every combination to learn from once, in any order, then again."""
    every = [combination for combination in combinations() if not combination.is_held_out]
    for index in range(products):
        if index % len(every) == 0:
            rng.shuffle(every)
        yield every[index % len(every)]


def _draw(images: Path, combination: Combination, seed: int, rng: random.Random) -> Path:
    width, height = rng.choice(SIZES)
    is_cut_out = rng.random() < _CUT_OUT
    picture = draw_product(
        combination.kind,
        combination.colour,
        combination.pattern,
        seed=seed,
        size=(round(width * SHRUNK), round(height * SHRUNK)),
        view=int(rng.random() < _NEAR),
        is_cut_out=is_cut_out,
    )
    path = images / f"{seed}.{'png' if is_cut_out else 'jpg'}"
    save_picture(picture, path)
    return path


def word(combination: Combination, rng: random.Random) -> str:
    """Title a product as people would, or as the demo does."""
    if rng.random() < _OWN_TITLES:
        return combination.title
    words = {name: getattr(combination, name) for name in _KEPT}
    kept = [words[name] for name, chance in _KEPT.items() if rng.random() < chance]
    kept = kept or [rng.choice(list(words.values()))]
    rng.shuffle(kept)
    start = rng.choice(("a", "a photo of a")) if rng.random() < _SENTENCES else ""
    return " ".join([start, *kept]).strip()


if __name__ == "__main__":
    write_lessons(Path(sys.argv[1]))

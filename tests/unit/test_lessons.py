"""The catalog that the demo's model learns from."""

from __future__ import annotations

import csv
import random
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.demo.catalog import combinations
from pipeline.demo.lessons import JUDGED, PRODUCTS, word, write_lessons

if TYPE_CHECKING:
    from pathlib import Path


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_held_out_combinations_are_never_drawn(tmp_path: Path) -> None:
    rows = _read(write_lessons(tmp_path, products=120, judged=30))
    learned = {one.title for one in combinations() if not one.is_held_out}
    assert [row["split"] for row in rows] == ["train"] * 120 + ["validation"] * 30
    assert {f"{row['colour']} {row['pattern']} {row['kind']}" for row in rows} <= learned
    assert all(row["title"] in learned for row in rows if row["split"] == "validation")
    for row in rows:
        with Image.open(tmp_path / row["images"]) as picture:
            assert 90 <= min(picture.size) <= max(picture.size) <= 128


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    first, again = (write_lessons(tmp_path / name, products=12, judged=4) for name in ("first", "again"))
    other = write_lessons(tmp_path / "other", products=12, judged=4, seed=8)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    for row in _read(first):
        assert (first.parent / row["images"]).read_bytes() == (again.parent / row["images"]).read_bytes()


def test_no_two_seeds_draw_the_same_product(tmp_path: Path) -> None:
    """A product is drawn by the seed that its file is named after: two catalogs of full size share none."""
    catalogs = [write_lessons(tmp_path / str(seed), products=1, judged=1, seed=seed) for seed in (6, 7, 8)]
    first = [min(int(path.stem) for path in (catalog.parent / "images").iterdir()) for catalog in catalogs]
    drawn = [set(range(start, start + PRODUCTS + JUDGED)) for start in first]
    assert sum(map(len, drawn)) == len(set().union(*drawn))
    assert min(first) > PRODUCTS + JUDGED  # demo catalogs count theirs from 7
    pictures = [path.read_bytes() for catalog in catalogs for path in (catalog.parent / "images").iterdir()]
    assert len(set(pictures)) == 6


def test_titles_leave_words_out_and_change_their_order() -> None:
    [one] = [one for one in combinations() if one.title == "navy striped t-shirt"]
    rng = random.Random(1)
    found = {word(one, rng) for _ in range(300)}
    assert {"navy striped t-shirt", "t-shirt striped", "navy", "a photo of a t-shirt navy"} <= found
    assert all(set(title.split()) <= {"a", "photo", "of", "navy", "striped", "t-shirt"} for title in found)
    assert all({"navy", "striped", "t-shirt"} & set(title.split()) for title in found)

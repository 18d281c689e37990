"""The demo's own model: it was trained on drawings, and understands kinds, colours and patterns in words."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.demo_model import encode_products, measure
from pipeline.demo import MODEL
from pipeline.demo.catalog import combinations, write_demo_catalog
from pipeline.models.encoder import load_encoder
from pipeline.models.trained import read_trained_products
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(ModelSettings(model=str(MODEL), device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def products(
    tmp_path_factory: pytest.TempPathFactory, encoder: Encoder
) -> tuple[list[dict[str, str]], NDArray[np.float32], NDArray[np.int64]]:
    """400 products of a demo catalog, a quarter of all combinations: rows, vectors of all images, their owners."""
    catalog = write_demo_catalog(tmp_path_factory.mktemp("demo"), products=400)
    with catalog.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["product_id"].startswith("demo-")]
    return rows, *encode_products(encoder, catalog.parent, rows)


def test_it_is_small_and_reads_text(encoder: Encoder) -> None:
    assert encoder.spec.has_text
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000


def test_words_find_the_products_that_they_name(
    encoder: Encoder, products: tuple[list[dict[str, str]], NDArray[np.float32], NDArray[np.int64]]
) -> None:
    """benchmarks/results/demo_model.json has the numbers over 3,168 products; with fewer, chance moves them more."""
    rows, vectors, owners = products
    there = {row["title"] for row in rows}
    found = measure(encoder, rows, vectors, owners, [one for one in combinations() if one.title in there])

    recall = found["text_to_image"]["{colour} {pattern} {kind}"]
    assert recall["seen_combinations"]["recall@1"]["share"] >= 0.97
    assert recall["seen_combinations"]["recall@5"]["share"] >= 0.99
    assert recall["held_out_combinations"]["recall@1"]["share"] >= 0.95
    assert found["zero_shot"]["kind"]["share"] >= 0.98
    assert found["zero_shot"]["colour"]["share"] >= 0.98
    assert found["zero_shot"]["pattern"]["share"] >= 0.96


def test_the_order_of_words_matters_little(encoder: Encoder) -> None:
    texts = encoder.encode_texts(
        ["navy striped t-shirt", "t-shirt navy striped", "a photo of a navy striped t-shirt"]
    )
    others = encoder.encode_texts(["red striped t-shirt", "navy dotted t-shirt", "navy striped mug"])
    assert (texts @ texts.T).min() > (texts @ others.T).max()


def test_neighbours_share_two_of_three(
    products: tuple[list[dict[str, str]], NDArray[np.float32], NDArray[np.int64]],
) -> None:
    """Kind, colour and pattern, of the 3 nearest images of other products; by chance 3 % share two of them."""
    rows, vectors, owners = products
    similarity = vectors @ vectors.T
    similarity[owners[:, None] == owners[None, :]] = -2
    nearest = owners[np.argsort(-similarity, axis=1)[:, :3]]
    shared = np.zeros(nearest.shape, dtype=int)
    for name in ("kind", "colour", "pattern"):
        words = np.array([row[name] for row in rows])
        shared += words[nearest] == words[owners][:, None]
    assert (shared >= 2).mean() >= 0.7


def test_half_precision_gives_the_same_vectors(
    products: tuple[list[dict[str, str]], NDArray[np.float32], NDArray[np.int64]], tmp_path: Path
) -> None:
    rows = products[0][:32]
    catalog = write_demo_catalog(tmp_path, products=32)
    full, half = (
        encode_products(
            load_encoder(ModelSettings(model=str(MODEL), device="cpu", precision=precision)), catalog.parent, rows
        )[0]
        for precision in ("fp32", "bf16")
    )
    assert (full * half).sum(axis=1).min() >= 0.999


def test_it_learned_from_no_product_of_a_demo_catalog() -> None:
    learned = read_trained_products(MODEL)
    assert learned is not None
    assert len(learned.digests) > 10_000
    assert not learned.hold([f"demo-{number:04}" for number in range(1, 400)]).any()

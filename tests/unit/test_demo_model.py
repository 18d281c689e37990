"""The untrained stand-in model: an ordinary folder whose vectors put drawings of one colour together."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.demo.catalog import write_demo_catalog
from pipeline.errors import ModelError
from pipeline.images.decode import decode_pixels
from pipeline.models.demo import DEMO_DIMS, write_demo_model
from pipeline.models.encoder import load_encoder
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_model(tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(ModelSettings(model=str(folder), device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def pixels(
    tmp_path_factory: pytest.TempPathFactory, encoder: Encoder
) -> tuple[list[dict[str, str]], NDArray[np.uint8]]:
    """The first image of 200 demo products as the pipeline decodes them, with their catalog rows."""
    catalog = write_demo_catalog(tmp_path_factory.mktemp("demo"), products=200)
    with catalog.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["product_id"].startswith("demo-")]
    images = [(catalog.parent / row["images"].split("|")[0]).read_bytes() for row in rows]
    decoded = [decode_pixels(image, encoder.spec.preprocess, DecodeSettings()) for image in images]
    return rows, np.stack(decoded)


def test_it_is_a_small_image_model_without_text(folder: Path, encoder: Encoder) -> None:
    assert (encoder.spec.dims, encoder.spec.has_text) == (DEMO_DIMS, False)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    assert (write_demo_model(tmp_path / "again") / "model.safetensors").read_bytes() == weights
    assert (write_demo_model(tmp_path / "other", seed=8) / "model.safetensors").read_bytes() != weights


def test_neighbours_share_the_colour_or_the_kind(
    encoder: Encoder, pixels: tuple[list[dict[str, str]], NDArray[np.uint8]]
) -> None:
    """Of the 5 nearest by exact cosine; by chance 8 % share the colour."""
    rows, images = pixels
    vectors = encoder.encode_images(images)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    nearest = np.argsort(-similarity, axis=1)[:, :5]
    colours, kinds = (np.array([row[word] for row in rows]) for word in ("colour", "kind"))
    shares_colour = colours[nearest] == colours[:, None]
    shares_kind = kinds[nearest] == kinds[:, None]
    assert shares_colour.mean() >= 0.75
    assert (shares_colour | shares_kind).mean() >= 0.8


def test_vectors_are_spread_out(encoder: Encoder, pixels: tuple[list[dict[str, str]], NDArray[np.uint8]]) -> None:
    """A ViT with random weights gives every picture nearly one vector: a mean similarity above 0.99."""
    vectors = encoder.encode_images(pixels[1])
    similarity = vectors @ vectors.T
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert similarity.mean() < 0.5
    assert similarity.min() < -0.3


def test_half_precision_gives_the_same_vectors(
    folder: Path, encoder: Encoder, pixels: tuple[list[dict[str, str]], NDArray[np.uint8]]
) -> None:
    half = load_encoder(ModelSettings(model=str(folder), device="cpu", precision="bf16"))
    cosines = (encoder.encode_images(pixels[1]) * half.encode_images(pixels[1])).sum(axis=1)
    assert cosines.min() >= 0.999


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"the demo model cannot be written to '.*file'") as caught:
        write_demo_model(tmp_path / "file")
    assert caught.value.hint == "choose another folder"

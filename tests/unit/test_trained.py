"""What a model's folder says of the products that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.evaluate.gallery import Gallery, find_learned
from pipeline.models.trained import FILE_NAME, read_trained_products, write_trained_products

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_knows_the_products_it_was_trained_on(tmp_path: Path) -> None:
    write_trained_products(tmp_path, ["shoe-1", "Hemd ß", "shoe-1"])
    trained = read_trained_products(tmp_path)
    assert trained is not None
    assert trained.hold(["shoe-1", "shoe-2", "Hemd ß"]).tolist() == [True, False, True]
    assert trained.hold([]).tolist() == []
    assert len(trained.digests) == 2


def test_a_folder_knows_the_urls_of_the_images_it_was_trained_on(tmp_path: Path) -> None:
    write_trained_products(tmp_path, ["S"], ["https://shop/1.jpg", "2.jpg"])
    trained = read_trained_products(tmp_path)
    assert trained is not None
    # a path means something else in another folder, and an id is no URL
    assert trained.hold_images(["https://shop/1.jpg", "https://shop/2.jpg", "2.jpg", "S"]).tolist() == [
        *(True, False, False, False)
    ]
    assert trained.hold(["S", "https://shop/1.jpg"]).tolist() == [True, False]


def test_a_product_is_no_test_when_one_of_its_images_was_learned_from(tmp_path: Path) -> None:
    write_trained_products(tmp_path, ["S", "M"], ["https://shop/1.jpg"])
    trained = read_trained_products(tmp_path)
    assert trained is not None
    gallery = Gallery(
        product_ids=["L", "M", "XL"],
        titles=["a dress"] * 3,
        values=[None] * 3,
        urls=["https://shop/2.jpg", "https://shop/1.jpg", "3.jpg", "https://shop/4.jpg", "5.jpg"],
        vectors=np.zeros((5, 2), dtype=np.float32),
        starts=np.array([0, 2, 3]),
    )
    assert find_learned(gallery, trained).tolist() == [True, True, False]


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert read_trained_products(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no array", np.arange(3, dtype="f4").tobytes()])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ModelError, match="cannot read") as error:
        read_trained_products(tmp_path)
    assert error.value.hint == "take the model's folder anew"


def test_an_array_of_another_kind_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / FILE_NAME, np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ModelError, match="holds float32 of 2 dimensions, expected uint64 of 1"):
        read_trained_products(tmp_path)

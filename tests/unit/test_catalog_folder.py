"""A folder of images as catalog."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from pipeline.catalog import read_catalog
from pipeline.errors import CatalogError, ConfigError
from pipeline.records import BadRow, Product
from pipeline.settings import CatalogSettings

if TYPE_CHECKING:
    from pathlib import Path


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")


def test_each_image_is_a_product_in_the_order_of_its_path(tmp_path: Path) -> None:
    fill(tmp_path, "shirts/navy_striped_t-shirt.jpg", "mugs/red-mug.PNG", "logo.webp", "mugs/a;b|c.avif", "notes.txt")
    fill(tmp_path, ".hidden.jpg", ".git/a.jpg", "catalog.csv")
    products = [
        Product(row=row, product_id=path, images=(path,), title=title, category=category)
        for row, (path, title, category) in enumerate(
            [
                ("logo.webp", "logo", None),
                ("mugs/a;b|c.avif", "a;b|c", "mugs"),
                ("mugs/red-mug.PNG", "red mug", "mugs"),
                ("shirts/navy_striped_t-shirt.jpg", "navy striped t-shirt", "shirts"),
            ],
            start=1,
        )
    ]
    assert list(read_catalog(CatalogSettings(uri=str(tmp_path)))) == products
    assert list(read_catalog(CatalogSettings(uri=f"{tmp_path}/", format="folder"))) == products


def test_paths_start_at_a_root_above_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, "shop/mugs/a.jpg")
    settings = CatalogSettings(uri=str(tmp_path / "shop"), image_root=tmp_path)
    (product,) = read_catalog(settings)
    assert isinstance(product, Product)
    assert (product.product_id, product.images) == ("mugs/a.jpg", ("shop/mugs/a.jpg",))
    with pytest.raises(ConfigError, match="does not contain the catalog"):
        read_catalog(CatalogSettings(uri=str(tmp_path), image_root=tmp_path / "shop"))


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    assert [record.product_id for record in read_catalog(CatalogSettings(uri=str(tmp_path)))] == ["a/x.jpg"]


@pytest.mark.skipif(sys.platform == "darwin", reason="file names on macOS are always UTF-8")
def test_a_file_name_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / os.fsdecode(b"gr\xf6n.jpg")).write_bytes(b"an image")
    _, bad = read_catalog(CatalogSettings(uri=str(tmp_path)))
    assert bad == BadRow(row=2, code="bad_text", detail="the file's name is not UTF-8", url="gr\ufffdn.jpg")


def test_a_folder_without_images_names_the_catalog_in_it(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        read_catalog(CatalogSettings(uri=str(tmp_path)))
    assert caught.value.message == f"{str(tmp_path)!r} holds no products"
    fill(tmp_path, "products.csv")
    with pytest.raises(CatalogError) as caught:
        read_catalog(CatalogSettings(uri=str(tmp_path)))
    assert caught.value.hint == f"did you mean {str(tmp_path / 'products.csv')!r}?"

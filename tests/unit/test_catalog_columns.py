"""Which column is what."""

from __future__ import annotations

import pytest

from pipeline.catalog.columns import find_columns, usual_image_columns
from pipeline.errors import ConfigError
from pipeline.settings import CatalogSettings


def roles(*names: str, **settings: object) -> tuple[object, ...]:
    found = find_columns(names, CatalogSettings(uri="-", **settings))  # type: ignore[arg-type]
    images = found.layout_of(names).images
    return found.id, found.title, found.category, found.brand, found.price, images


def test_usual_names_are_found_whatever_their_spelling() -> None:
    expected = ("Product ID", "Product-Name", "productType", "VENDOR", "Price", ("Image_URL",))
    assert roles("Price", "VENDOR", "productType", "Product-Name", "Image_URL", "Product ID") == expected


def test_exports_of_well_known_shops_are_understood() -> None:
    shopify = ("Handle", "Title", "Body (HTML)", "Vendor", "Type", "Variant Price", "Image Src", "Image Position")
    assert roles(*shopify) == ("Handle", "Title", "Type", "Vendor", "Variant Price", ("Image Src",))
    woocommerce = ("ID", "Type", "SKU", "Name", "Regular price", "Categories", "Images")
    assert roles(*woocommerce) == ("ID", "Name", "Categories", None, "Regular price", ("Images",))
    google = ("g:id", "g:title", "g:image_link", "g:additional_image_link", "g:google_product_category", "g:brand")
    expected = ("g:id", "g:title", "g:google_product_category", "g:brand", None)
    assert roles(*google) == (*expected, ("g:image_link", "g:additional_image_link"))


def test_image_columns_come_main_first_then_by_number_then_additional() -> None:
    names = ("additional_image_link", "image_10", "image2", "Image 1 URL", "image_url_3", "image", "photo_alt")
    expected = ("image", "Image 1 URL", "image2", "image_url_3", "image_10", "additional_image_link")
    assert usual_image_columns(names) == expected


def test_settings_come_before_usual_names() -> None:
    expected = ("ean", "title", None, None, None, ("back", "front"))
    assert roles(
        "id", "ean", "title", "Front", "back", "image", id_column="ean", image_columns=("back", "Front")
    ) == (
        *expected[:-1],
        ("back", "Front"),
    )


def test_an_unknown_column_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        roles("id", "picture_front", "title", image_columns=("pictur_front",))
    assert caught.value.message == (
        "--image-column names 'pictur_front', which the catalog does not have; it has 'id', 'picture_front', 'title'"
    )
    assert caught.value.hint == "did you mean 'picture_front'?"


@pytest.mark.parametrize(
    ("names", "role"), [(("name", "image"), "id"), (("id", "name", "front"), "image"), (("a",) * 60, "id")]
)
def test_a_missing_role_says_which_option_to_use(names: tuple[str, ...], role: str) -> None:
    with pytest.raises(ConfigError) as caught:
        roles(*names)
    assert caught.value.message.startswith(f"none of the catalog's columns is known to hold the {role}; it has '")
    assert caught.value.hint == f"name it with --{role}-column"
    assert len(caught.value.message) < 400

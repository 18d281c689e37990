"""The catalog into the tables."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import CatalogError
from pipeline.records import BadRow
from tests.fixtures.store import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import Product
    from tests.fixtures.store import Shop

IMAGES = "SELECT product_id, url, position, active FROM catvec_store.images ORDER BY product_id, position, url"


def test_products_and_images_are_stored_as_the_catalog_states_them(shop: Shop) -> None:
    shop.sync(
        product("A", "a1.jpg", "a2.jpg", title="Täglich", category="dress", price=Decimal("9.90"), attrs={"x": [1]}),
        product("B", row=2),
    )

    assert shop.all("SELECT product_id, title, category, brand, price, attrs, active FROM catvec.products") == [
        ("A", "Täglich", "dress", None, Decimal("9.90"), {"x": [1]}, True),
        ("B", None, None, None, None, {}, True),
    ]
    assert shop.all(IMAGES) == [("A", "a1.jpg", 0, True), ("A", "a2.jpg", 1, True)]


def test_the_same_catalog_again_writes_no_row(shop: Shop) -> None:
    rows = [product(str(number), f"{number}.jpg", row=number, attrs={"n": number}) for number in range(1, 50)]
    shop.sync(*rows)
    before = shop.all("SELECT xmin::text, ctid::text FROM catvec_store.products ORDER BY product_id")
    images = shop.all("SELECT xmin::text, ctid::text FROM catvec_store.images ORDER BY image_id")

    synced = shop.sync(*rows)

    assert synced.removed == 0
    assert shop.all("SELECT xmin::text, ctid::text FROM catvec_store.products ORDER BY product_id") == before
    assert shop.all("SELECT xmin::text, ctid::text FROM catvec_store.images ORDER BY image_id") == images


def test_a_changed_title_changes_the_product_and_no_image(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg", title="old"))
    image = shop.all("SELECT xmin::text FROM catvec_store.images")

    shop.sync(product("A", "a.jpg", title="new"))

    assert shop.one("SELECT title FROM catvec.products") == "new"
    assert shop.all("SELECT xmin::text FROM catvec_store.images") == image


def test_an_image_that_left_its_product_is_inactive_and_comes_back(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg", "2.jpg"))

    assert shop.sync(product("A", "2.jpg")).removed == 1
    assert shop.all(IMAGES) == [("A", "1.jpg", 0, False), ("A", "2.jpg", 0, True)]

    shop.sync(product("A", "2.jpg", "1.jpg"))
    assert shop.all(IMAGES) == [("A", "2.jpg", 0, True), ("A", "1.jpg", 1, True)]


def test_rows_of_one_id_that_agree_add_their_images(shop: Shop) -> None:
    """A shop's export has one row for each picture, and only the first says the title."""
    synced = shop.sync(
        product("A", "1.jpg", row=1, title="dress"),
        product("A", "2.jpg", row=2),
        product("A", "1.jpg", "3.jpg", row=3, title="dress"),
    )

    assert synced.bad_rows == {}
    assert [row[1] for row in shop.all(IMAGES)] == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_row_without_image_is_no_failure_when_another_row_has_one(shop: Shop) -> None:
    def no_image(row: int, product_id: str) -> BadRow:
        return BadRow(row=row, code="no_image", detail="no image", product_id=product_id)

    synced = shop.sync(
        product("A", "1.jpg", row=1), product("A", row=2), no_image(2, "A"), product("B", row=3), no_image(3, "B")
    )

    assert synced.bad_rows == {"no_image": 1}
    assert shop.all("SELECT product_id FROM catvec.failures") == [("B",)]


def test_a_row_that_contradicts_an_earlier_one_of_its_id_is_a_failure(shop: Shop) -> None:
    synced = shop.sync(
        product("A", "1.jpg", row=1, title="dress"),
        product("A", "2.jpg", row=2, title="shoe"),
        product("a", "3.jpg", row=3, title="another case is another id"),
    )

    assert synced.bad_rows == {"duplicate_id": 1}
    assert shop.all("SELECT product_id, code, detail FROM catvec.failures") == [
        ("A", "duplicate_id", "product A stands in row 1 already, with other values")
    ]
    assert [row[:2] for row in shop.all(IMAGES)] == [("A", "1.jpg"), ("a", "3.jpg")]


def test_bad_rows_are_replaced_by_those_of_the_next_reading(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg"), BadRow(row=2, code="missing_id", detail="row 2 has no id"))
    assert shop.all("SELECT url, stage, code, detail FROM catvec.failures") == [
        ("row 2", "catalog", "missing_id", "row 2 has no id")
    ]

    shop.sync(product("A", "a.jpg"))

    assert shop.all("SELECT * FROM catvec.failures") == []


def test_a_product_whose_row_is_bad_today_stays_as_it_was(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg"), product("B", "b.jpg", row=2))

    synced = shop.sync(product("A", "a.jpg"), BadRow(row=2, code="ragged_row", detail="5 cells", product_id="B"))

    assert synced.removed == 0
    assert shop.all(IMAGES) == [("A", "a.jpg", 0, True), ("B", "b.jpg", 0, True)]


def test_a_few_missing_products_are_removed(shop: Shop) -> None:
    shop.sync(*(product(f"{number:02}", f"{number}.jpg", row=number) for number in range(20)))

    synced = shop.sync(*(product(f"{number:02}", f"{number}.jpg", row=number) for number in range(18)))

    assert synced.removed == 2
    assert shop.all("SELECT product_id FROM catvec.products WHERE NOT active ORDER BY 1") == [("18",), ("19",)]


def test_a_cut_catalog_removes_nothing(shop: Shop) -> None:
    shop.sync(*(product(f"{number:02}", f"{number}.jpg", row=number) for number in range(20)))

    with pytest.raises(CatalogError) as caught:
        shop.sync(*(product(f"{number:02}", f"{number}.jpg", title="new", row=number) for number in range(17)))

    assert caught.value.message == (
        "3 of the 20 products stored from catalog 'default' are missing in this one, "
        "more than --max-remove-rate 0.1 allows; nothing was changed"
    )
    assert "--max-remove-rate" in str(caught.value.hint)
    assert shop.one("SELECT count(*) FROM catvec.products WHERE active AND title IS NULL") == 20


def test_another_catalog_name_leaves_the_first_catalog_alone(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg"))

    synced = shop.sync(product("B", "b.jpg"), catalog="outlet")

    assert synced.removed == 0
    assert shop.one("SELECT count(*) FROM catvec.products WHERE active") == 2


def test_two_catalogs_do_not_take_products_from_each_other(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg", title="first"))

    synced = shop.sync(product("A", "x.jpg", title="second"), product("B", "b.jpg", row=2), catalog="outlet")

    assert (synced.removed, synced.bad_rows) == (0, {"other_catalog": 1})
    assert shop.all("SELECT product_id, title FROM catvec.products ORDER BY 1") == [("A", "first"), ("B", None)]
    assert shop.all("SELECT product_id, code, detail FROM catvec.failures") == [
        (
            "A",
            "other_catalog",
            "product A belongs to catalog 'default': name that with --catalog-name, or give it another id",
        )
    ]

    shop.sync(product("C", "c.jpg"), max_remove_rate=1)  # the first catalog lets go of A
    assert shop.sync(product("A", "x.jpg"), product("B", "b.jpg", row=2), catalog="outlet").bad_rows == {}
    assert [row[:2] for row in shop.all(IMAGES) if row[3]] == [("A", "x.jpg"), ("B", "b.jpg"), ("C", "c.jpg")]


def test_a_catalog_that_breaks_off_changes_nothing(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg", title="old"))

    def rows() -> Iterator[Product | BadRow]:
        yield product("A", "a.jpg", title="new")
        raise CatalogError("cut off after row 1")

    with pytest.raises(CatalogError, match="cut off"):
        shop.sync_stream(rows())

    assert shop.one("SELECT title FROM catvec.products") == "old"


def test_a_data_uri_longer_than_an_index_entry_is_stored_and_found_again(shop: Shop) -> None:
    uri = "data:image/png;base64," + "QUJD" * 5000
    shop.sync(product("A", uri))
    shop.sync(product("A", uri))

    assert shop.all(IMAGES) == [("A", uri, 0, True)]


def test_hostile_text_stays_text(shop: Shop) -> None:
    text = '\'; DROP TABLE catvec_store.products; -- \\N \t \n {"a"} %s'
    shop.sync(product(text, "a b'c.jpg", title=text, attrs={text: text}))

    assert shop.all("SELECT product_id, title, attrs FROM catvec.products") == [(text, text, {text: text})]

"""What catvec evaluate reads of a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.store.evaluation import count_shown, list_attributes, read_shown
from tests.fixtures.store import product, unit

if TYPE_CHECKING:
    from pipeline.store.models import StoredModel
    from tests.fixtures.store import Shop


@pytest.fixture
def stocked(shop: Shop) -> tuple[Shop, StoredModel]:
    """Products a (2 images), B and 100% (1 each), and one that left the catalog."""
    rows = (
        product("b", "b.jpg", row=2, title="blue", category="x", attrs={"colour": "blue", "sizes": ["S", "M"]}),
        product("a", "a0.jpg", "a1.jpg", title="red", category="x", attrs={"colour": "red", "50% off": "yes"}),
        product("B", "B.jpg", row=3, title="%s", category="50%", attrs={"colour": "100%"}),
    )
    model = shop.register()
    shop.sync(*rows, product("gone", "gone.jpg", row=4))
    shop.embed(model, [unit(1, 0, 0, place) for place in range(5)])
    shop.activate(model)
    shop.sync(*rows, max_remove_rate=1)
    return shop, model


def read(shop: Shop, model: StoredModel, attribute: str | None = None, **conditions: Any) -> list[tuple[Any, ...]]:
    with shop.session.connection().transaction():
        shown = list(read_shown(shop.session.connection(), model, conditions=conditions, attribute=attribute))
    assert len(shown) == count_shown(shop.session.connection(), model, conditions)
    return [(image.product_id, image.title, image.value, image.url) for image in shown]


def test_images_come_product_by_product(stocked: tuple[Shop, StoredModel]) -> None:
    assert read(*stocked, "colour") == [
        ("B", "%s", "100%", "B.jpg"),
        ("a", "red", "red", "a0.jpg"),
        ("a", "red", "red", "a1.jpg"),
        ("b", "blue", "blue", "b.jpg"),
    ]


def test_vectors_are_those_that_apps_find(stocked: tuple[Shop, StoredModel]) -> None:
    shop, model = stocked
    with shop.session.connection().transaction():
        shown = list(read_shown(shop.session.connection(), model, conditions={}, attribute=None))

    stored = {
        url: vector.to_numpy() for url, vector in shop.all("SELECT url, embedding FROM catvec.image_embeddings")
    }
    assert {image.url: image.vector.tolist() for image in shown} == {
        url: stored[url].tolist() for url in ("B.jpg", "a0.jpg", "a1.jpg", "b.jpg")
    }
    assert {image.vector.dtype for image in shown} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("title", ["%s", "red", "red", "blue"]),
        ("category", ["50%", "x", "x", "x"]),
        ("50% off", [None, "yes", "yes", None]),
        ("sizes", [None, None, None, '["S", "M"]']),
        ("nothing'", [None] * 4),
        (None, [None] * 4),
    ],
)
def test_columns_and_attributes_are_read_alike(
    stocked: tuple[Shop, StoredModel], attribute: str | None, values: list[str | None]
) -> None:
    assert [value for _, _, value, _ in read(*stocked, attribute)] == values


def test_conditions_are_those_of_searches(stocked: tuple[Shop, StoredModel]) -> None:
    assert [row[0] for row in read(*stocked, category="x", colour=["red", "blue"])] == ["a", "a", "b"]
    assert [row[0] for row in read(*stocked, category="50%", colour="100%")] == ["B"]


def test_conditions_that_are_none_are_refused(stocked: tuple[Shop, StoredModel]) -> None:
    with pytest.raises(ConfigError, match='filter key "price" is 5, expected'):
        read(*stocked, price=5)


def test_attributes_are_listed(stocked: tuple[Shop, StoredModel]) -> None:
    shop, _ = stocked

    assert list_attributes(shop.session.connection()) == ["title", "category", "brand", "50% off", "colour", "sizes"]

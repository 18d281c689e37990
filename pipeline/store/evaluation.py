"""What `catvec evaluate` judges: the vectors that apps find under a model, with their product's title and attributes.

Read from the public views, so that a role that may only read can judge a model, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql
from psycopg.types.json import Jsonb

from pipeline.store.bundle import stream
from pipeline.store.search import refusals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

COLUMNS = ("title", "category", "brand")
"""columns of a product that are asked for like its attributes"""

# "C" is the order in which Python compares, and the same everywhere
READ_SHOWN = """
SELECT v.product_id, p.title, {value}, v.url, v.embedding
  FROM catvec.{view} v
  JOIN catvec.products p ON p.product_id = v.product_id
 WHERE p.active {condition}
 ORDER BY v.product_id COLLATE "C", v.position, v.image_id
"""

COUNT_SHOWN = """
SELECT count(*)
  FROM catvec.{view} v
  JOIN catvec.products p ON p.product_id = v.product_id
 WHERE p.active {condition}
"""

LIST_ATTRIBUTES = """
SELECT DISTINCT jsonb_object_keys(p.attrs)
  FROM catvec.products p
 WHERE p.active
 ORDER BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShownImage:
    """An image that apps find, its product's title and the value of one attribute as text, and its vector float16."""

    product_id: str
    title: str | None
    value: str | None
    url: str
    vector: NDArray[np.float16]


def count_shown(connection: Connection, model: StoredModel, conditions: Mapping[str, Any]) -> int:
    """The images that `read_shown` gives. Raises ConfigError for conditions that are none."""
    [(images,)] = connection.execute(_compose(connection, COUNT_SHOWN, model, conditions, None), ()).fetchall()
    return int(images)


def read_shown(
    connection: Connection, model: StoredModel, *, conditions: Mapping[str, Any], attribute: str | None
) -> Iterator[ShownImage]:
    """The images of active products that pass the conditions, those of one product beside each other, in their order.

    `attribute` is title, category, brand, or a key of the products' attributes. In a transaction of the caller's.
    Raises ConfigError for conditions that are none.
    """
    query = _compose(connection, READ_SHOWN, model, conditions, attribute)
    for product_id, title, value, url, vector in stream(connection, query, ()):
        yield ShownImage(product_id=product_id, title=title, value=value, url=url, vector=vector.to_numpy())


def list_attributes(connection: Connection) -> list[str]:
    """What `read_shown` can be asked for."""
    return [*COLUMNS, *(key for (key,) in connection.execute(LIST_ATTRIBUTES).fetchall())]


def _compose(
    connection: Connection,
    template: LiteralString,
    model: StoredModel,
    conditions: Mapping[str, Any],
    value: str | None,
) -> sql.Composed:
    with refusals():
        [(condition,)] = connection.execute(
            "SELECT catvec.filter_condition(%s, %s)", (Jsonb(conditions), model.name)
        ).fetchall()
    return sql.SQL(template).format(
        view=sql.Identifier(model.view),
        value=_value(value),
        # SQL of our own function, which has quoted what the user gave
        condition=sql.SQL(_unmarked(condition)),
    )


def _value(attribute: str | None) -> sql.Composable:
    if attribute is None:
        return sql.SQL("NULL::text")
    if attribute in COLUMNS:
        return sql.Identifier("p", attribute)
    return sql.SQL("p.attrs ->> {}").format(sql.Literal(_unmarked(attribute)))


def _unmarked(text: str) -> str:
    """Text of a statement with parameters, where psycopg reads a single per cent sign as the mark of one."""
    return text.replace("%", "%%")

"""Asking for neighbours through the public functions, the same ones that other apps call."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from pgvector import HalfVector
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pipeline.errors import ConfigError, StoreError
from pipeline.records import Hit
from pipeline.store.connect import translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.store.connect import Connection

MOST = 1_000
"""products that a search gives at most"""

COLUMNS = "product_id, title, category, brand, price, url AS image, similarity"
SEARCH = f"SELECT {COLUMNS} FROM catvec.search_by_vector(%(query)s, %(k)s, %(filter)s, %(model)s)"
COMBINED = f"""
SELECT {COLUMNS}
  FROM catvec.search_by_vector(
         catvec.combine_vectors(
           %(vectors)s || ARRAY(SELECT catvec.product_vector(p.product_id, %(model)s)
                                  FROM unnest(%(products)s::text[]) WITH ORDINALITY AS p (product_id, place)
                                 ORDER BY p.place),
           %(weights)s),
         %(k)s, %(filter)s, %(model)s)
 WHERE product_id <> ALL (%(products)s)
"""
FIND_BARE = """
SELECT p.product_id
  FROM unnest(%s::text[]) AS p (product_id)
 WHERE catvec.product_vector(p.product_id, %s) IS NULL
 LIMIT 1
"""
SIMILAR = f"SELECT {COLUMNS} FROM catvec.similar_products(%(query)s, %(k)s, %(filter)s, %(model)s)"


def search_by_vector(
    connection: Connection, vector: NDArray[np.float32], *, k: int, conditions: Mapping[str, Any], model: str | None
) -> list[Hit]:
    """The products nearest to a vector [D] of the model; docs/sql.md says what conditions can ask.

    Raises ConfigError or StoreError.
    """
    return _hits(
        connection, SEARCH, {"query": HalfVector(vector), "k": k, "filter": Jsonb(conditions), "model": model}
    )


def search_combined(
    connection: Connection,
    vectors: NDArray[np.float32],
    products: Sequence[str],
    weights: Sequence[float],
    *,
    k: int,
    conditions: Mapping[str, Any],
    model: str,
) -> list[Hit]:
    """The products nearest to the weighted sum of the vectors [N, D] and those of the products, themselves left out.

    There is a weight for each vector, and then for each product. Raises ConfigError or StoreError.
    """
    parameters = {
        "vectors": [HalfVector(vector) for vector in vectors],
        "products": list(products),
        "weights": list(weights),
        # those asked for are found first and then left out
        "k": min(MOST, k + len(products)),
        "filter": Jsonb(conditions),
        "model": model,
    }
    try:
        return _hits(connection, COMBINED, parameters)[:k]
    except StoreError as error:
        if isinstance(error.__cause__, psycopg.errors.NullValueNotAllowed):
            _refuse_bare(connection, products, model)
        raise


def _refuse_bare(connection: Connection, products: Sequence[str], model: str) -> None:
    """Raise the ConfigError of the first of these products that has no vector, if any."""
    row = connection.execute(FIND_BARE, (list(products), model)).fetchone()
    if row is not None:
        raise ConfigError(
            f"product {row[0]!r} has no vector under model {model!r}, so nothing can be like it",
            hint="leave it out; catvec failures says which pictures could not be used",
        )


def similar_products(
    connection: Connection, product_id: str, *, k: int, conditions: Mapping[str, Any], model: str | None
) -> list[Hit]:
    """The products nearest to a product, itself left out. Raises ConfigError when it is unknown, or StoreError."""
    return _hits(connection, SIMILAR, {"query": product_id, "k": k, "filter": Jsonb(conditions), "model": model})


def _hits(connection: Connection, query: str, parameters: dict[str, object]) -> list[Hit]:
    with refusals(), connection.cursor(row_factory=class_row(Hit)) as cursor:
        return cursor.execute(query, parameters).fetchall()


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the public functions refuse into a ConfigError with their words, all else into a StoreError."""
    try:
        yield
    except (
        psycopg.errors.InvalidParameterValue,
        psycopg.errors.NoDataFound,
        psycopg.errors.ObjectNotInPrerequisiteState,
    ) as error:
        raise ConfigError(str(error.diag.message_primary), hint=error.diag.message_hint) from error
    except psycopg.Error as error:
        raise translate(error) from error

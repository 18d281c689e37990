"""Stored texts, which apps search for by a name, catvec.search_by_query('summer dresses', 20); statements to copy.

A text has a vector under each model that has encoded it. Two who write at once must not part a text from its vector:
a vector is written only while its text still stands, and whoever changes a text takes its vectors away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import class_row

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

# from the public view, so that roles that may only read can list them
SELECT_QUERIES = """
SELECT q.name, q.text, array_remove(array_agg(q.model ORDER BY q.model), NULL) AS models
  FROM catvec.queries q
 GROUP BY q.name, q.text
"""

# DO UPDATE, though it changes nothing, waits for others who add this name, and locks their row
UPSERT = """
INSERT INTO catvec_store.queries AS q (name, text)
VALUES (%s, %s)
    ON CONFLICT (name) DO UPDATE
   SET text = q.text
RETURNING q.text
"""

# FOR SHARE: the text cannot be changed before this vector is committed, and then goes with it; a text that was
# changed meanwhile gets none
INSERT_VECTOR = """
INSERT INTO catvec_store.query_vectors (name, model_id, embedding)
SELECT q.name, %s, %s
  FROM catvec_store.queries q
 WHERE q.name = %s
   AND q.text = %s
   FOR SHARE
    ON CONFLICT (name, model_id) DO NOTHING
"""

SEARCH_BY_VECTOR = "SELECT product_id, title, similarity FROM catvec.search_by_vector({}, {}, {}, model => {});"
SEARCH_BY_QUERY = "SELECT product_id, title, similarity FROM catvec.search_by_query({}, {});"
SEARCH_BY_QUERY_PINNED = "SELECT product_id, title, similarity FROM catvec.search_by_query({}, {}, model => {});"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuery:
    """A text, the name that apps search for it by, and the names of the models that have encoded it."""

    name: str
    text: str
    models: list[str]


def list_queries(connection: Connection) -> list[StoredQuery]:
    """All stored texts, by name."""
    with connection.cursor(row_factory=class_row(StoredQuery)) as cursor:
        return cursor.execute(SELECT_QUERIES + " ORDER BY q.name").fetchall()


def find_query(connection: Connection, name: str) -> StoredQuery | None:
    with connection.cursor(row_factory=class_row(StoredQuery)) as cursor:
        return cursor.execute(SELECT_QUERIES + " HAVING q.name = %s", (name,)).fetchone()


def find_missing(connection: Connection, model: StoredModel) -> list[StoredQuery]:
    """The stored texts that have no vector under the model."""
    return [query for query in list_queries(connection) if model.name not in query.models]


def put_query(connection: Connection, name: str, text: str, *, replace: bool) -> StoredQuery:
    """Have the text under the name, in the caller's transaction; another text that is replaced loses its vectors.

    Raises ConfigError when the name stands for another text and is not to be replaced.
    """
    row = connection.execute(UPSERT, (name, text)).fetchone()
    assert row is not None  # noqa: S101 - INSERT … DO UPDATE … RETURNING gives a row
    if row[0] != text:
        if not replace:
            refuse_other_text(name, row[0])
        connection.execute("UPDATE catvec_store.queries SET text = %s WHERE name = %s", (text, name))
        connection.execute("DELETE FROM catvec_store.query_vectors WHERE name = %s", (name,))
    stored = find_query(connection, name)
    assert stored is not None  # noqa: S101 - its row is locked since the first statement
    return stored


def refuse_other_text(name: str, text: str) -> NoReturn:
    """Raise the ConfigError of a name that stands for another text already."""
    raise ConfigError(
        f"query {name!r} is stored already, with the text {text!r}",
        hint="take another name, or add --replace: the vectors of the old text go",
    )


def put_vectors(
    connection: Connection, model: StoredModel, queries: Sequence[StoredQuery], vectors: NDArray[np.float32]
) -> None:
    """Keep the vectors [N, D] of these texts under the model, in the caller's transaction.

    A text that was changed or removed meanwhile gets none.
    """
    rows = [
        (model.model_id, HalfVector(vector), query.name, query.text)
        for query, vector in zip(queries, vectors, strict=True)
    ]
    with connection.cursor() as cursor:
        cursor.executemany(INSERT_VECTOR, rows)


def remove_query(connection: Connection, name: str) -> bool:
    """Forget a text and its vectors; False when there is none of that name."""
    return connection.execute("DELETE FROM catvec_store.queries WHERE name = %s", (name,)).rowcount > 0


def vector_literal(vector: NDArray[np.float32]) -> str:
    """The vector [D] as pgvector reads it: […] with 7 significant digits, more than a halfvec keeps."""
    return f"[{','.join(format(value, '.7g') for value in vector.tolist())}]"


def vector_statement(
    connection: Connection, vector: NDArray[np.float32], *, k: int, conditions: Mapping[str, Any], model: str
) -> str:
    """A statement for psql that searches with a vector [D] of the model.

    Its literals have no type, so that it runs wherever the vector extension lives.
    """
    filter_literal = json.dumps(conditions, ensure_ascii=False)
    return _statement(connection, SEARCH_BY_VECTOR, vector_literal(vector), k, filter_literal, model)


def query_statement(connection: Connection, name: str, *, model: str | None) -> str:
    """A statement for psql that searches by a stored text, under a model or the one that is active then."""
    if model is None:
        return _statement(connection, SEARCH_BY_QUERY, name, 10)
    return _statement(connection, SEARCH_BY_QUERY_PINNED, name, 10, model)


def _statement(connection: Connection, template: str, *values: str | int) -> str:
    # before E'…', which stands for text with a backslash, psycopg puts a space
    return template.format(*(sql.Literal(value).as_string(connection).strip() for value in values))

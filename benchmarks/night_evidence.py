"""What a night did, by witnesses that do not depend on the run's own word: PostgreSQL's statistics, the log of the
image server, SQL; and what passes between two nights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg import sql

from benchmarks.row_changes import NONE, Changes, count_changes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import psycopg

    from benchmarks.photo_server import Answer

    Connection = psycopg.Connection[Any]

TABLES = ("products", "images", "vectors")

STATE = """
SELECT (SELECT count(*) FROM catvec_store.products WHERE active),
       (SELECT count(*) FROM catvec_store.products),
       (SELECT count(*) FROM catvec_store.images WHERE active),
       (SELECT count(*) FROM catvec_store.images),
       (SELECT count(*) FROM catvec_store.{table}),
       (SELECT count(*) FROM catvec_store.unused_contents u JOIN catvec_store.{table} e USING (content_sha256)),
       (SELECT count(*)
          FROM catvec_store.{table} e
         WHERE NOT EXISTS (SELECT FROM catvec_store.images i WHERE i.content_sha256 = e.content_sha256)
           AND NOT EXISTS (SELECT FROM catvec_store.unused_contents u WHERE u.content_sha256 = e.content_sha256)),
       (SELECT count(*) FROM catvec.failures)
"""

# what a reader of the catalog would call the same shop
SHOWN = """
SELECT p.product_id, p.title, p.category, p.price, p.attrs::text, i.url, i.position, encode(i.content_sha256, 'hex'),
       e.embedding::vector::real[]
  FROM catvec_store.products p
  JOIN catvec_store.images i ON i.product_id = p.product_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
 WHERE p.active
   AND i.active
 ORDER BY p.product_id, i.position, i.url
"""

TIMES = {
    "products": ("first_seen_at", "updated_at", "missing_since", "removed_at"),
    "images": ("first_seen_at", "checked_at", "fetched_at", "changed_at", "missing_since"),
    "failures": ("first_at", "last_at", "next_try_at"),
    "unused_contents": ("since",),
    "bad_rows": ("read_at",),
    "runs": ("started_at", "heartbeat_at", "finished_at"),
}


def pass_days(connection: Connection, days: int, *, but_shares_since: datetime | None = None) -> None:
    """Let days pass: every moment that catvec's tables hold is so much longer ago.

    The clock itself does not move, and each image's moment of the week is a fixed one on it. So an image that was
    asked for again because its moment had come would be due with the next day already, and not with the next week:
    what runs have asked for by shares since `but_shares_since` stays as it is. Its next turn is after these nights.
    """
    for table, columns in TIMES.items():
        moved = sql.SQL(", ").join(
            sql.SQL("{0} = {0} - %(days)s * interval '1 day'").format(sql.Identifier(column)) for column in columns
        )
        query = sql.SQL("UPDATE {} SET {}").format(sql.Identifier("catvec_store", table), moved)
        if table == "images" and but_shares_since is not None:
            query += sql.SQL(" WHERE NOT coalesce(first_seen_at < %(since)s AND checked_at >= %(since)s, false)")
        connection.execute(query, {"days": days, "since": but_shares_since})
    # these updates are to be in the statistics before the night begins
    connection.execute("SELECT pg_stat_force_next_flush()")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the tables hold. `unused` vectors belong to bytes that no image shows any more and wait for their time;
    `orphans` are neither shown nor waiting.
    """

    active_products: int
    products: int
    active_images: int
    images: int
    vectors: int
    unused: int
    orphans: int
    failures: int


def read_state(connection: Connection, table: str) -> State:
    row = connection.execute(sql.SQL(STATE).format(table=sql.Identifier(table))).fetchone()
    assert row is not None
    names = ("active_products", "products", "active_images", "images", "vectors", "unused", "orphans", "failures")
    return State(**dict(zip(names, row, strict=True)))


def vector_table(connection: Connection) -> str | None:
    """The private table of the only model; None before there is one."""
    if connection.execute("SELECT to_regclass('catvec_store.models')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT 'emb_' || name FROM catvec_store.models").fetchone()
    return row[0] if row else None


def written_rows(connection: Connection) -> dict[str, Changes]:
    """Of products, images and vectors, since they were made."""
    table = vector_table(connection)
    if table is None:
        return dict.fromkeys(TABLES, NONE)
    names = ("products", "images", table)
    return dict(zip(TABLES, (count_changes(connection, f"catvec_store.{name}") for name in names), strict=True))


def find_similar(connection: Connection, product_id: str, k: int = 10) -> list[tuple[str, float]]:
    """What an app is answered: products and similarities."""
    query = "SELECT product_id, similarity::float8 FROM catvec.similar_products(%s, %s)"
    return [(row[0], row[1]) for row in connection.execute(query, (product_id, k)).fetchall()]


def describe_answers(answers: Sequence[Answer]) -> dict[str, int]:
    """How the image server answered; `plain` requests did not say which version they had."""
    statuses = Counter(answer.status for answer in answers)
    return {
        "requests": len(answers),
        "200": statuses.pop(200, 0),
        "304": statuses.pop(304, 0),
        "other": sum(statuses.values()),
        "conditional": sum(answer.is_conditional for answer in answers),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two databases side by side, by what they show: rows without their vectors, and the vectors by content."""

    rows: int
    differing_rows: int
    vectors: int
    least_cosine: float
    equal_vectors: int


def compare(ours: Connection, theirs: Connection) -> Comparison:
    first, second = _shown(ours), _shown(theirs)
    rows_differ = len(set(first.rows) ^ set(second.rows))
    shared = sorted(first.vectors.keys() & second.vectors.keys())
    pairs = [(np.array(first.vectors[key]), np.array(second.vectors[key])) for key in shared]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    return Comparison(
        rows=len(first.rows),
        differing_rows=rows_differ + len(first.vectors.keys() ^ second.vectors.keys()),
        vectors=len(shared),
        least_cosine=round(min(cosines, default=0.0), 6),
        equal_vectors=sum(bool(np.array_equal(a, b)) for a, b in pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    rows: list[tuple[Any, ...]]
    vectors: Mapping[str, list[float]]


def _shown(connection: Connection) -> _Shown:
    table = vector_table(connection)
    assert table is not None
    found = connection.execute(sql.SQL(SHOWN).format(table=sql.Identifier(table))).fetchall()
    return _Shown(
        rows=[row[:-1] for row in found], vectors={row[-2]: row[-1] for row in found if row[-1] is not None}
    )

"""What is to be done: the images of a catalog that lack a vector under a model, or whose knowledge has grown old.

The data is the checkpoint. Everything is judged as of one moment, the beginning of the run, so that what is counted
is what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from pipeline.durations import NEVER
from pipeline.records import ImageRef
from pipeline.store.share import IS_OURS, share_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from pipeline.shard import Shard
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

PAGE = 2_000
"""image ids looked at in one query: whatever of them is due, the planner sees a small range of the key; with LIMIT in
its place it took the due ones for few, and read all images for each page"""

# Whether what was found at `last` is older than `age`. Spread by a hash of the image: each has a moment of its own in
# every period, so what was loaded in one night is not due in one night again. What was found in the future is due:
# the clock went backwards.
IS_OLD = """
CASE WHEN {age}::double precision IS NULL THEN false
     WHEN {age} = 0 OR {last} IS NULL OR {last} > greatest(now(), %(as_of)s) THEN true
     ELSE floor((extract(epoch FROM %(as_of)s::timestamptz) + (hashint8(i.image_id)::bigint + 2147483648)) / {age})
          > floor((extract(epoch FROM {last}) + (hashint8(i.image_id)::bigint + 2147483648)) / {age})
END
"""

# A look at a file costs no more than to remember when it was looked at last; a data URI never changes.
IS_DUE = (
    """
CASE WHEN %(recheck_s)s::double precision IS NULL OR i.url ~* '^data:' THEN false
     WHEN i.url !~* '^https?:' THEN true
     ELSE """
    + IS_OLD
    + """
END
"""
)

# the weekly look of a permanent failure finds out whether its validator changed
IS_TO_TRY = """
CASE WHEN f.image_id IS NOT NULL
     THEN f.next_try_at <= %(as_of)s
          OR f.next_try_at > %(as_of)s + interval '8 days'    -- no delay is that long: the clock went back
          OR ({failure_is_due} AND (f.kind = 'permanent' OR i.url !~* '^https?:'))
          OR (f.kind = 'permanent' AND {updated_at} > f.last_at AND {updated_at} <= greatest(now(), %(as_of)s))
     WHEN e.content_sha256 IS NULL THEN true
     ELSE {check_is_due}
END
"""

TASKS = (
    """
  FROM (SELECT i.*, f.code, f.next_try_at, coalesce(f.kind = 'permanent', false) AS failed_for_good,
               f.etag AS failure_etag, f.last_modified AS failure_last_modified,
               e.content_sha256 IS NOT NULL AS has_vector, coalesce({is_to_try}, false) AS is_to_try,
               {is_full} AS is_full
          FROM catvec_store.images i
          JOIN catvec_store.products p ON p.product_id = i.product_id
          LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
          LEFT JOIN catvec_store.failures f ON f.image_id = i.image_id AND f.model_id = %(model_id)s
                                               AND f.image_id > %(after)s AND f.image_id <= %(last)s
         WHERE p.catalog = %(catalog)s
           AND i.active
           AND i.missing_since IS NULL
           AND i.image_id > %(after)s
           AND i.image_id <= %(last)s
           AND """
    + IS_OURS
    + ") AS task"
)

COUNT = """
SELECT count(*),
       count(*) FILTER (WHERE is_to_try AND code IS NULL AND NOT has_vector),
       count(*) FILTER (WHERE is_to_try AND code IS NULL AND has_vector),
       count(*) FILTER (WHERE is_to_try AND code IS NOT NULL),
       count(*) FILTER (WHERE NOT is_to_try AND code IS NOT NULL)
"""

COUNT_DEFERRED = "SELECT code, count(*)"

# What is sent along decides what "as it was" means: the bytes with the vector, or those that failed for good. Whoever
# asked for a retry wants all of it.
READ = """
SELECT image_id, product_id, url,
       CASE WHEN is_full OR next_try_at IS NOT NULL THEN NULL WHEN failed_for_good THEN failure_etag
            WHEN has_vector THEN etag END,
       CASE WHEN is_full OR next_try_at IS NOT NULL THEN NULL WHEN failed_for_good THEN failure_last_modified
            WHEN has_vector THEN last_modified END,
       content_sha256, has_vector, code, failed_for_good
"""


UPDATED_AT = "p.updated_at"

LACKING = " WHERE is_to_try AND (code IS NOT NULL OR NOT has_vector)"
# not what this run has just embedded
CHECKS = (
    " WHERE is_to_try AND code IS NULL AND has_vector"
    " AND (checked_at IS NULL OR checked_at <= %(as_of)s OR checked_at > now())"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which images are looked at, and when they are due; `recheck` and `full_check` are ages. `shard` None: all.

    `as_of` is by the database's clock; images up to `last_id` were there then, what others add is their work.
    """

    catalog: str
    as_of: datetime
    last_id: int
    recheck: timedelta
    full_check: timedelta
    shard: Shard | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkCount:
    """Images of the catalog: `missing` lack a vector, `due` have one and are to be checked again, `retries` failed
    before and are to be tried again, `deferred` (by code) are not to be tried yet. The others are as they should be.
    """

    images: int
    missing: int
    due: int
    retries: int
    deferred: Mapping[str, int]

    @property
    def to_do(self) -> int:
        return self.missing + self.due + self.retries

    @property
    def unchanged(self) -> int:
        return self.images - self.to_do - sum(self.deferred.values())


def open_scope(
    connection: Connection, catalog: str, *, recheck: timedelta, full_check: timedelta, shard: Shard | None = None
) -> Scope:
    """What a run that begins to look at images now looks at."""
    [(now, last)] = connection.execute("SELECT now(), coalesce(max(image_id), 0) FROM catvec_store.images").fetchall()
    return Scope(catalog=catalog, as_of=now, last_id=last, recheck=recheck, full_check=full_check, shard=shard)


def count_work(session: Session, model: StoredModel, scope: Scope) -> WorkCount:
    return session.run(lambda connection: count_work_in(connection, model, scope))


def count_work_in(
    connection: Connection,
    model: StoredModel,
    scope: Scope,
    *,
    only: LiteralString = "",
    updated_at: LiteralString = UPDATED_AT,
) -> WorkCount:
    """The same in the caller's transaction.

    `only` begins with WHERE and narrows down the images, `updated_at` says when the row of product p changed.
    """
    values = _values(model, scope)
    row = connection.execute(_query(COUNT, model, only, updated_at), values).fetchone() or (0,) * 5
    images, missing, due, retries, deferred = row
    codes = {}
    if deferred:
        narrowed = (only or " WHERE true") + " AND NOT is_to_try AND code IS NOT NULL"
        ending = narrowed + " GROUP BY code ORDER BY count(*) DESC, code"
        codes = dict(connection.execute(_query(COUNT_DEFERRED, model, ending, updated_at), values).fetchall())
    return WorkCount(images=images, missing=missing, due=due, retries=retries, deferred=codes)


def read_work(session: Session, model: StoredModel, scope: Scope, count: WorkCount) -> Iterator[list[ImageRef]]:
    """What was counted and is to be done, page by page in the order of the images' ids; each is seen once.

    What lacks a vector comes before what is only checked again: a run may have to stop early.
    """
    if count.missing or count.retries:
        yield from _read_pages(session, model, scope, LACKING)
    if count.due:
        yield from _read_pages(session, model, scope, CHECKS)


def _read_pages(session: Session, model: StoredModel, scope: Scope, which: LiteralString) -> Iterator[list[ImageRef]]:
    query = _query(READ, model, f"{which} ORDER BY image_id")
    values = _values(model, scope)
    for after in range(0, scope.last_id, PAGE):
        rows = session.rows(query, values | {"after": after, "last": min(after + PAGE, scope.last_id)})
        if page := [image_of(row) for row in rows]:
            yield page


def read_query(
    model: StoredModel, scope: Scope, ending: LiteralString, *, updated_at: LiteralString = UPDATED_AT
) -> tuple[sql.Composed, dict[str, object]]:
    """The query for images of the work, whose rows `image_of` reads, and its values; `ending` as `only` above."""
    return _query(READ, model, ending, updated_at), _values(model, scope)


def image_of(row: Sequence[Any]) -> ImageRef:
    return ImageRef(
        image_id=row[0],
        product_id=row[1],
        url=row[2],
        etag=row[3],
        last_modified=row[4],
        sha256=row[5],
        has_vector=row[6],
        failed_before=row[7],
        failed_for_good=row[8],
    )


def _query(
    head: LiteralString, model: StoredModel, ending: LiteralString, updated_at: LiteralString = UPDATED_AT
) -> sql.Composed:
    check = sql.SQL(IS_DUE).format(age=sql.SQL("%(recheck_s)s"), last=sql.SQL("i.checked_at"))
    failure = sql.SQL(IS_DUE).format(age=sql.SQL("%(recheck_s)s"), last=sql.SQL("f.last_at"))
    tasks = sql.SQL(TASKS).format(
        table=sql.Identifier(model.table),
        is_to_try=sql.SQL(IS_TO_TRY).format(
            check_is_due=check, failure_is_due=failure, updated_at=sql.SQL(updated_at)
        ),
        is_full=sql.SQL(IS_OLD).format(
            age=sql.SQL("%(full_check_s)s"), last=sql.SQL("coalesce(i.fetched_at, i.checked_at, f.first_at)")
        ),
    )
    return sql.SQL(head) + tasks + sql.SQL(ending)


def _values(model: StoredModel, scope: Scope) -> dict[str, object]:
    return {
        "model_id": model.model_id,
        "catalog": scope.catalog,
        "as_of": scope.as_of,
        "recheck_s": _seconds(scope.recheck),
        "full_check_s": _seconds(scope.full_check),
        "after": 0,
        "last": scope.last_id,
        **share_values(scope.shard),
    }


def _seconds(age: timedelta) -> float | None:
    return None if age == NEVER else age.total_seconds()


def find_known(session: Session, model: StoredModel, hashes: Sequence[bytes]) -> set[bytes]:
    """Those of the SHA-256 sums that have a vector under this model already."""
    query = sql.SQL("SELECT content_sha256 FROM catvec_store.{} WHERE content_sha256 = ANY (%(hashes)b)")
    rows = session.rows(query.format(sql.Identifier(model.table)), {"hashes": list(hashes)})
    return {row[0] for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Active images of the catalogs that a model was run on, and how many of them have a vector under it."""

    images: int
    embedded: int


def count_coverage(connection: Connection, model: StoredModel) -> Coverage:
    query = sql.SQL(
        "SELECT count(*), count(e.content_sha256) FROM catvec_store.images i"
        " JOIN catvec_store.products p ON p.product_id = i.product_id"
        " LEFT JOIN catvec_store.{} e ON e.content_sha256 = i.content_sha256"
        " WHERE i.active AND p.catalog IN (SELECT r.catalog FROM catvec_store.runs r WHERE r.model_id = %s)"
    ).format(sql.Identifier(model.table))
    images, embedded = connection.execute(query, (model.model_id,)).fetchone() or (0, 0)
    return Coverage(images=images, embedded=embedded)


def count_products(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM catvec.products WHERE active").fetchone()
    return int(row[0]) if row else 0

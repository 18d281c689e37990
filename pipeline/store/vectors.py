"""Writing what became of images: vectors, what is known of their bytes, failures and counters together.

An image is done in the transaction that writes its vector (law 2), so there is no state of its own to keep.
"""

from __future__ import annotations

import uuid
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import psycopg
from pgvector import HalfVector, Vector
from psycopg import sql

from pipeline.records import Failure, Outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.records import ImageRef
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

    Cursor = psycopg.Cursor[tuple]  # type: ignore[type-arg]

# executemany in a pipeline sends everything in one round trip: 177 ms for 512 rows at 40 ms distance, against
# 341 ms for COPY into a staging table and 21 s row by row. The same bytes give the same vector, so nothing is
# ever rewritten here.
INSERT_VECTORS = """
INSERT INTO catvec_store.{table} (content_sha256, embedding, run_id)
VALUES (%s, %s, %s)
    ON CONFLICT (content_sha256) DO NOTHING
"""

UPDATE_IMAGES = """
UPDATE catvec_store.images AS i
   SET content_sha256 = n.sha256, size_bytes = n.size_bytes, mime = n.mime, etag = n.etag,
       last_modified = n.last_modified, checked_at = now(), fetched_at = now(),
       width = CASE WHEN i.content_sha256 = n.sha256 THEN coalesce(n.width, i.width) ELSE n.width END,
       height = CASE WHEN i.content_sha256 = n.sha256 THEN coalesce(n.height, i.height) ELSE n.height END,
       changed_at = CASE WHEN i.content_sha256 <> n.sha256 THEN now() ELSE i.changed_at END
  FROM unnest(%s::bigint[], %s::bytea[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::integer[],
              %s::integer[])
       AS n (image_id, sha256, size_bytes, mime, etag, last_modified, width, height)
 WHERE i.image_id = n.image_id
"""

# An image shows one content under all models. A run with a model that apps do not read yet leaves theirs in place
# until their own run has a vector of the new one.
KEEP_SHOWN = """
   AND (i.content_sha256 = n.sha256
        OR EXISTS (SELECT FROM catvec_store.{shown} e WHERE e.content_sha256 = n.sha256)
        OR NOT EXISTS (SELECT FROM catvec_store.{shown} e WHERE e.content_sha256 = i.content_sha256))
"""

# reused bytes were not decoded this time; another image of the same bytes knows their size
COPY_SIZES = """
UPDATE catvec_store.images AS i
   SET width = known.width, height = known.height
  FROM catvec_store.images AS known
 WHERE i.image_id = ANY (%s)
   AND known.content_sha256 = i.content_sha256
   AND known.width IS NOT NULL
"""

DELETE_FAILURES = """
DELETE FROM catvec_store.failures
 WHERE model_id = %s
   AND image_id = ANY (%s)
"""

MARK_CHECKED = """
UPDATE catvec_store.images
   SET checked_at = now()
 WHERE image_id = ANY (%s)
"""

# the bytes that could not be used are still there
CONFIRM_FAILURES = """
UPDATE catvec_store.failures
   SET last_at = now(), run_id = %s, next_try_at = NULL
 WHERE model_id = %s
   AND image_id = ANY (%s)
"""

# Selected from images, because the image may have been deleted meanwhile. The delay grows from one hour, so that each
# night tries again what failed up to three times, to a week. What is refused on our side is tried in every run: with
# other settings or another release it may pass.
INSERT_FAILURES = """
INSERT INTO catvec_store.failures AS f
       (image_id, model_id, run_id, stage, code, detail, is_retryable, etag, last_modified, kind, next_try_at)
SELECT n.image_id, %s, %s, n.stage, n.code, n.detail, n.is_retryable, n.etag, n.last_modified, n.kind,
       CASE n.kind WHEN 'transient' THEN now() + interval '1 hour' WHEN 'ours' THEN now() END
  FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::boolean[], %s::text[], %s::text[], %s::text[])
       AS n (image_id, stage, code, detail, is_retryable, etag, last_modified, kind)
  JOIN catvec_store.images i ON i.image_id = n.image_id
    ON CONFLICT (image_id, model_id) DO UPDATE
   SET run_id = excluded.run_id, stage = excluded.stage, code = excluded.code, detail = excluded.detail,
       is_retryable = excluded.is_retryable, etag = excluded.etag, last_modified = excluded.last_modified,
       kind = excluded.kind, attempts = f.attempts + 1, last_at = now(),
       next_try_at = CASE excluded.kind
                     WHEN 'transient'
                     THEN now() + least(interval '7 days', interval '1 hour' * 4 ^ least(f.attempts, 9))
                     WHEN 'ours' THEN now() END
"""

# A commit whose answer was lost is written again, which changes nothing; the token keeps it from counting twice.
COUNT = """
UPDATE catvec_store.runs
   SET embedded = embedded + %s, reused = reused + %s, unchanged = unchanged + %s, failed = failed + %s,
       heartbeat_at = now(), last_write = %s
 WHERE run_id = %s
   AND last_write IS DISTINCT FROM %s
"""


def write_outcomes(
    session: Session, model: StoredModel, run_id: int, outcomes: Outcomes, *, shown: StoredModel | None = None
) -> Outcomes:
    """Write them in one transaction and return what was written. `shown` is the model that apps read, if another.

    When the database refuses a vector, the rows are written one by one, and the refused ones become failures.
    """
    try:
        _commit(session, model, run_id, outcomes, shown)
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if len(outcomes) == 1:
            outcomes = _refused(outcomes, error)
            _commit(session, model, run_id, outcomes, shown)
            return outcomes
        return _write_singly(session, model, run_id, outcomes, shown)
    return outcomes


def _write_singly(
    session: Session, model: StoredModel, run_id: int, outcomes: Outcomes, shown: StoredModel | None
) -> Outcomes:
    names = [entry.name for entry in fields(Outcomes)]
    singles = [Outcomes(**{name: (item,)}) for name in names for item in getattr(outcomes, name)]
    written = [write_outcomes(session, model, run_id, single, shown=shown) for single in singles]
    return Outcomes(**{name: tuple(item for part in written for item in getattr(part, name)) for name in names})


def _refused(outcomes: Outcomes, error: psycopg.Error) -> Outcomes:
    if outcomes.failed:
        # not even the reason can be stored: say so in words that surely can
        [failure] = outcomes.failed
        return Outcomes(failed=(replace(failure, detail="the reason holds text that cannot be stored"),))
    [item] = outcomes.items()
    detail = f"the database refused it: {error.diag.message_primary}"
    failure = Failure(image=item.image, stage="store", code="refused", detail=detail, is_retryable=False)
    return Outcomes(failed=(failure,))


def _commit(session: Session, model: StoredModel, run_id: int, outcomes: Outcomes, shown: StoredModel | None) -> None:
    token = uuid.uuid4()
    update_images = sql.Composed([sql.SQL(UPDATE_IMAGES)])
    if shown is not None:
        update_images += sql.SQL(KEEP_SHOWN).format(shown=sql.Identifier(shown.table))
    session.run(lambda connection: _write(connection, model, run_id, outcomes, token, update_images))


def _write(
    connection: Connection,
    model: StoredModel,
    run_id: int,
    outcomes: Outcomes,
    token: uuid.UUID,
    update_images: sql.Composed,
) -> None:
    outcomes = _in_order(outcomes)
    still_good = [answer.image for answer in outcomes.not_modified if not answer.image.failed_for_good]
    still_bad = [answer.image for answer in outcomes.not_modified if answer.image.failed_for_good]
    with connection.pipeline(), connection.cursor() as cursor:
        if outcomes.embedded:
            as_stored = Vector if model.storage == "vector" else HalfVector
            cursor.executemany(
                sql.SQL(INSERT_VECTORS).format(table=sql.Identifier(model.table)),
                # by content: shards that come upon the same bytes wait for each other, and do not lock each other out
                [
                    (row.content.sha256, as_stored(row.vector), run_id)
                    for row in sorted(outcomes.embedded, key=lambda row: row.content.sha256)
                ],
            )
        _write_contents(cursor, outcomes, update_images)
        if still_good:
            cursor.execute(MARK_CHECKED, (_ids(still_good),))
        # most images that are checked never failed
        read = [*(row.content for row in outcomes.embedded), *outcomes.reused, *outcomes.same]
        good = [*(content.image for content in read), *still_good]
        recovered = [image for image in good if not image.has_vector or image.failed_before]
        if recovered:
            cursor.execute(DELETE_FAILURES, (model.model_id, _ids(recovered)))
        if still_bad:
            cursor.execute(CONFIRM_FAILURES, (run_id, model.model_id, _ids(still_bad)))
        if outcomes.failed:
            _write_failures(cursor, model, run_id, outcomes.failed)
        unchanged = len(outcomes.same) + len(still_good)
        failed = len(outcomes.failed) + len(still_bad)
        counts = (len(outcomes.embedded), len(outcomes.reused), unchanged, failed)
        cursor.execute(COUNT, (*counts, token, run_id, token))


def _in_order(outcomes: Outcomes) -> Outcomes:
    """By image: runs of two models that write the same rows wait for each other, and do not lock each other out."""
    return Outcomes(
        **{
            entry.name: tuple(sorted(getattr(outcomes, entry.name), key=lambda item: item.image.image_id))
            for entry in fields(Outcomes)
        }
    )


def _write_contents(cursor: Cursor, outcomes: Outcomes, update_images: sql.Composed) -> None:
    """What is known of the bytes."""
    known = [*outcomes.reused, *outcomes.same]
    rows = [(embedding.content, embedding.width, embedding.height) for embedding in outcomes.embedded]
    rows += [(content, None, None) for content in known]  # type: ignore[misc]
    if rows:
        columns = zip(
            *(
                (c.image.image_id, c.sha256, c.size_bytes, c.mime, c.etag, c.last_modified, width, height)
                for c, width, height in rows
            ),
            strict=True,
        )
        cursor.execute(update_images, [list(column) for column in columns])
    if outcomes.reused:
        cursor.execute(COPY_SIZES, (_ids([content.image for content in outcomes.reused]),))


def _write_failures(cursor: Cursor, model: StoredModel, run_id: int, failed: Sequence[Failure]) -> None:
    columns = zip(
        *(
            (f.image.image_id, f.stage, f.code, f.detail, f.is_retryable, f.etag, f.last_modified, f.kind)
            for f in failed
        ),
        strict=True,
    )
    cursor.execute(INSERT_FAILURES, [model.model_id, run_id, *(list(column) for column in columns)])


def _ids(images: Sequence[ImageRef]) -> list[int]:
    return [image.image_id for image in images]

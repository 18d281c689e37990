"""What a run works on, as `run` and `plan` see it alike: the rows of the catalog, and which images are due."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from pipeline.durations import ALWAYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import BadRow, Deletion, Product
    from pipeline.settings import RunSettings
    from pipeline.store.connect import Connection
    from pipeline.store.work import Scope


def read_rows(settings: RunSettings, stdin: BinaryIO | None) -> Iterator[Product | BadRow | Deletion]:
    """The catalog's rows, and the products that --deleted-ids names, as far as they are of the run's shard.

    Raises ConfigError and CatalogError.
    """
    from pipeline.catalog.open import read_catalog

    # a delta feed of a quiet night holds nothing
    rows = read_catalog(settings.catalog, stdin=stdin, may_be_empty=settings.partial)
    if settings.deleted_ids is not None:
        from pipeline.catalog.deleted import read_deleted_ids

        rows = chain(rows, read_deleted_ids(settings.deleted_ids))
    shard = settings.shard
    return rows if shard is None else (row for row in rows if shard.holds(row.product_id))


def scope_now(settings: RunSettings, connection: Connection) -> Scope:
    """Which images are due for a run with these settings at this moment."""
    from pipeline.store.work import open_scope

    full_check = ALWAYS if settings.ignore_validators else settings.full_check
    return open_scope(
        connection, settings.catalog_name, recheck=settings.recheck, full_check=full_check, shard=settings.shard
    )

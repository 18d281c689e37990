"""What `catvec status`, `failures` and `models` show: one look at a database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.failures import FailureCount, StoredFailure
    from pipeline.store.index import IndexState
    from pipeline.store.models import StoredModel
    from pipeline.store.runs import Run
    from pipeline.store.work import Coverage


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """A model, how much of the catalog it covers, and its index."""

    model: StoredModel
    coverage: Coverage
    index: IndexState


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One look at a database."""

    products: int
    models: tuple[ModelStatus, ...]
    runs: tuple[Run, ...]
    failures: tuple[FailureCount, ...]


def read_status(url: str, *, runs: int = 5) -> Status:
    """Raises StoreError."""
    from pipeline.store.failures import count_failures
    from pipeline.store.index import find_index
    from pipeline.store.migrate import open_current
    from pipeline.store.models import list_models
    from pipeline.store.runs import list_runs
    from pipeline.store.work import count_coverage, count_products

    with open_current(url) as session:
        connection = session.connection()
        models = tuple(
            ModelStatus(model=model, coverage=count_coverage(connection, model), index=find_index(connection, model))
            for model in list_models(connection)
            if not model.is_retired
        )
        return Status(
            products=count_products(connection),
            models=models,
            runs=tuple(list_runs(connection, limit=runs)),
            failures=tuple(count_failures(connection)),
        )


def read_failures(url: str, *, code: str | None, limit: int) -> list[StoredFailure]:
    """What `catvec failures` lists. Raises StoreError."""
    from pipeline.store.failures import list_failures
    from pipeline.store.migrate import open_current

    with open_current(url) as session:
        return list_failures(session.connection(), code=code, limit=limit)


def read_models(url: str) -> list[StoredModel]:
    """What `catvec models` lists. Raises StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import list_models

    with open_current(url) as session:
        return list_models(session.connection())

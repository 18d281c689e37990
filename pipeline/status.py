"""What `catvec status`, `failures`, `retry` and `models` do: one look at a database, and a second try."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.store.connect import Connection
    from pipeline.store.failures import FailureCount, FailureFilter, FailureGroup, StoredFailure
    from pipeline.store.index import IndexState
    from pipeline.store.models import StoredModel
    from pipeline.store.status import Leftovers, PastRun, RunStatus
    from pipeline.store.work import Coverage

TREND = 14
"""finished runs to compare: two weeks of nights"""
FEWEST_BEFORE = 3
"""runs that make a median worth a sentence"""
REMARKABLE, REMARKABLE_S, REMARKABLE_SHARE = 2.0, 10.0, 0.01
"""times the median; and seconds or share of images more, for twice nearly nothing is nearly nothing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """A model, how much of the catalog it covers, its index, and when the image checked longest ago was checked.

    `coverage` and `index` are None when this user may not see them; `oldest_check` also without an image at a URL.
    """

    model: StoredModel
    coverage: Coverage | None
    index: IndexState | None
    oldest_check: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Medians:
    """Of several runs; `failed_share` is of the images seen, 0 to 1."""

    seconds: float
    embedded: float
    failed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The last finished runs of one catalog, or a shard of it, under one model, oldest first, the medians of all but
    the last of them, and what is worth saying of the last.
    """

    model: str
    catalog: str
    shard: str | None
    runs: tuple[PastRun, ...]
    medians: Medians
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One look at a database; its fields are the keys of `catvec status --json`.

    products  number of products that searches may find
    models    [{model, coverage: {images, embedded}, index, oldest_check: time or null}] without retired ones;
              `oldest_check`: when the server of the image that was not looked at longest was asked last;
              coverage and index are null when this user may not see them
    runs      the last five, newest first: what catvec.run_status has, and `is_lost`, `heartbeat_age_s` (seconds)
    trends    [{model, catalog, shard, runs: [{run_id, finished_at, seconds, embedded, failed_share}], medians,
              remarks}], for each catalog, or shard of it, with two finished runs or more; `medians` are those of all
              runs but the last
    failures  [{stage, code, failures, due, deferred, sample}], the most frequent first; `due`: tried in the next run
    leftovers {products, images, vectors, since}: what waits to be deleted, null when this user may not see it
    unseen    sentences: what this user may not see

    Times are ISO 8601 with a zone, shares 0 to 1.
    """

    products: int
    models: tuple[ModelStatus, ...]
    runs: tuple[RunStatus, ...]
    trends: tuple[Trend, ...]
    failures: tuple[FailureCount, ...]
    leftovers: Leftovers | None
    unseen: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What failed: by code and host, and one by one up to a limit."""

    groups: tuple[FailureGroup, ...]
    failures: tuple[StoredFailure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """`due` images will be tried again by the next run; `catalog_rows` match too, and are read by every run."""

    due: int
    catalog_rows: int


def read_status(url: str, *, runs: int = 5) -> Status:
    """One look, for readers, writers and the owner. Raises StoreError."""
    from pipeline.store.failures import count_failures
    from pipeline.store.migrate import open_current
    from pipeline.store.models import list_models
    from pipeline.store.status import count_leftovers, list_past_runs, list_runs, sees_private
    from pipeline.store.work import count_products

    with open_current(url) as session:
        connection = session.connection()
        sees_all = sees_private(connection)
        models = [model for model in list_models(connection) if not model.is_retired]
        names = {model.name for model in models}
        past = [run for run in list_past_runs(connection, limit=TREND) if run.model in names]
        return Status(
            products=count_products(connection),
            models=tuple(_look_at(connection, model, sees_all=sees_all) for model in models),
            runs=tuple(list_runs(connection, limit=runs)),
            trends=find_trends(past),
            failures=tuple(count_failures(connection)),
            leftovers=count_leftovers(connection) if sees_all else None,
            unseen=() if sees_all else (_unseen(connection),),
        )


def _look_at(connection: Connection, model: StoredModel, *, sees_all: bool) -> ModelStatus:
    from pipeline.store.index import find_index
    from pipeline.store.status import find_oldest_check
    from pipeline.store.work import count_coverage

    if not sees_all:
        return ModelStatus(model=model, coverage=None, index=None, oldest_check=None)
    return ModelStatus(
        model=model,
        coverage=count_coverage(connection, model),
        index=find_index(connection, model),
        oldest_check=find_oldest_check(connection, model),
    )


def _unseen(connection: Connection) -> str:
    user = connection.info.user
    return (
        f"user {user!r} may not see coverage, indexes, checks and what waits to be deleted; the owner and writers may"
    )


def find_trends(past: Sequence[PastRun]) -> tuple[Trend, ...]:
    """The trends of catalogs and shards with two runs or more; `past` is sorted by model, catalog, shard and age."""
    series = [tuple(runs) for _, runs in groupby(past, key=lambda run: (run.model, run.catalog, run.shard))]
    return tuple(_trend(runs) for runs in series if len(runs) > 1)


def _trend(runs: tuple[PastRun, ...]) -> Trend:
    *before, last = runs
    medians = Medians(
        seconds=median(run.seconds for run in before),
        embedded=median(run.embedded for run in before),
        failed_share=median(run.failed_share for run in before),
    )
    remarks = _remarks(last, medians, len(before)) if len(before) >= FEWEST_BEFORE else ()
    return Trend(
        model=last.model, catalog=last.catalog, shard=last.shard, runs=runs, medians=medians, remarks=remarks
    )


def _remarks(last: PastRun, medians: Medians, before: int) -> tuple[str, ...]:
    remarks = []
    if last.seconds >= REMARKABLE * medians.seconds and last.seconds - medians.seconds >= REMARKABLE_S:
        times = f"{last.seconds / max(medians.seconds, 0.1):,.1f}".removesuffix(".0")
        remarks.append(f"the last run took {times} times the median of the {before} before it")
    share, usual = last.failed_share, medians.failed_share
    if share >= REMARKABLE * usual and share - usual >= REMARKABLE_SHARE:
        remarks.append(
            f"in the last run {share:.1%} of the images failed, the median of the {before} before it is {usual:.1%}"
        )
    return tuple(remarks)


def read_failures(url: str, wanted: FailureFilter, *, limit: int) -> Failures:
    """What `catvec failures` shows. Raises StoreError."""
    from pipeline.store.failures import group_failures, list_failures
    from pipeline.store.migrate import open_current

    with open_current(url) as session:
        connection = session.connection()
        return Failures(
            groups=tuple(group_failures(connection, wanted)),
            failures=tuple(list_failures(connection, wanted, limit=limit)),
        )


def retry(url: str, wanted: FailureFilter) -> Retry:
    """Make failures due in the next run. Raises StoreError, ConfigError when it names a model that is not there."""
    from pipeline.store.failures import group_failures, retry_failures
    from pipeline.store.migrate import open_current
    from pipeline.store.models import require_model

    with open_current(url) as session:
        connection = session.connection()
        if wanted.model is not None:
            require_model(connection, wanted.model)
        due = session.run(lambda connection: retry_failures(connection, wanted))
        rows = sum(group.failures for group in group_failures(connection, wanted) if group.stage == "catalog")
        return Retry(due=due, catalog_rows=rows)


def read_models(url: str) -> list[StoredModel]:
    """What `catvec models` lists. Raises StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import list_models

    with open_current(url) as session:
        return list_models(session.connection())

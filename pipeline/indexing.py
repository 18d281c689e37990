"""What `catvec index build`, `rebuild`, `drop` and `status` do: the index of a model, cared for. See also tuning."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.records import EXACT_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from pipeline.progress import Progress
    from pipeline.store.connect import Connection
    from pipeline.store.index import IndexSettings, IndexState
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

PATIENCE = {"statement_timeout": "0", "lock_timeout": "0"}
"""what a role's own settings allow is meant for apps"""
GOOD_RECALL = 0.95
MOST_DEAD = 0.2
"""dead rows still take places among a search's candidates; autovacuum comes at a twentieth"""
MOST_BLOAT = 1.5
BLOAT_BYTES = 8 * 2**20
"""smaller indexes are not judged: nobody would notice"""
FEW_BITS = 128
"""dimensions below which one bit each tells vectors apart badly"""
STATUS_QUERIES, STATUS_S = 50, 5.0
"""queries that `status` measures recall with, and how long it may search exactly: 0.05 s each in 100,000 rows"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """What the user wants of an index; None leaves it as it stands with the model."""

    m: int | None = None
    ef_construction: int | None = None
    binary: bool | None = None
    memory_mb: int | None = None
    wait_s: float = 60.0

    def applied(self, settings: IndexSettings) -> IndexSettings:
        """Raises ConfigError for what does not go together."""
        kind = settings.kind if self.binary is None else "binary" if self.binary else "hnsw"
        return replace(
            settings,
            kind=kind,
            m=self.m or settings.m,
            ef_construction=self.ef_construction or settings.ef_construction,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """The index of one model as it is. `bloat` is its size over that of a fresh one, `recall` is None unmeasured.

    `leftovers` are indexes that nothing builds any more and no search uses.
    """

    model: str
    state: str
    kind: str | None
    size_bytes: int
    rows: int
    m: int | None
    ef_construction: int | None
    ef_search: int
    tuned_at: datetime | None
    recall: float | None
    bloat: float | None
    dead_share: float
    leftovers: tuple[str, ...]
    advice: str | None


def build(url: str, name: str | None, options: IndexOptions, progress: Progress) -> IndexState:
    """Have a valid index made as the options and the model say. Raises CatvecError."""
    from pipeline.store.index import build_index, settings_of

    with opened(url, name, progress) as (connection, model):
        _warn_of_few_bits(model, options)
        wanted = options.applied(settings_of(model))
        return build_index(
            connection, model, progress, wanted=wanted, memory_mb=options.memory_mb, wait_s=options.wait_s
        )


def _warn_of_few_bits(model: StoredModel, options: IndexOptions) -> None:
    if options.binary and model.dims < FEW_BITS:
        logger.warning(
            "one bit a dimension is little to tell vectors of %d dimensions apart, and searches may miss much; "
            "measure it: catvec index status %s",
            model.dims,
            model.name,
        )


def rebuild(url: str, name: str | None, options: IndexOptions, progress: Progress) -> IndexState:
    """Make the index anew beside the old one and swap them. Raises StoreError."""
    from pipeline.store.index import replace_index, settings_of

    with opened(url, name, progress) as (connection, model):
        _warn_of_few_bits(model, options)
        wanted = options.applied(settings_of(model))
        return replace_index(connection, model, wanted, progress, memory_mb=options.memory_mb, wait_s=options.wait_s)


def drop(url: str, name: str | None, *, is_sure: Callable[[StoredModel, IndexState], bool]) -> IndexState | None:
    """Take the index away, if `is_sure` says so of it; returns it as it was, None when nothing was done.

    Raises CatvecError.
    """
    from pipeline.store.index import drop_index, find_index
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.roles import require_owner

    with open_current(url) as session:
        connection = session.connection()
        model = choose_model(connection, name)
        require_owner(connection, f"change the index of model {model.name!r}")
        index = find_index(connection, model)
        if index.exists and not is_sure(model, index):
            return None
        drop_index(connection, model)
        return index


@contextmanager
def opened(url: str, name: str | None, progress: Progress) -> Iterator[tuple[Connection, StoredModel]]:
    """A connection of the owner's, with the model, watched while it builds. Raises ModelError without vectors."""
    from pipeline.store.build import noticing_our_end, session_settings, watched
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model, has_vectors
    from pipeline.store.pooler import require_session
    from pipeline.store.roles import require_owner

    with open_current(url) as session:
        connection = session.connection()
        require_session(connection, url)
        model = choose_model(connection, name)
        require_owner(connection, f"change the index of model {model.name!r}")
        if not has_vectors(connection, model):
            raise ModelError(f"model {model.name!r} has no vectors to index", hint="run catvec run with it first")
        with (
            noticing_our_end(connection),
            session_settings(connection, PATIENCE),
            watched(url, model, progress, builder=connection.info.backend_pid),
        ):
            yield connection, model


def read_reports(url: str, name: str | None, progress: Progress, *, with_recall: bool) -> list[IndexReport]:
    """How the index of the named model is, or those of all. Raises ConfigError for an unknown model, StoreError."""
    from pipeline.store.build import session_settings
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model, list_models
    from pipeline.store.pooler import is_pooled
    from pipeline.store.recall import may_measure
    from pipeline.store.roles import require_owner

    with open_current(url) as session:
        connection = session.connection()
        if not may_measure(connection):
            require_owner(connection, "look into the indexes")
        models = list_models(connection) if name is None else [choose_model(connection, name)]
        # a pooler would give them to somebody else
        with nullcontext() if is_pooled(connection) else session_settings(connection, PATIENCE):
            return [
                _report(connection, model, progress, with_recall=with_recall)
                for model in models
                if not model.is_retired
            ]


def _report(connection: Connection, model: StoredModel, progress: Progress, *, with_recall: bool) -> IndexReport:
    from pipeline.store.bloat import count_rows, expected_bytes
    from pipeline.store.index import find_builder, find_index, find_leftovers

    index, rows = find_index(connection, model), count_rows(connection, model)
    leftovers = [] if find_builder(connection, model) else find_leftovers(connection, model)
    bloat = None
    if index.is_valid and index.kind and index.m and index.size_bytes >= BLOAT_BYTES:
        expected = expected_bytes(rows.live, kind=index.kind, dims=model.dims, m=index.m)
        bloat = round(index.size_bytes / expected, 2) if expected else None
    is_measured = with_recall and index.is_valid and rows.live > 0
    report = IndexReport(
        model=model.name,
        state=_state(index),
        kind=index.kind,
        size_bytes=index.size_bytes,
        rows=rows.live,
        m=index.m,
        ef_construction=index.ef_construction,
        ef_search=model.ef_search,
        tuned_at=model.tuned_at,
        recall=_measure_now(connection, model, index, progress) if is_measured else None,
        bloat=bloat,
        dead_share=round(rows.dead_share, 3),
        leftovers=tuple(leftovers),
        advice=None,
    )
    return replace(report, advice=_advise(report, model))


def _state(index: IndexState) -> str:
    if index.is_valid:
        return "valid, being rebuilt" if index.is_being_built else "valid"
    if index.is_being_built:
        return "being built"
    return "invalid" if index.exists else "missing"


def _measure_now(connection: Connection, model: StoredModel, index: IndexState, progress: Progress) -> float | None:
    """None when there is nothing to measure: no vectors, or so few that searches compare all."""
    from pipeline.store.recall import measure, reads_index, sample_queries

    progress.begin(f"measuring the recall of model {model.name}")
    queries = sample_queries(connection, model, STATUS_QUERIES, at_most_s=STATUS_S)
    if not queries or not reads_index(connection, model, index.name, queries[0]):
        return None
    return round(measure(connection, model, queries).recall, 3)


def _is_low(recall: float | None) -> bool:
    return recall is not None and recall < GOOD_RECALL


def _advise(report: IndexReport, model: StoredModel) -> str | None:
    """The first thing to do, or None when all is well; what tuning has found stands, whatever it came to."""
    if "being" in report.state:
        return "wait until that is done"
    if not report.state.startswith("valid"):
        # an exact search is right for few rows
        is_needed = report.state == "invalid" or report.leftovers or report.rows > EXACT_ROWS
        return f"searches read every vector: catvec index build {report.model}" if is_needed else None
    asked = f"m {model.index_m}, ef_construction {model.index_ef_construction}"
    made = f"m {report.m}, ef_construction {report.ef_construction}"
    left = " and ".join(report.leftovers)
    known = (
        (bool(left), f"every write pays for {left}, which no search uses", "build"),
        (report.kind != model.index_kind, f"the functions ask for a {model.index_kind} index", "rebuild"),
        (made != asked, f"made with {made}, not {asked}", "rebuild"),
        (report.dead_share > MOST_DEAD, "dead rows stand in the way of searches", "rebuild"),
        ((report.bloat or 0) > MOST_BLOAT, "larger than it need be", "rebuild"),
        (report.tuned_at is None and _is_low(report.recall), "searches miss what is near", "tune"),
    )
    return next((f"{why}: catvec index {cure} {report.model}" for is_so, why, cure in known if is_so), None)

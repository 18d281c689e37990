"""What `catvec index build`, `rebuild`, `drop`, `status` and `tune` do: the index of a model, cared for."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, ModelError
from pipeline.records import EXACT_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from pipeline.progress import Progress
    from pipeline.store.candidates import Candidate
    from pipeline.store.connect import Connection
    from pipeline.store.index import IndexSettings, IndexState
    from pipeline.store.models import StoredModel
    from pipeline.store.recall import Latency, Measured

EF_SEARCH = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
LEAST_EF_SEARCH = 40
"""pgvector's default; what less saves cannot be measured"""

GOOD_RECALL = 0.95
MOST_DEAD = 0.2
"""dead rows still take places among a search's candidates; autovacuum comes at a twentieth"""
MOST_BLOAT = 1.5
BLOAT_BYTES = 8 * 2**20
"""smaller indexes are not judged: nobody would notice"""
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
    """The index of one model as it is. `bloat` is its size over that of a fresh one, `recall` is None unmeasured."""

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
    advice: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How to measure. Several `m` or `ef_construction` are tried on a copy of `rows` vectors."""

    sample: int = 200
    target_recall: float = 0.98
    m: tuple[int, ...] = ()
    ef_construction: tuple[int, ...] = ()
    rows: int = 20_000
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was measured, and what was chosen of it. `is_stored`: the functions search with the chosen one now."""

    model: str
    kind: str
    rows: int
    queries: int
    target_recall: float
    exact: Latency
    curve: tuple[Measured, ...]
    chosen: Measured
    before: int
    is_stored: bool
    candidates: tuple[Candidate, ...]

    @property
    def reaches_target(self) -> bool:
        return self.chosen.recall >= self.target_recall


def build(url: str, name: str | None, options: IndexOptions, progress: Progress) -> IndexState:
    """Have a valid index. Raises ConfigError when there is one that was made with other settings."""
    from pipeline.store.index import build_index, find_index, replace_index, settings_of

    with _opened(url, name, progress) as (connection, model):
        wanted, found = options.applied(settings_of(model)), find_index(connection, model)
        if wanted == settings_of(model):
            return build_index(connection, model, progress, memory_mb=options.memory_mb)
        if found.is_valid:
            _refuse_other(found, wanted)
            return found
        return replace_index(connection, model, wanted, progress, memory_mb=options.memory_mb, wait_s=options.wait_s)


def _refuse_other(found: IndexState, wanted: IndexSettings) -> None:
    differences = [
        f"{what} {there}, not {asked}"
        for what, there, asked in (
            ("kind", found.kind, wanted.kind),
            ("m", found.m, wanted.m),
            ("ef_construction", found.ef_construction, wanted.ef_construction),
        )
        if there != asked
    ]
    if differences:
        raise ConfigError(
            f"index {found.name} stands already, with {', '.join(differences)}",
            hint="catvec index rebuild with the same options makes a new one and lets it take this one's place",
        )


def rebuild(url: str, name: str | None, options: IndexOptions, progress: Progress) -> IndexState:
    """Make the index anew beside the old one and swap them. Raises StoreError."""
    from pipeline.store.index import replace_index, settings_of

    with _opened(url, name, progress) as (connection, model):
        wanted = options.applied(settings_of(model))
        return replace_index(connection, model, wanted, progress, memory_mb=options.memory_mb, wait_s=options.wait_s)


def drop(url: str, name: str | None, *, is_sure: Callable[[StoredModel, IndexState], bool]) -> IndexState | None:
    """Take the index away, if `is_sure` says so of it; returns it as it was, None when nothing was done.

    Raises ModelError or StoreError.
    """
    from pipeline.store.index import drop_index, find_index
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model

    with open_current(url) as session:
        connection = session.connection()
        model = choose_model(connection, name)
        index = find_index(connection, model)
        if index.exists and not is_sure(model, index):
            return None
        drop_index(connection, model)
        return index


@contextmanager
def _opened(url: str, name: str | None, progress: Progress) -> Iterator[tuple[Connection, StoredModel]]:
    """A connection of its own, with the model, watched while it builds. Raises ModelError when it has no vectors."""
    from pipeline.store.build import watched
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model, has_vectors
    from pipeline.store.pooler import require_session

    with open_current(url) as session:
        connection = session.connection()
        require_session(connection, url)
        model = choose_model(connection, name)
        if not has_vectors(connection, model):
            raise ModelError(f"model {model.name!r} has no vectors to index", hint="run catvec run with it first")
        with watched(url, model, progress):
            yield connection, model


def read_reports(url: str, name: str | None, progress: Progress, *, with_recall: bool) -> list[IndexReport]:
    """How the index of the named model is, or those of all. Raises ModelError or StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model, list_models

    with open_current(url) as session:
        connection = session.connection()
        models = list_models(connection) if name is None else [choose_model(connection, name)]
        return [
            _report(connection, model, progress, with_recall=with_recall) for model in models if not model.is_retired
        ]


def _report(connection: Connection, model: StoredModel, progress: Progress, *, with_recall: bool) -> IndexReport:
    from pipeline.store.bloat import count_rows, expected_bytes
    from pipeline.store.index import find_index

    index, rows = find_index(connection, model), count_rows(connection, model)
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
        recall=_measure_now(connection, model, progress) if is_measured else None,
        bloat=bloat,
        dead_share=round(rows.dead_share, 3),
        advice=None,
    )
    return replace(report, advice=_advise(report, model))


def _state(index: IndexState) -> str:
    if index.is_valid:
        return "valid, being rebuilt" if index.is_being_built else "valid"
    if index.is_being_built:
        return "being built"
    return "invalid" if index.exists else "missing"


def _measure_now(connection: Connection, model: StoredModel, progress: Progress) -> float | None:
    from pipeline.store.recall import measure, sample_queries

    progress.begin(f"measuring the recall of model {model.name}")
    queries = sample_queries(connection, model, STATUS_QUERIES, at_most_s=STATUS_S)
    return round(measure(connection, model, queries).recall, 3) if queries else None


def _advise(report: IndexReport, model: StoredModel) -> str | None:
    """The first thing to do, or None when all is well."""
    if "being" in report.state:
        return "wait until that is done"
    if not report.state.startswith("valid"):
        # an exact search is right for few rows
        is_needed = report.state == "invalid" or report.rows > EXACT_ROWS
        return f"searches read every vector: catvec index build {report.model}" if is_needed else None
    known = (
        (report.kind != model.index_kind, f"the functions ask for a {model.index_kind} index", "rebuild"),
        (report.dead_share > MOST_DEAD, "dead rows stand in the way of searches", "rebuild"),
        ((report.bloat or 0) > MOST_BLOAT, "larger than it need be", "rebuild"),
        (report.recall is not None and report.recall < GOOD_RECALL, "searches miss what is near", "tune"),
    )
    return next((f"{why}: catvec index {cure} {report.model}" for is_so, why, cure in known if is_so), None)


def tune(url: str, name: str | None, options: TuneOptions, progress: Progress) -> Tuning:
    """Measure recall and latency over ef_search and store the least that is good enough. Raises StoreError."""
    from pipeline.store.bloat import count_rows
    from pipeline.store.index import find_index
    from pipeline.store.recall import measure, measure_curve, sample_queries, store_ef_search, summarise
    from pipeline.store.roles import require_owner

    with _opened(url, name, progress) as (connection, model):
        index = find_index(connection, model)
        if not index.is_valid or index.kind is None:
            raise ModelError(
                f"model {model.name!r} has no valid index to tune", hint=f"catvec index build {model.name}"
            )
        require_owner(connection, f"tune the index of model {model.name!r}")
        combinations = _combinations(options, model)
        progress.begin("searching exactly")
        queries = sample_queries(connection, model, options.sample, progress=progress)
        if not queries:
            raise ModelError(f"model {model.name!r} has no vector that apps can find", hint="see: catvec status")
        progress.begin(f"searching with ef_search {EF_SEARCH[0]} to {EF_SEARCH[-1]}")
        measure(connection, model, queries[:10])  # the first reads of an index wait for the disk
        curve = measure_curve(connection, model, queries, EF_SEARCH, progress)
        candidates = _try(connection, model, combinations, options, progress)
        chosen = choose(curve, options.target_recall)
        if not options.dry_run:
            store_ef_search(connection, model, chosen.ef_search)
        return Tuning(
            model=model.name,
            kind=index.kind,
            rows=count_rows(connection, model).live,
            queries=len(queries),
            target_recall=options.target_recall,
            exact=summarise([query.seconds for query in queries]),
            curve=tuple(curve),
            chosen=chosen,
            before=model.ef_search,
            is_stored=not options.dry_run,
            candidates=tuple(candidates),
        )


def choose(curve: Sequence[Measured], target_recall: float) -> Measured:
    """The least ef_search, from 40, that reaches the target; else the least that comes as near as any does."""
    usable = [measured for measured in curve if measured.ef_search >= LEAST_EF_SEARCH]
    for measured in usable:
        if measured.recall >= target_recall:
            return measured
    return max(usable, key=lambda measured: (measured.recall, -measured.ef_search))


def _combinations(options: TuneOptions, model: StoredModel) -> list[IndexSettings]:
    from pipeline.store.index import settings_of

    if not options.m and not options.ef_construction:
        return []
    now = settings_of(model)
    settings = [
        # what cannot be is left out: each m is to be tried with each ef_construction that allows it
        replace(now, m=m, ef_construction=ef_construction)
        for m in sorted(set(options.m)) or [now.m]
        for ef_construction in sorted(set(options.ef_construction)) or [now.ef_construction]
        if ef_construction >= 2 * m
    ]
    if not settings:
        raise ConfigError("every --ef-construction is less than twice every --m", hint="raise --ef-construction")
    return settings


def _try(
    connection: Connection,
    model: StoredModel,
    settings: Sequence[IndexSettings],
    options: TuneOptions,
    progress: Progress,
) -> list[Candidate]:
    from pipeline.store.candidates import measure_candidates

    if not settings:
        return []
    return measure_candidates(
        connection,
        model,
        settings,
        rows=options.rows,
        queries=min(options.sample, options.rows),
        ef_search=EF_SEARCH,
        progress=progress,
    )

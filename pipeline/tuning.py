"""What `catvec index tune` does: recall and latency of searches, measured, and the least work that is good enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, ModelError
from pipeline.indexing import opened
from pipeline.records import EXACT_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.progress import Progress
    from pipeline.store.candidates import Candidate
    from pipeline.store.connect import Connection
    from pipeline.store.index import IndexSettings
    from pipeline.store.models import StoredModel
    from pipeline.store.recall import Latency, Measured, Query

EF_SEARCH = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
LEAST_EF_SEARCH = 40
"""pgvector's default; what less saves cannot be measured"""

NEARLY = 0.005
"""recall that is not worth a slower search when none reaches the target"""


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
    m: int
    ef_construction: int
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


def tune(url: str, name: str | None, options: TuneOptions, progress: Progress) -> Tuning:
    """Measure recall and latency over ef_search and store the least that is good enough. Raises StoreError."""
    from pipeline.store.bloat import count_rows
    from pipeline.store.index import find_index
    from pipeline.store.recall import measure_curve, store_ef_search, summarise

    with opened(url, name, progress) as (connection, model):
        index = find_index(connection, model)
        if not index.is_valid or index.kind is None:
            raise ModelError(
                f"model {model.name!r} has no valid index to tune", hint=f"catvec index build {model.name}"
            )
        combinations = _combinations(options, model)
        queries = _ask(connection, model, index.name, options, progress)
        progress.begin(f"searching with ef_search {EF_SEARCH[0]} to {EF_SEARCH[-1]}")
        curve = measure_curve(connection, model, queries, EF_SEARCH, progress)
        candidates = _try(connection, model, combinations, options, progress)
        chosen = choose(curve, options.target_recall)
        if not options.dry_run:
            store_ef_search(connection, model, chosen.ef_search)
        return Tuning(
            model=model.name,
            kind=index.kind,
            m=index.m or model.index_m,
            ef_construction=index.ef_construction or model.index_ef_construction,
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


def _ask(
    connection: Connection, model: StoredModel, index: str, options: TuneOptions, progress: Progress
) -> list[Query]:
    """Queries with their exact answers. Raises ModelError when searches do not read the index."""
    from pipeline.store.recall import measure, reads_index, sample_queries

    progress.begin("searching exactly")
    few = sample_queries(connection, model, 10)
    if not few:
        raise ModelError(f"model {model.name!r} has no vector that apps can find", hint="see: catvec status")
    measure(connection, model, few)  # the first reads of an index wait for the disk
    if not reads_index(connection, model, index, few[0]):
        raise ModelError(
            f"searches of model {model.name!r} compare all its vectors, so there is nothing to tune",
            hint=f"that is right up to {EXACT_ROWS:,} vectors or so; of more, catvec explain says why",
        )
    return sample_queries(connection, model, options.sample, progress=progress)


def choose(curve: Sequence[Measured], target_recall: float) -> Measured:
    """The least ef_search, from 40, that reaches the target; else the least that comes nearly as near as any does."""
    usable = [measured for measured in curve if measured.ef_search >= LEAST_EF_SEARCH]
    for measured in usable:
        if measured.recall >= target_recall:
            return measured
    best = max(measured.recall for measured in usable)
    return next(measured for measured in usable if measured.recall >= best - NEARLY)


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

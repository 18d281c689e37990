"""What `catvec evaluate index` does: how many of the truly nearest products a search by the index finds.

The measuring itself is that of `catvec index status` and `tune`, in store/recall.py; here it gets an interval and a
limit to hold it to. Nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import ModelError
from pipeline.evaluate.metrics import estimate_mean
from pipeline.evaluate.tables import Table, note_methods, show, show_measure
from pipeline.records import EXACT_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.evaluate.metrics import Estimate
    from pipeline.progress import Progress
    from pipeline.store.recall import Latency

SCORES: Final = ("recall@10",)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecall:
    """What was measured; its fields are the keys of `catvec evaluate index --json`.

    `recall` is the share of the 10 truly nearest products that the public function finds. Without `reads_index` the
    searches compare all vectors, as they rightly do with few.
    """

    model: str
    kind: str | None
    m: int | None
    ef_construction: int | None
    ef_search: int
    vectors: int
    queries: int
    reads_index: bool
    recall: Estimate
    latency: Latency
    exact: Latency

    @property
    def summary(self) -> str:
        """What was searched, and how."""
        how = (
            f"by the index ({self.kind}, m {self.m}, ef_search {self.ef_search})"
            if self.reads_index
            else "which compare all vectors"
        )
        return f"model {self.model}, {self.queries:,} of its vectors searched for their 10 nearest products, {how}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """That there is no index to measure, where there should be one."""
        if self.reads_index or self.vectors <= EXACT_ROWS:
            return ()
        return (
            f"searches compare all {self.vectors:,} vectors, so there is no index to judge: catvec explain says why",
        )

    @property
    def scores(self) -> Mapping[str, float]:
        """What --fail-under can ask for."""
        return {SCORES[0]: self.recall.value}


def evaluate_index(url: str, name: str | None, *, sample: int, seed: int, progress: Progress) -> IndexRecall:
    """Search with vectors of the table, by the index and exactly. Raises CatvecError."""
    from pipeline.store.index import find_index
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.recall import may_measure, measure, measure_each, reads_index, sample_queries, summarise
    from pipeline.store.roles import require_owner

    with open_current(url) as session:
        connection = session.connection()
        if not may_measure(connection):
            require_owner(connection, "look into the indexes")
        model = choose_model(connection, name)
        index = find_index(connection, model)
        progress.begin("searching exactly")
        queries = sample_queries(connection, model, sample, progress=progress)
        if not queries:
            raise ModelError(f"model {model.name!r} has no vector that apps can find", hint="see: catvec status")
        measure(connection, model, queries[:10])  # the first reads of an index wait for the disk
        is_read = index.is_valid and reads_index(connection, model, index.name, queries[0])
        progress.begin("searching by the index")
        recalls, latency = measure_each(connection, model, queries)
    return IndexRecall(
        model=model.name,
        kind=index.kind,
        m=index.m,
        ef_construction=index.ef_construction,
        ef_search=model.ef_search,
        vectors=model.vectors,
        queries=len(queries),
        reads_index=is_read,
        recall=estimate_mean(np.array(recalls), seed=seed),
        latency=latency,
        exact=summarise([query.seconds for query in queries]),
    )


def tabulate(measured: IndexRecall) -> list[Table]:
    """Two lines: the searches of apps, and exact ones."""
    how = f"{measured.kind}, ef_search {measured.ef_search}" if measured.reads_index else "all vectors compared"
    rows = (
        (
            how,
            show(measured.recall.value, digits=4),
            show_measure("recall@10", measured.recall)[1],
            *_times(measured.latency),
        ),
        ("exact", "1.0000", "", *_times(measured.exact)),
    )
    headers = ("search", "recall@10", "95 %", "median ms", "p95 ms")
    note = note_methods([measured.recall])
    return [
        Table(title="Searches by the index and without", headers=headers, rows=rows, right=(1, 2, 3, 4), note=note)
    ]


def _times(latency: Latency) -> tuple[str, str]:
    return f"{latency.median_ms:.1f}", f"{latency.p95_ms:.1f}"

"""Recall and latency of searches: measured, tuned, and what tuning says when nothing helps."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import matplotlib
import psycopg
import pytest

from pipeline.charts import draw_tuning, require_charts
from pipeline.commands.index import print_tuning
from pipeline.errors import ConfigError, ModelError
from pipeline.indexing import read_reports
from pipeline.progress import Progress
from pipeline.store.candidates import Candidate
from pipeline.store.index import IndexSettings, build_index, replace_index
from pipeline.store.recall import Latency, Measured, measure, measure_curve, recall, sample_queries
from pipeline.tuning import EF_SEARCH, TuneOptions, Tuning, choose, tune
from tests.store.test_index import again, fill

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.store import Shop

QUICK = IndexSettings(kind="hnsw", m=4, ef_construction=8)
"""an index that misses much, so that ef_search matters"""


def scans(shop: Shop) -> int:
    """How often the index of `wide` was read so far."""
    shop.all("SELECT pg_stat_force_next_flush()")
    return int(shop.one("SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname = 'emb_wide_hnsw'"))


def test_the_functions_search_with_the_ef_search_of_the_model(shop: Shop) -> None:
    fill(shop, 6000)
    connection = shop.session.connection()
    replace_index(connection, again(shop), QUICK)
    queries, before = sample_queries(connection, again(shop), 20), scans(shop)

    recalls = {}
    for ef_search in (60, 1000):
        connection.execute("UPDATE catvec_store.models SET ef_search = %s", (ef_search,))
        recalls[ef_search] = measure(connection, again(shop), queries).recall

    assert scans(shop) >= before + 40
    assert recalls[60] < 0.9 < recalls[1000]
    connection.execute("UPDATE catvec_store.models SET ef_search = 100")
    curve = measure_curve(connection, again(shop), queries, (60, 1000), Progress())
    assert {measured.ef_search: measured.recall for measured in curve} == recalls
    assert again(shop).ef_search == 100


def test_an_index_that_no_search_reads_is_neither_tuned_nor_judged(shop: Shop, database_url: str) -> None:
    fill(shop, 60)
    build_index(shop.session.connection(), again(shop))

    with pytest.raises(ModelError) as caught:
        tune(database_url, None, TuneOptions(sample=20), Progress())

    assert caught.value.message == "searches of model 'wide' compare all its vectors, so there is nothing to tune"
    assert caught.value.hint == "that is right up to 5,000 vectors or so; of more, catvec explain says why"
    assert again(shop).tuned_at is None
    [report] = read_reports(database_url, None, Progress(), with_recall=True)
    assert (report.state, report.recall, report.advice) == ("valid", None, None)


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
@pytest.mark.parametrize("storage", ["halfvec", "vector"])
def test_other_indexes_are_measured_as_the_functions_would_search_them(
    shop: Shop, database_url: str, kind: str, storage: str
) -> None:
    """A copy of all vectors with the same settings comes to the same: nothing changes below what k asks for."""
    fill(shop, 3000, storage=storage)
    replace_index(shop.session.connection(), again(shop), replace(QUICK, kind=kind))

    tuning = tune(database_url, None, TuneOptions(sample=100, m=(4,), rows=3000, dry_run=True), Progress())

    [candidate] = tuning.candidates
    recalls = [measured.recall for measured in candidate.curve]
    assert recalls[:3] == recalls[:1] * 3  # ef_search 20 to 60
    assert recalls[0] < 1  # the planner would find all without an index
    assert candidate.rows == 3000
    # no two graphs are the same: between the means of two lay 0.03 on average, 0.07 at most
    assert statistics.fmean(recalls) == pytest.approx(
        statistics.fmean(measured.recall for measured in tuning.curve), abs=0.15
    )


def test_a_role_with_little_time_can_tune_and_look(shop: Shop, database_url: str) -> None:
    fill(shop, 3000)
    build_index(shop.session.connection(), again(shop))
    hasty = f"{database_url}?options=-c%20statement_timeout%3D30ms"
    with psycopg.connect(hasty) as connection, pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(1)")
    options = TuneOptions(sample=10, m=(32,), ef_construction=(500,), rows=2000, dry_run=True)

    assert tune(hasty, None, options, Progress()).candidates[0].build_s > 0.1
    [report] = read_reports(hasty, None, Progress(), with_recall=True)
    assert report.recall is not None


def test_advice_to_tune_ends_with_tuning(shop: Shop, database_url: str) -> None:
    fill(shop, 3000, dims=16)
    replace_index(shop.session.connection(), again(shop), IndexSettings(kind="binary", m=4, ef_construction=8))
    [report] = read_reports(database_url, None, Progress(), with_recall=True)
    assert report.recall is not None
    assert report.recall < 0.95
    assert report.advice == "searches miss what is near: catvec index tune wide"

    tuning = tune(database_url, None, TuneOptions(sample=20), Progress())

    assert not tuning.reaches_target
    assert (tuning.kind, tuning.m, tuning.ef_construction) == ("binary", 4, 8)
    [report] = read_reports(database_url, None, Progress(), with_recall=True)
    assert report.advice is None


def tuned(*, recalls: tuple[float, ...] = (0.9, 0.97, 0.99), kind: str = "hnsw", m: int = 16) -> Tuning:
    """What tuning could come to."""
    curve = tuple(
        Measured(ef_search=ef, recall=value, latency=Latency(median_ms=ef / 50, p95_ms=ef / 30))
        for ef, value in zip((40, 200, 1000), recalls, strict=True)
    )
    return Tuning(
        model="wide",
        kind=kind,
        m=m,
        ef_construction=128,
        rows=10_000,
        queries=200,
        target_recall=0.98,
        exact=Latency(median_ms=30, p95_ms=40),
        curve=curve,
        chosen=choose(curve, 0.98),
        before=100,
        is_stored=True,
        candidates=(Candidate(m=8, ef_construction=64, rows=500, build_s=1, size_bytes=1, curve=curve),),
    )


def test_a_chart_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(ConfigError, match="which is a folder, expected a file to write"):
        require_charts(folder)
    require_charts(tmp_path / "new.png")
    assert not (tmp_path / "new.png").exists()
    (tmp_path / "old.svg").write_text("kept")
    require_charts(tmp_path / "old.svg")
    assert (tmp_path / "old.svg").read_text() == "kept"
    with pytest.raises(ConfigError, match="which cannot be written: File name too long"):
        require_charts(tmp_path / f"{300 * 'x'}.png")


def test_a_chart_tells_what_was_chosen_without_covering_a_point(tmp_path: Path) -> None:
    for recalls, said in (
        ((0.9, 0.97, 0.9796), "ringed: ef_search 1000, recall 0.9796, below the target"),
        ((0.9, 0.98, 0.99), "ringed: ef_search 200, recall 0.9800"),
    ):
        chart = tmp_path / "curve.svg"
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
            draw_tuning(tuned(recalls=recalls), chart)
        assert f">{said}<" in chart.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tuning", "cure"),
    [
        (
            tuned(recalls=(0.5, 0.54, 0.544), kind="binary"),
            "an index of the embeddings instead of their bits may: catvec index rebuild wide --no-binary-rerank",
        ),
        (
            tuned(recalls=(0.5, 0.6, 0.7)),
            "an index with a greater m may: catvec index rebuild wide --m 32 --ef-construction 256",
        ),
        (
            tuned(recalls=(0.5, 0.6, 0.7), m=32),
            "the index is a large one already (m 32); what others would give: catvec index tune --m LIST",
        ),
    ],
)
def test_where_no_ef_search_is_enough_it_is_said_what_may_be(
    tuning: Tuning, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_tuning(tuning)

    assert f"no ef_search reaches a recall of 0.98; {cure}\n" in capsys.readouterr().err


def test_recall_counts_equals_as_found() -> None:
    assert recall([0.9, 0.8, 0.8], [0.9, 0.8, 0.8]) == 1
    assert recall([0.9, 0.8, 0.8], [0.9, 0.7]) == pytest.approx(1 / 3)
    assert recall([0.9, 0.8], [0.9, 0.8, 0.8]) == 1
    assert recall([], []) == 1


def test_the_least_ef_search_that_is_good_enough_is_chosen() -> None:
    latency = Latency(median_ms=1, p95_ms=2)
    curve = [
        Measured(ef_search=ef, recall=value, latency=latency)
        for ef, value in ((20, 0.99), (40, 0.9), (100, 0.985), (200, 0.985), (400, 0.97))
    ]

    assert choose(curve, 0.98).ef_search == 100
    assert choose(curve, 0.9).ef_search == 40  # 20 is never chosen
    assert choose(curve, 1.0).ef_search == 100  # the least of the best
    near = [replace(entry, recall=0.5 + entry.ef_search / 1e5) for entry in curve]
    assert choose(near, 0.98).ef_search == 40  # no slower search for 0.004 more that are not enough


def test_tuning_stores_what_the_functions_use_unless_it_is_a_dry_run(shop: Shop, database_url: str) -> None:
    fill(shop, 2000)
    build_index(shop.session.connection(), again(shop))
    options = TuneOptions(sample=20, m=(8, 32), ef_construction=(32, 64), rows=500, dry_run=True)

    tuning = tune(database_url, None, options, Progress())

    assert [measured.ef_search for measured in tuning.curve] == list(EF_SEARCH)
    assert (tuning.model, tuning.kind, tuning.m, tuning.rows, tuning.queries) == ("wide", "hnsw", 16, 2000, 20)
    assert tuning.curve[-1].recall == 1
    # m 32 with ef_construction 32 cannot be
    assert [(entry.m, entry.ef_construction, entry.rows) for entry in tuning.candidates] == [
        (8, 32, 500),
        (8, 64, 500),
        (32, 64, 500),
    ]
    assert all(entry.curve[-1].recall > 0.95 for entry in tuning.candidates)
    assert (again(shop).ef_search, again(shop).tuned_at) == (100, None)

    chosen = tune(database_url, None, TuneOptions(sample=20), Progress()).chosen

    assert again(shop).ef_search == chosen.ef_search
    assert again(shop).tuned_at is not None


def test_tuning_needs_an_index(shop: Shop, database_url: str) -> None:
    fill(shop, 50)

    with pytest.raises(ModelError, match="model 'wide' has no valid index to tune"):
        tune(database_url, "wide", TuneOptions(), Progress())

"""Bundles as a user meets them: run into one without a database, go on, load it, export it."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
import pyarrow.parquet as pq

from pipeline import finishing
from pipeline.bundle import parts as bundle_parts
from tests.fixtures.bundles import Stand, assert_same_rows, counts, query, read_rows
from tests.fixtures.catalogs import photo, write_catalog

STATISTICS = """
SELECT relname, n_tup_ins, n_tup_upd, n_tup_del
  FROM pg_stat_user_tables
 WHERE schemaname = 'catvec_store'
   AND relname NOT IN ('runs', 'bad_rows')
 ORDER BY relname
"""


def test_a_bundle_makes_the_database_that_a_run_makes(
    stand: Stand, database_url: str, empty_database_url: str
) -> None:
    direct = stand.run("--db", empty_database_url).json()

    bundled = stand.to_bundle()
    loaded = stand.load(database_url)

    assert counts(bundled) == counts(loaded) == counts(direct) == (0, 2, 12, 5, 0)
    assert bundled["failures_by_code"] == loaded["failures_by_code"] == direct["failures_by_code"]
    assert (bundled["products"], loaded["products"]) == (direct["products"], direct["products"])
    assert_same_rows(database_url, empty_database_url)
    bad_rows = "SELECT catalog, row_number, product_id, url, code, detail FROM catvec_store.bad_rows ORDER BY 2"
    assert query(database_url, bad_rows) == query(empty_database_url, bad_rows)
    models = (
        "SELECT name, source, revision, location, preprocess, fingerprint, dims, has_text, state"
        "  FROM catvec_store.models"
    )
    assert query(database_url, models) == query(empty_database_url, models)


def test_many_vectors_for_a_table_with_an_index_are_told_of_once(
    stand: Stand, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand.run("--db", database_url)
    monkeypatch.setattr(finishing, "UPKEEP_LEAST", 3)
    more = stand.folder / "more.csv"

    def state(*numbers: int) -> None:
        for number in numbers:
            (stand.folder / f"{number}.jpg").write_bytes(photo(number))
        write_catalog(more, [{"id": f"P{number}", "title": "new", "image": f"{number}.jpg"} for number in numbers])

    state(20, 21, 22)
    stand.catvec("run", more, *stand.options, "--db", database_url, "--partial")
    state(30, 31, 32, 33)
    stand.catvec("run", more, *stand.options, "--to", stand.bundle)
    stand.catvec("load", stand.bundle, "--db", database_url, "--partial")

    told = [line for line in caplog.messages if "that has an index" in line]
    begins = [line.partition(" that has")[0] for line in told]
    assert begins == ["3 new vectors go into a table of 12", "4 new vectors go into a table of 15"]
    cure = "stop this, catvec index drop --model tiny_clip, and the same command again builds it at its end"
    assert all(line.endswith(cure) for line in told)


def test_products_that_a_file_names_as_gone_are_in_no_bundle(
    stand: Stand, database_url: str, empty_database_url: str
) -> None:
    gone = stand.folder / "gone.txt"
    gone.write_text("P05\nS\n", encoding="utf-8")
    direct = stand.run("--db", empty_database_url, "--deleted-ids", gone).json()

    bundled = stand.to_bundle("--deleted-ids", gone)
    loaded = stand.load(database_url)

    assert counts(bundled) == counts(loaded) == counts(direct) == (0, 1, 11, 5, 0)
    assert_same_rows(database_url, empty_database_url)


def test_a_run_into_a_bundle_knows_no_database(stand: Stand) -> None:
    script = (
        "import sys, cli\n"
        "try: cli.main()\n"
        "finally: print(*[name for name in ('psycopg', 'sqlalchemy') if name in sys.modules], file=sys.stderr)"
    )
    command = ["run", stand.catalog, "--to", stand.bundle, *stand.options]
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True, check=False
    )

    assert process.returncode == 0, process.stderr
    assert process.stderr.splitlines()[-1] == ""


def test_a_second_run_into_a_bundle_changes_no_file(stand: Stand) -> None:
    stand.to_bundle()
    before = stand.files()

    assert counts(stand.to_bundle()) == (14, 0, 0, 5, 0)
    assert stand.files() == before


def test_a_second_load_writes_no_row(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    query(database_url, "SELECT pg_stat_force_next_flush()")
    before = query(database_url, STATISTICS)

    again = stand.load(database_url)

    assert counts(again) == (14, 0, 0, 5, 0)
    assert query(database_url, STATISTICS) == before


def test_a_box_whose_clock_is_ahead_makes_no_news(
    stand: Stand, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr(bundle_parts, "datetime", Ahead)
    stand.to_bundle()
    (stand.folder / "missing.jpg").write_bytes(photo(50))
    stand.to_bundle()  # what failed in the first part is there in the second
    assert counts(stand.load(database_url)) == (0, 2, 13, 4, 0)
    query(database_url, "SELECT pg_stat_force_next_flush()")
    before = query(database_url, STATISTICS)

    again = stand.load(database_url)
    after = query(database_url, STATISTICS)
    with psycopg.connect(database_url) as connection:  # what the run of another night found
        connection.execute(
            "UPDATE catvec_store.images i SET content_sha256 = n.content_sha256, checked_at = now()"
            "  FROM catvec_store.images n WHERE i.url = '5.jpg' AND n.url = '6.jpg'"
        )
    later = read_rows(database_url)
    stand.load(database_url)

    assert counts(again) == (15, 0, 0, 4, 0)
    assert after == before
    assert read_rows(database_url) == later


def test_a_run_after_a_load_finds_everything_as_it_was(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)

    summary = stand.run("--db", database_url).json()

    assert counts(summary) == (14, 0, 0, 5, 0)
    assert (summary["device"], summary["removed"], summary["products"]["changed"]) == (None, 0, 0)


def test_a_catalog_that_grew_adds_a_part(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    earlier = set(stand.files())
    with stand.catalog.open("a") as file:
        file.write("NEW,new,3,new.jpg\n")
    (stand.folder / "new.jpg").write_bytes(photo(77))

    summary = stand.to_bundle()

    assert counts(summary) == (14, 0, 1, 5, 0)
    assert summary["products"] == {"new": 1, "changed": 0, "removed": 0}
    new = sorted(name.rpartition("-")[0] for name in set(stand.files()) - earlier)
    assert new == ["catalog-000002", "parts/part-000002"]
    assert len([name for name in stand.files() if name.startswith("catalog-")]) == 1
    assert counts(stand.load(database_url)) == (14, 0, 1, 5, 0)


def test_what_failed_is_tried_again_and_its_vector_counts(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    (stand.folder / "missing.jpg").write_bytes(photo(55))

    assert counts(stand.to_bundle()) == (14, 0, 1, 4, 0)
    assert counts(stand.load(database_url)) == (14, 0, 1, 4, 0)
    assert query(database_url, "SELECT count(*) FROM catvec_store.failures") == [(1,)]


def test_what_left_the_catalog_leaves_the_searches_with_the_load(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    lines = stand.catalog.read_text().splitlines(keepends=True)
    stand.catalog.write_text("".join(line for line in lines if not line.startswith("P05")))

    assert stand.to_bundle()["products"]["removed"] == 1
    summary = stand.load(database_url)

    assert (summary["removed"], summary["products"]["removed"]) == (1, 1)
    found = {row[0] for row in query(database_url, "SELECT product_id FROM catvec.image_embeddings")}
    assert "P05" not in found
    assert "P06" in found


def test_pictures_of_another_catalog_stay_as_they_are(stand: Stand, database_url: str) -> None:
    stand.run("--db", database_url, "--catalog-name", "winter")
    before = read_rows(database_url)
    for number in range(12):
        (stand.folder / f"{number}.jpg").write_bytes(photo(100 + number))
    stand.to_bundle()

    loaded = stand.load(database_url)

    assert read_rows(database_url) == before
    assert (counts(loaded)[:3], loaded["pending"], loaded["changed"]) == ((0, 0, 0), 0, 0)
    assert loaded["failures_by_code"]["other_catalog"] > 0
    # their new bytes have vectors in the bundle, and nothing here shows them
    assert query(database_url, "SELECT count(*) FROM catvec_store.emb_tiny_clip") == [(12,)]


def test_a_vector_of_a_refused_product_comes_when_another_one_shows_it(stand: Stand, database_url: str) -> None:
    first = stand.folder / "first.csv"
    write_catalog(first, [{"id": "P00", "title": "theirs", "image": "11.jpg"}])
    stand.catvec("run", first, *stand.options, "--db", database_url, "--catalog-name", "winter")
    stand.to_bundle()

    loaded = stand.load(database_url)

    shown = "SELECT product_id FROM catvec.image_embeddings WHERE product_id IN ('P00', 'S') ORDER BY 1"
    assert query(database_url, shown) == [("P00",), ("S",)]  # S has the bytes of 0.jpg, which P00 had first
    assert loaded["failures_by_code"]["other_catalog"] == 1


def test_an_image_that_changed_and_had_no_vector_counts_once(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE catvec_store.images SET content_sha256 = sha256('old'), checked_at = '2020-01-01'"
            " WHERE content_sha256 IS NOT NULL"
        )
        connection.execute("DELETE FROM catvec_store.emb_tiny_clip")

    again = stand.load(database_url)

    assert (counts(again), again["changed"]) == ((0, 2, 12, 5, 0), 14)


def test_images_that_come_to_vectors_that_are_there_count_as_reused(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE catvec_store.images SET content_sha256 = NULL WHERE url IN ('3.jpg', '4.jpg')")
        connection.execute("DELETE FROM catvec_store.failures")
        connection.execute(
            "UPDATE catvec_store.images i SET content_sha256 = n.content_sha256, checked_at = '2020-01-01'"
            "  FROM catvec_store.images n WHERE i.url = '5.jpg' AND n.url = '6.jpg'"
        )

    again = stand.load(database_url)

    assert (counts(again), again["changed"]) == ((11, 3, 0, 5, 0), 1)


def test_an_export_is_the_bundle_that_a_run_makes(stand: Stand, database_url: str, empty_database_url: str) -> None:
    stand.run("--db", empty_database_url)
    exported = stand.catvec("export", stand.bundle, "--db", empty_database_url, "--json")

    assert exported.code == 0, exported.err
    found = exported.json()
    assert (found["images"], found["written"], found["failed"], found["pending"]) == (16, 16, 2, 0)
    assert counts(stand.load(database_url)) == (0, 2, 12, 5, 0)
    assert_same_rows(database_url, empty_database_url)
    # and a run into it finds nothing to do
    assert counts(stand.to_bundle()) == (14, 0, 0, 5, 0)
    assert stand.catvec("export", stand.bundle, "--db", empty_database_url, "--json").json()["written"] == 0


def test_an_image_that_is_gone_goes_with_its_vector_and_its_failure(
    stand: Stand, database_url: str, empty_database_url: str
) -> None:
    stand.run("--db", empty_database_url)
    first = stand.catvec("export", stand.bundle, "--db", empty_database_url, "--json").json()
    gone = (stand.folder / "3.jpg").read_bytes()
    (stand.folder / "3.jpg").unlink()
    stand.run("--db", empty_database_url)

    exported = stand.catvec("export", stand.bundle, "--db", empty_database_url, "--json").json()

    assert (first["failed"], exported["failed"], exported["written"]) == (2, 3, 1)
    assert stand.catvec("export", stand.bundle, "--db", empty_database_url, "--json").json()["written"] == 0
    assert counts(stand.load(database_url)) == (0, 2, 11, 6, 0)
    failures = (
        "SELECT i.url, f.stage, f.code, f.detail, f.kind, f.last_at FROM catvec_store.failures f"
        "  JOIN catvec_store.images i USING (image_id) ORDER BY i.url, f.code"
    )
    assert [row[0] for row in query(database_url, failures)] == ["3.jpg", "broken.jpg", "missing.jpg"]
    assert query(database_url, failures)[0] == query(empty_database_url, failures)[0]
    assert counts(stand.load(database_url)) == (13, 0, 0, 6, 0)
    assert query(database_url, "SELECT count(*) FROM catvec.image_embeddings") == [(14,)]
    # and when it is back
    (stand.folder / "3.jpg").write_bytes(gone)
    stand.run("--db", empty_database_url, "--recheck", "always")
    exported = stand.catvec("export", stand.bundle, "--db", empty_database_url, "--json").json()
    assert (exported["failed"], exported["written"]) == (2, 1)
    stand.load(database_url)
    assert query(database_url, "SELECT count(*) FROM catvec_store.failures") == [(2,)]


def test_32_bits_a_number_survive_the_way(stand: Stand, database_url: str) -> None:
    stand.to_bundle()
    stand.load(database_url, "--storage", "vector")

    with psycopg.connect(database_url) as connection:
        register_vector(connection)
        rows = connection.execute("SELECT content_sha256, embedding FROM catvec_store.emb_tiny_clip").fetchall()
    stored = {bytes(sha256): np.asarray(vector.to_numpy(), dtype=np.float32) for sha256, vector in rows}
    table = pq.read_table(stand.bundle / "parts").to_pylist()
    written = {row["content_sha256"]: np.array(row["embedding"], np.float32) for row in table if row["embedding"]}
    assert stored.keys() == written.keys()
    assert all(np.array_equal(stored[sha256], written[sha256]) for sha256 in stored)

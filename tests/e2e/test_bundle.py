"""Bundles as a user meets them: run into one without a database, go on, load it, export it; and what goes wrong."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
import pyarrow.parquet as pq

from pipeline import finishing
from pipeline.bundle import parts as bundle_parts
from tests.e2e.test_run_json import validate
from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.command import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Outcome, Starter
    from tests.fixtures.http import ImageServer

ROWS = """
SELECT p.product_id, p.catalog, p.title, p.category, p.brand, p.price, p.attrs, p.active, i.url, i.position, i.active,
       i.content_sha256, i.size_bytes, i.mime, i.width, i.height, i.etag, i.last_modified, i.checked_at IS NULL,
       f.stage, f.code, f.detail, f.is_retryable, f.kind, f.attempts, f.next_try_at IS NULL, e.embedding
  FROM catvec_store.products p
  LEFT JOIN catvec_store.images i ON i.product_id = p.product_id
  LEFT JOIN catvec_store.failures f ON f.image_id = i.image_id
  LEFT JOIN catvec_store.emb_tiny_clip e ON e.content_sha256 = i.content_sha256
 ORDER BY p.product_id, i.position
"""

STATISTICS = """
SELECT relname, n_tup_ins, n_tup_upd, n_tup_del
  FROM pg_stat_user_tables
 WHERE schemaname = 'catvec_store'
   AND relname NOT IN ('runs', 'bad_rows')
 ORDER BY relname
"""

LAW = ("unchanged", "reused", "embedded", "failed", "pending")


class Stand:
    """A shop with every kind of row, and the commands on it."""

    def __init__(self, catvec: Catvec, folder: Path, model: Path) -> None:
        self.catvec = catvec
        self.folder = folder
        self.model = model
        self.catalog = folder / "catalog.csv"
        self.bundle = folder / "bundle"

    def fill(self, photos: int = 12) -> None:
        for number in range(photos):
            (self.folder / f"{number}.jpg").write_bytes(photo(number))
        (self.folder / "same.jpg").write_bytes(photo(0))
        (self.folder / "broken.jpg").write_bytes(b"no image")
        for path in self.folder.glob("*.jpg"):
            os.utime(path, (1e9, 1e9))  # what was written a moment ago gets no validator
        rows = [
            {"id": f"P{number:02}", "title": f"thing {number}", "price": f"{number}.50", "image": f"{number}.jpg"}
            for number in range(photos)
        ]
        rows += [
            {"id": "P00", "title": "thing 0", "price": "", "image": "1.jpg"},  # another picture of the same
            {"id": "P01", "title": "something else", "price": "1.50", "image": "2.jpg"},
            {"id": "S", "title": "the bytes of another", "price": "1", "image": "same.jpg"},
            {"id": "B", "title": "broken", "price": "2", "image": "broken.jpg"},
            {"id": "M", "title": "missing", "price": "2", "image": "missing.jpg"},
            {"id": "N", "title": "none", "price": "2", "image": ""},
            {"id": "", "title": "no id", "price": "2", "image": "0.jpg"},
        ]
        write_catalog(self.catalog, rows)

    @property
    def options(self) -> tuple[object, ...]:
        return ("--model", self.model, "--precision", "fp32", "--tolerate-failures", 1, "--max-failure-rate", 1)

    def run(self, *options: object) -> Outcome:
        return self.catvec("run", self.catalog, *self.options, *options, "--json")

    def to_bundle(self, *options: object) -> dict[str, Any]:
        outcome = self.run("--to", self.bundle, *options)
        assert outcome.code == 0, outcome.err
        summary: dict[str, Any] = outcome.json()
        validate(summary)
        assert summary["seen"] == sum(summary[name] for name in LAW)
        return summary

    def load(self, url: str, *options: object) -> dict[str, Any]:
        outcome = self.catvec("load", self.bundle, "--db", url, "--json", *options)
        assert outcome.code == 0, outcome.err
        summary: dict[str, Any] = outcome.json()
        validate(summary)
        assert summary["seen"] == sum(summary[name] for name in LAW)
        return summary

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.bundle)): path.read_bytes()
            for path in self.bundle.rglob("*")
            if path.is_file() and path.name != ".lock"
        }


@pytest.fixture
def stand(catvec: Catvec, tmp_path: Path, tiny_clip: Path) -> Stand:
    made = Stand(catvec, tmp_path, tiny_clip)
    made.fill()
    return made


def read_rows(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        register_vector(connection)
        return connection.execute(ROWS).fetchall()


def assert_same_rows(url: str, expected_url: str) -> None:
    """Everything but times and ids; vectors by their cosine, for they depend a little on their batch."""
    rows, expected = read_rows(url), read_rows(expected_url)
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert (row[-1] is None) == (wanted[-1] is None)
        if row[-1] is not None:
            left, right = row[-1].to_numpy().astype(np.float32), wanted[-1].to_numpy().astype(np.float32)
            assert left @ right / np.linalg.norm(left) / np.linalg.norm(right) >= 0.9999
    assert len(rows) > 10


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def counts(summary: dict[str, Any]) -> tuple[int, ...]:
    return tuple(summary[name] for name in LAW)


# ---- the way there


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


# ---- killed, stopped, and two at once


@pytest.mark.slow
def test_kills_at_any_moment_end_in_the_bundle_of_an_undisturbed_run(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    image_server: ImageServer,
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    catalog, bundle = shop_catalog(100, wait_s=0.1), tmp_path / "bundle"
    killed = (
        "run",
        catalog,
        "--to",
        bundle,
        "--model",
        tiny_clip,
        "--allow-private-hosts",
        "--per-host",
        2,
        "--json",
    )
    moments = random.Random(5)
    for _ in range(2):
        process = catvec_process(*killed)
        seen = image_server.requests.total()
        wait_until(lambda: image_server.requests.total() > seen, process)  # noqa: B023
        time.sleep(moments.uniform(3.0, 4.5))  # 20 images a second, a part each 2 s
        process.kill()
        process.communicate()

    last = catvec(*killed).json()

    assert last["unchanged"] > 0, "the kills came before anything was done: this test shows nothing"
    assert (last["finished"], last["unchanged"] + last["embedded"]) == (True, 100)
    rows = pq.read_table(bundle / "parts").to_pylist()
    assert sorted(row["product_id"] for row in rows) == [f"P{number:04}" for number in range(100)]
    assert {row["outcome"] for row in rows} == {"embedded"}
    assert not list(bundle.rglob(".catvec-*"))


@pytest.mark.slow
def test_a_terminated_run_drains_and_a_second_one_has_to_wait(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    image_server: ImageServer,
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    catalog, bundle = shop_catalog(60, wait_s=0.2), tmp_path / "bundle"
    command = ("run", catalog, "--to", bundle, "--model", tiny_clip, "--allow-private-hosts", "--per-host", 2)
    process = catvec_process(*command, "--json")
    wait_until(lambda: image_server.requests.total() > 10, process)

    second = catvec(*command)
    process.terminate()
    out, err = process.communicate(timeout=20)

    assert second.code == 75
    assert f"another run writes to bundle {str(bundle)!r}: process {process.pid} on " in second.err
    assert process.returncode == 143, err
    assert "stopped early (SIGTERM); to go on, run the same command again" in err
    assert '"stopped_by": "SIGTERM"' in out
    rows = pq.read_table(bundle / "parts").num_rows
    assert 0 < rows < 60
    last = catvec(*command, "--json").json()
    assert (last["unchanged"], last["embedded"]) == (rows, 60 - rows)


@pytest.mark.slow
def test_a_load_that_is_killed_goes_on(stand: Stand, catvec_process: Starter, database_url: str) -> None:
    stand.to_bundle()
    process = catvec_process("load", stand.bundle, "--db", database_url)
    time.sleep(0.8)
    process.kill()
    process.communicate()

    stand.load(database_url)

    assert query(database_url, "SELECT count(*) FROM catvec.image_embeddings") == [(14,)]


# ---- what is refused


def test_a_bundle_of_another_model_is_refused(
    stand: Stand, database_url: str, tiny_clip_other: Path, tmp_path: Path
) -> None:
    stand.to_bundle()
    before = stand.files()

    outcome = stand.catvec(
        "run", stand.catalog, "--to", stand.bundle, "--model", tiny_clip_other, "--model-name", "tiny_clip"
    )

    code, error, hint = outcome.complaint()
    assert code == 1
    assert error.startswith(
        f"bundle {str(stand.bundle)!r} holds vectors of another model: dimensions 48 instead of 32, weights sha256:"
    )
    assert hint == "give this model a bundle of its own"
    assert stand.files() == before
    stand.catvec("run", stand.catalog, "--db", database_url, "--model", tiny_clip_other, "--model-name", "tiny_clip")
    code, error, _ = stand.catvec("load", stand.bundle, "--db", database_url).complaint()
    assert code == 1
    assert error.startswith(
        "model 'tiny_clip' in this database was made by another model: dimensions 32 instead of 48"
    )


def test_a_bundle_of_another_catalog_is_refused(stand: Stand, tmp_path: Path) -> None:
    stand.to_bundle()
    before = stand.files()

    code, error, hint = stand.run("--to", stand.bundle, "--catalog-name", "winter").complaint()

    assert (code, hint) == (2, "give this catalog a bundle of its own")
    assert error == f"bundle {str(stand.bundle)!r} is of catalog 'default', --catalog-name is 'winter'"
    write_catalog(stand.catalog, [{"id": "X", "title": "x", "price": "1", "image": "0.jpg"}])
    code, error, _ = stand.run("--to", stand.bundle).complaint()
    assert code == 1
    assert "16 of the 16 products in bundle" in error
    assert stand.files() == before


@pytest.mark.parametrize("damage", ["cut", "edited"])
def test_a_damaged_part_is_named_and_only_its_images_are_made_again(
    stand: Stand, database_url: str, damage: str
) -> None:
    stand.to_bundle()
    with stand.catalog.open("a") as file:
        file.write("NEW,new,3,new.jpg\n")
    (stand.folder / "new.jpg").write_bytes(photo(77))
    stand.to_bundle()
    [_, part] = sorted((stand.bundle / "parts").iterdir())
    whole = part.read_bytes()
    part.write_bytes(whole[:-100] if damage == "cut" else whole[:500] + b"\0" + whole[501:])

    code, error, hint = stand.run("--to", stand.bundle).complaint()

    assert code == 1
    assert error == f"part {str(part)!r} is cut off or was edited: its bytes are not those that its name stands for"
    assert "remove it" in str(hint)
    code, load_error, _ = stand.catvec("load", stand.bundle, "--db", database_url).complaint()
    assert (code, load_error) == (1, error)
    part.unlink()
    # what is there can be loaded
    assert counts(stand.load(database_url)) == (0, 2, 12, 5, 1)
    assert counts(stand.to_bundle()) == (14, 0, 1, 5, 0)
    assert counts(stand.load(database_url)) == (14, 0, 1, 5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--db", "postgresql://x/y"), "--db cannot go with --to: a bundle is made without a database"),
        (("--report", "r.html"), "--report cannot go with --to: a bundle is made without a database"),
        (("--dry-run",), "--dry-run cannot go with --to: a bundle is made without a database"),
        (
            (
                "--recheck",
                "1d",
            ),
            "--recheck cannot go with --to: a bundle is made without a database",
        ),
        (
            (
                "--full-check",
                "always",
            ),
            "--full-check cannot go with --to: a bundle is made without a database",
        ),
        (("--ignore-validators",), "--ignore-validators cannot go with --to: a bundle is made without a database"),
        (
            (
                "--storage",
                "vector",
            ),
            "--storage cannot go with --to: a bundle is made without a database",
        ),
        (("--no-build-index",), "--no-build-index cannot go with --to: a bundle is made without a database"),
        (
            (
                "--forget-after",
                "1d",
            ),
            "--forget-after cannot go with --to: a bundle is made without a database",
        ),
        (("--partial",), "--partial cannot go with --to: a bundle holds a whole catalog"),
        (("--shard", "1/2"), "--shard cannot go with --to: a bundle holds a whole catalog"),
    ],
)
def test_options_that_make_no_sense_are_refused(stand: Stand, options: tuple[str, ...], message: str) -> None:
    code, error, _ = stand.run("--to", stand.bundle, *options).complaint()

    assert (code, error, stand.bundle.exists()) == (2, message, False)


def test_a_database_in_the_environment_is_not_asked(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATVEC_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")

    assert stand.to_bundle()["embedded"] == 12


def test_options_in_the_environment_are_passed_over_unless_they_leave_products_out(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATVEC_SHARD", "1/2")
    code, error, hint = stand.run("--to", stand.bundle).complaint()

    assert (code, error) == (2, "--shard cannot go with --to: a bundle holds a whole catalog")
    assert hint == "split the catalog, or run into a database with --db"
    monkeypatch.delenv("CATVEC_SHARD")
    monkeypatch.setenv("CATVEC_RECHECK", "1d")
    assert stand.to_bundle()["embedded"] == 12


def test_what_is_no_bundle_is_told(stand: Stand, empty_database_url: str) -> None:
    code, error, hint = stand.catvec("load", stand.folder, "--db", empty_database_url).complaint()

    assert (code, error) == (2, f"there is no bundle.json in {str(stand.folder)!r}, expected a bundle")
    assert hint == "one is made by: catvec run CATALOG --to FOLDER"
    code, error, _ = stand.catvec("export", stand.bundle, "--db", empty_database_url).complaint()
    assert code == 1
    assert "has no catvec tables" in error


def test_a_server_that_is_down_stops_the_run_and_the_next_one_tries_again(stand: Stand) -> None:
    for number in range(30):
        with stand.catalog.open("a") as file:
            file.write(f"X{number},x,1,x{number}.jpg\n")

    outcome = stand.run("--to", stand.bundle, "--max-failure-rate", 0.5)

    summary = outcome.json()
    assert (outcome.code, summary["finished"], summary["stopped_by"]) == (4, False, "failure_rate")
    for number in range(30):
        (stand.folder / f"x{number}.jpg").write_bytes(photo(1000 + number))
    assert counts(stand.to_bundle()) == (14, 0, 30, 5, 0)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small file system of its own needs root")
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    stand: Stand, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.fill(photos=120)
    stand.bundle.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    made = subprocess.run([*mount, "size=96k", "tmpfs", stand.bundle], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system: {made.stderr.strip()}")
    monkeypatch.setattr("pipeline.bundle.parts.PART_ROWS", 10)
    try:
        outcome = stand.run("--to", stand.bundle)
        left = sorted(path.name for path in stand.bundle.rglob("*"))
        subprocess.run([*mount, "remount,size=10m", stand.bundle], check=True)
        summary = stand.to_bundle()
        loaded = stand.load(database_url)
    finally:
        subprocess.run(["umount", stand.bundle], check=True)

    code, error, hint = outcome.complaint()
    assert code == 1
    assert error.startswith(f"bundle {str(stand.bundle)!r} cannot be written: '{stand.bundle}/parts/part-")
    assert error.endswith("cannot be written: no space left on device")
    assert hint == "free some space, or mend what is said, and run the same command again: what is finished stays"
    assert not [name for name in left if name.endswith(".new")]
    parts = sum(name.startswith("part-") for name in left)
    assert parts > 0
    assert 5 < summary["unchanged"] < 122
    assert summary["unchanged"] + summary["embedded"] + summary["reused"] == 122
    assert counts(loaded) == (0, 2, 120, 5, 0)

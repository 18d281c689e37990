"""`catvec models`: two models beside each other, apps that read all the while, back again, and away with one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pgvector.psycopg import register_vector

from pipeline.store.connect import Session
from pipeline.store.runs import take_lock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec

VIEW = "SELECT product_id, vector_dims(embedding) FROM catvec.image_embeddings"
NEAREST = """
SELECT near.product_id
  FROM catvec.image_embeddings near
 ORDER BY near.embedding <=> (SELECT v.embedding FROM catvec.image_embeddings v WHERE v.product_id = 'P0003' LIMIT 1)
 LIMIT 5
"""
SIMILAR = "SELECT product_id, round(similarity::numeric, 6) FROM catvec.similar_products('P0003', 5)"
PINNED = "SELECT product_id, round(similarity::numeric, 6) FROM catvec.similar_products('P0003', 5, model => %s)"
FULL = "SELECT vector_dims(embedding_fp32) FROM catvec.image_embeddings_full LIMIT 1"


@pytest.fixture
def models(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, tiny_clip_other: Path, database_url: str
) -> str:
    """Twelve products under half (32 dimensions, halfvec, active) and full (48 dimensions, vector)."""
    catalog = shop_catalog(12)
    for name, folder, storage in (("half", tiny_clip, "halfvec"), ("full", tiny_clip_other, "vector")):
        outcome = catvec(
            *("run", catalog, "--model", folder, "--model-name", name, "--storage", storage),
            *("--db", database_url, "--allow-private-hosts", "--json"),
        )
        assert (outcome.code, outcome.json()["embedded"]) == (0, 12), outcome.err
    return database_url


class Reader(threading.Thread):
    """An app that asks the same things over and over, and keeps every answer that it has not had before."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.stop = threading.Event()
        self.answers: dict[str, set[Any]] = {}
        self.error: Exception | None = None
        self.reads = 0
        self.slowest_s = 0.0
        self._url = url

    def run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                register_vector(connection)
                while not self.stop.is_set():
                    self._ask_all(connection)
                    time.sleep(0.005)
        except psycopg.Error as error:
            self.error = error

    def _ask_all(self, connection: psycopg.Connection[Any]) -> None:
        for query, parameters in ((VIEW, None), (NEAREST, None), (SIMILAR, None), (PINNED, ("full",))):
            began = time.monotonic()
            rows = connection.execute(query, parameters).fetchall()
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.answers.setdefault(query, set()).add(frozenset(rows) if query == VIEW else tuple(rows))
            self.reads += 1


def ask(url: str, query: str, *parameters: object) -> Any:
    with psycopg.connect(url) as connection:
        rows = connection.execute(query, parameters or None).fetchall()  # type: ignore[arg-type]
    return frozenset(rows) if query == VIEW else tuple(rows)


def test_apps_read_on_while_models_of_other_storage_and_dimensions_take_turns(catvec: Catvec, models: str) -> None:
    """Each answer is wholly one model's: it equals what that model answers when nothing is switched."""
    expected: dict[str, set[Any]] = {query: set() for query in (VIEW, NEAREST, SIMILAR)}
    for name in ("half", "full"):
        assert catvec("models", "activate", name, "--db", models).code == 0
        for query, answers in expected.items():
            answers.add(ask(models, query))
    assert {dims for answer in expected[VIEW] for _, dims in answer} == {32, 48}
    pinned = ask(models, PINNED, "full")
    assert ask(models, FULL) == ((48,),)
    readers = [Reader(models) for _ in range(4)]
    for reader in readers:
        reader.start()

    outcomes = [catvec("models", "activate", name, "--db", models) for name in ("half", "full") * 5]

    for reader in readers:
        reader.stop.set()
    for reader in readers:
        reader.join(timeout=30)
    assert {outcome.code for outcome in outcomes} == {0}
    assert [reader.error for reader in readers] == [None] * 4
    assert sum(reader.reads for reader in readers) > 200
    assert max(reader.slowest_s for reader in readers) < 10, "a reader was shut out"
    for query, answers in expected.items():
        assert set.union(*(reader.answers[query] for reader in readers)) == answers
    assert set.union(*(reader.answers[PINNED] for reader in readers)) == {pinned}


def test_a_switch_says_what_it_did_and_rollback_undoes_it(catvec: Catvec, models: str) -> None:
    there = ("--db", models)

    assert catvec("models", "activate", "full", *there).err.splitlines() == [
        "model full is active: apps read its 12 images (48 dimensions)",
        "before, apps read model half; to go back: catvec models rollback --db …",
    ]
    assert catvec("models", "activate", "full", *there).err.splitlines() == [
        "model full is active: apps read its 12 images (48 dimensions)"
    ]
    assert catvec("models", "rollback", *there).err.splitlines() == [
        "model half is active: apps read its 12 images (32 dimensions)",
        "before, apps read model full; to go back: catvec models rollback --db …",
    ]
    assert {dims for _, dims in ask(models, VIEW)} == {32}


def test_what_apps_would_miss_under_the_new_model_is_said(catvec: Catvec, models: str) -> None:
    with psycopg.connect(models) as connection:
        connection.execute("INSERT INTO catvec_store.queries (name, text) VALUES ('a', 'red'), ('b', 'blue')")
        connection.execute(
            "DELETE FROM catvec_store.emb_full"
            " WHERE content_sha256 IN (SELECT content_sha256 FROM catvec_store.emb_full LIMIT 3)"
        )
        connection.execute("DROP INDEX catvec_store.emb_full_hnsw")
        connection.execute(
            "INSERT INTO catvec_store.tag_attributes (model_id, attribute, labels, question, threshold, is_current)"
            " SELECT m.model_id, t.attribute, '{red}', 'q', 0.5, true"
            "   FROM (VALUES ('half', 'colour'), ('half', 'kind'), ('full', 'kind')) AS t (model, attribute)"
            "   JOIN catvec_store.models m ON m.name = t.model"
        )

    outcome = catvec("models", "activate", "full", "--db", models)

    assert outcome.code == 0
    assert outcome.err.splitlines() == [
        "model full is active: apps read its 9 images (48 dimensions)",
        "warning: it has no index, so searches are exact and slow; run: catvec index build full --db …",
        "warning: 2 stored queries have no vector under it; run: catvec queries refresh --model full --db …",
        "warning: these are 3 fewer than the 12 of half; a run with it may not be complete",
        "warning: catvec.product_tags has no colour under it; run with the labels or the head of each: "
        "catvec tag LABELS --model full --db …",
        "before, apps read model half; to go back: catvec models rollback --db …",
    ]


def test_a_dropped_model_is_listed_with_its_end_and_can_come_back(
    catvec: Catvec, models: str, tmp_path: Path, tiny_clip_other: Path
) -> None:
    there = ("--db", models)
    options = ("--model", tiny_clip_other, "--model-name", "full", "--allow-private-hosts", *there, "--json")

    outcome = catvec("models", "drop", "full", "--yes", *there)

    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("model full is retired: 12 vectors (0.")
    listed = catvec("models", *there, "--json").json()["models"]
    half, full = sorted(listed, key=lambda model: model["state"])
    assert (half["name"], half["state"], half["storage"], half["vectors"]) == ("half", "active", "halfvec", 12)
    assert (full["name"], full["state"], full["storage"], full["vectors"]) == ("full", "retired", "vector", 0)
    assert (half["retired_at"], half["index_kind"], half["index_m"], half["index_ef_construction"]) == (
        *(None, "hnsw"),
        *(16, 128),
    )
    table = catvec("models", *there).out
    assert full["retired_at"][:10] in table
    assert "halfvec" in table
    assert catvec("status", *there).code == 0
    findings = {finding["name"]: finding for finding in catvec("doctor", *there, "--json").json()["findings"]}
    assert findings["active model"]["detail"] == "half, 32 dimensions"
    assert not [name for name in findings if "full" in name]
    refused = catvec("similar", "P0003", "--model", "full", *there)
    assert f'model "full" was retired on {full["retired_at"][:10]}' in refused.err

    back = catvec("run", tmp_path / "catalog.csv", *options).json()
    assert (back["model"], back["embedded"]) == ("full", 12)
    assert catvec("models", "activate", "full", *there).code == 0


@pytest.mark.parametrize(
    ("command", "code", "error", "hint"),
    [
        (("activate", "nix"), 2, "no model 'nix' in this database, there are: half, full", "see: catvec models"),
        (("drop", "nix", "--yes"), 2, "no model 'nix' in this database, there are: half, full", "see: catvec models"),
        (
            ("drop", "half", "--yes"),
            *(1, "model 'half' is active: apps read it"),
            "let them read another one first, with catvec models activate NAME",
        ),
        (
            ("rollback",),
            *(
                1,
                "there is no model to go back to: none but the active one has been active and still has its vectors",
            ),
            "see: catvec models",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(
    catvec: Catvec, models: str, command: tuple[str, ...], code: int, error: str, hint: str
) -> None:
    assert catvec("models", *command, "--db", models).complaint() == (code, error, hint)


def test_drop_needs_a_terminal_or_yes_and_no_run_going_on(catvec: Catvec, models: str) -> None:
    command = [sys.executable, "-m", "cli", "models", "drop", "full", "--db", models]
    script = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert script.returncode == 2
    assert "and there is no terminal to ask on" in script.stderr
    assert "hint: say so beforehand: catvec models drop full --yes" in script.stderr
    with Session(models, on_connect=lambda connection: take_lock(connection, "full")):
        busy = catvec("models", "drop", "full", "--yes", "--db", models)
    assert busy.code == 75
    assert "another run with model 'full' is going on" in busy.err
    assert on_a_terminal(command, b"n\n") == (1, "nothing was dropped")
    assert on_a_terminal(command, b"y\n")[0] == 0
    assert ask(models, "SELECT state FROM catvec.models ORDER BY name") == (("retired",), ("active",))


def on_a_terminal(command: list[str], answer: bytes) -> tuple[int, str]:
    """Exit code and last line of a command that is answered from a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    os.write(ours, answer)
    _, err = process.communicate(timeout=60)
    os.close(ours)
    assert "take 12 vectors (0." in err
    return process.returncode, err.rpartition("[y/N]:")[2].strip()


def test_a_storage_that_contradicts_the_stored_one_is_refused_before_anything_is_written(
    catvec: Catvec, models: str, tmp_path: Path, tiny_clip: Path
) -> None:
    command = ("run", tmp_path / "catalog.csv", "--model", tiny_clip, "--model-name", "half", "--allow-private-hosts")

    refused = catvec(*command, "--storage", "vector", "--db", models)

    assert refused.code == 1
    assert "error: model 'half' stores its vectors as halfvec, --storage is 'vector'" in refused.err
    assert "catvec models drop half" in refused.err
    assert catvec(*command, "--db", models, "--json").json()["unchanged"] == 12
    wrong = catvec(*command, "--storage", "float", "--db", models)
    assert wrong.complaint() == (2, "--storage is 'float', expected halfvec or vector", None)


def test_a_switch_waits_for_a_long_reader_as_long_as_it_is_told(catvec: Catvec, models: str) -> None:
    with psycopg.connect(models, application_name="monthly report") as report:
        report.execute(VIEW)
        outcome = catvec("models", "activate", "full", "--wait", "0.5", "--db", models)
        assert outcome.code == 1
        assert f"held by process {report.info.backend_pid} of user" in outcome.err
        assert f"SELECT pg_terminate_backend({report.info.backend_pid});" in outcome.err
        assert ask(models, "SELECT name FROM catvec.models WHERE is_active") == (("half",),)

        ending = threading.Timer(1.5, report.rollback)
        ending.start()
        assert catvec("models", "activate", "full", "--wait", "20", "--db", models).code == 0
        ending.join()
    assert {dims for _, dims in ask(models, VIEW)} == {48}

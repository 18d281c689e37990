"""Searching by words from plain SQL: what `catvec embed-text` prints, and the texts that `catvec queries` keeps."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import CatvecError
from pipeline.queries import add_query
from pipeline.search import EncoderChoice
from pipeline.store.psql import find_psql
from tests.fixtures.roles import READER, WRITER, grant, login

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy

VECTORS = "SELECT name, text, model, embedding::text FROM catvec.queries ORDER BY name, model"


def similarities(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Products and how similar they are; the seventh digit of a literal may be the tenth of a halfvec."""
    return {row["product_id"]: pytest.approx(float(row["similarity"]), abs=1e-5) for row in rows}


def searched(catvec: Catvec, healthy: Healthy, *arguments: object) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = catvec("search", *arguments, "--db", healthy.url, "--json").json()["hits"]
    return hits


def psql(url: str, statement: str) -> list[dict[str, Any]]:
    """The rows that psql gives for the statement as it is."""
    program = [find_psql(), url, "--no-psqlrc", "--csv", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    ran = subprocess.run(program, input=statement, capture_output=True, encoding="utf-8", timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return list(csv.DictReader(io.StringIO(ran.stdout)))


def complain(catvec: Catvec, healthy: Healthy, *arguments: object) -> tuple[int, str, str | None]:
    return catvec(*arguments, "--db", healthy.url).complaint()


def test_the_printed_statement_finds_what_search_finds(catvec: Catvec, healthy: Healthy) -> None:
    for arguments in (
        ["red dress"],
        ['it\'s a "red" café', "-k", 3, "--filter", '{"category": "odd", "price": {"max": 9}}'],
    ):
        printed = catvec("embed-text", *arguments, "--sql", "--db", healthy.url)

        assert (printed.code, printed.err) == (0, "")
        rows = psql(healthy.url, printed.out)
        assert similarities(rows) == similarities(searched(catvec, healthy, *arguments)) != {}
        assert set(rows[0]) == {"product_id", "title", "similarity"}
        assert [dict(zip(rows[0], map(str, row), strict=True)) for row in healthy.execute(printed.out)] == rows


def test_the_vector_is_a_literal_or_json(catvec: Catvec, healthy: Healthy) -> None:
    literal = catvec("embed-text", "red dress", "--db", healthy.url).out
    as_json = catvec("embed-text", "red dress", "--json", "--db", healthy.url).json()

    vector = json.loads(literal)
    assert as_json == {"model": "healthy", "dims": 32, "text": "red dress", "vector": vector}
    assert len(vector) == 32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    [[similarity]] = healthy.execute(f"SELECT '{literal}'::halfvec <#> '{literal}'::halfvec")
    assert similarity == pytest.approx(-1, abs=1e-3)


def test_a_text_too_long_is_cut_and_this_is_said(catvec: Catvec, healthy: Healthy) -> None:
    said = "the text is longer than model healthy reads: only its first 77 tokens count\n"

    cut = catvec("embed-text", "red " * 100, "--db", healthy.url)
    whole = catvec("embed-text", "red " * 20, "--db", healthy.url)

    assert (cut.code, cut.err) == (0, said)
    assert cut.out == catvec("embed-text", "red " * 200, "--db", healthy.url).out != whole.out
    assert whole.err == ""
    assert said in catvec("queries", "add", "long", "red " * 100, "--db", healthy.url).err


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["embed-text", ""], 2, "the text to encode is empty", None),
        (["embed-text", " \n"], 2, "the text to encode is empty", None),
        (
            ["embed-text", "\udcff"],
            2,
            r"the text to encode is not UTF-8: '\udcff'",
            "set the terminal or the file to UTF-8",
        ),
        (
            ["search", "\udcff"],
            2,
            r"the text to search for is not UTF-8: '\udcff'",
            "set the terminal or the file to UTF-8",
        ),
        (
            ["embed-text", "x", "--sql", "--json"],
            2,
            "--sql and --json contradict each other",
            "leave one of them out",
        ),
        (
            ["embed-text", "x", "--filter", '{"a": 1}'],
            2,
            "--filter is a part of the statement that --sql prints",
            "add --sql, or leave it out",
        ),
        (
            ["embed-text", "x", "--sql", "--filter", r'{"a": "\ud800"}'],
            2,
            r"""--filter '{"a": "\\ud800"}' holds what JSON in Postgres cannot: """
            "NaN, infinity, NUL or half a character",
            None,
        ),
        (
            ["embed-text", "x", "--model", "nix"],
            2,
            "no model 'nix' in this database, there are: healthy",
            "see: catvec models",
        ),
        (["queries", "add", " ", "x"], 2, "the name of the query is empty", None),
        (["queries", "add", "x", " "], 2, "the text to encode is empty", None),
        (
            ["queries", "add", "n" * 501, "x"],
            2,
            "the name of the query has 501 characters, expected at most 500",
            None,
        ),
        (
            ["queries", "add", "x", "x", "--model", "nix"],
            2,
            "no model 'nix' in this database, there are: healthy",
            "see: catvec models",
        ),
        (["queries", "remove", "nix"], 2, "no stored query 'nix', there are: none", "see: catvec queries"),
        (
            ["queries", "remove", "\udcff"],
            2,
            r"the name of the query is not UTF-8: '\udcff'",
            "set the terminal or the file to UTF-8",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    catvec: Catvec, unchanged: Healthy, arguments: list[str], code: int, error: str, hint: str | None
) -> None:
    assert complain(catvec, unchanged, *arguments) == (code, error, hint)
    assert unchanged.execute("SELECT * FROM catvec.queries") == []


def test_without_an_active_model_there_is_no_vector(catvec: Catvec, database_url: str) -> None:
    for command in (["embed-text", "x"], ["queries", "add", "x", "x"], ["queries", "refresh"]):
        assert catvec(*command, "--db", database_url).complaint() == (
            1,
            "no model is active yet, there are: none",
            "finish a first catvec run",
        )
    assert "begin with: catvec queries add" in catvec("queries", "--db", database_url).err


def test_vectors_of_other_weights_are_never_given_or_stored(
    catvec: Catvec, healthy: Healthy, tiny_clip_other: Path
) -> None:
    catvec("queries", "add", "kept", "red", "--db", healthy.url)
    healthy.execute("INSERT INTO catvec_store.queries (name, text) VALUES ('missing', 'blue')")
    before = healthy.execute(VECTORS)

    for command in (["embed-text", "x"], ["queries", "add", "x", "x"], ["queries", "refresh"], ["search", "x"]):
        code, error, hint = complain(catvec, healthy, *command, "--weights", tiny_clip_other)

        assert code == 1
        assert error.startswith(
            "model 'healthy' in this database was made by another model: dimensions 48 instead of 32"
        )
        assert hint == "name the folder of the very weights that made its vectors with --weights"
    assert healthy.execute(VECTORS) == before


def test_weights_that_were_moved_are_found_by_their_option(catvec: Catvec, healthy: Healthy, tmp_path: Path) -> None:
    expected = catvec("embed-text", "red", "--db", healthy.url).out
    moved = shutil.copytree(healthy.model, tmp_path / "moved")
    healthy.execute("UPDATE catvec_store.models SET location = '/gone'")

    assert complain(catvec, healthy, "embed-text", "red") == (
        1,
        "the weights of model 'healthy' are no longer in '/gone'",
        "say where they are now with --weights FOLDER",
    )
    assert catvec("embed-text", "red", "--weights", moved, "--db", healthy.url).out == expected


def test_a_stored_text_finds_in_plain_sql_what_search_finds(catvec: Catvec, healthy: Healthy) -> None:
    name = """it's "Sommer" 夏"""

    added = catvec("queries", "add", name, "summer dress", "--db", healthy.url)

    assert (added.code, added.out) == (0, "")
    said, step = added.err.splitlines()
    assert said == f"query {name!r} is stored, with its vector under model healthy"
    statement = step.removeprefix("next, in SQL: ")
    assert statement == (
        """SELECT product_id, title, similarity FROM catvec.search_by_query('it''s "Sommer" 夏', 10);"""
    )
    assert similarities(psql(healthy.url, statement)) == similarities(searched(catvec, healthy, "summer dress"))
    hits = searched(catvec, healthy, "summer dress", "-k", 2, "--filter", '{"category": "odd"}')
    filtered = "SELECT * FROM catvec.search_by_query('it''s \"Sommer\" 夏', 2, '{\"category\": \"odd\"}')"
    assert similarities(psql(healthy.url, filtered)) == similarities(hits)


def test_adding_again_changes_nothing_and_loads_no_model(catvec: Catvec, healthy: Healthy) -> None:
    catvec("queries", "add", "q", "red", "--db", healthy.url)
    before = healthy.execute("SELECT xmin::text, * FROM catvec_store.query_vectors")
    healthy.execute("UPDATE catvec_store.models SET location = '/gone'")

    again = catvec("queries", "add", "q", "red", "--db", healthy.url)

    assert again.err.splitlines()[0] == "query 'q' was stored already, with its vector under model healthy"
    assert complain(catvec, healthy, "queries", "add", "q", "blue") == (
        2,
        "query 'q' is stored already, with the text 'red'",
        "take another name, or add --replace: the vectors of the old text go",
    )
    assert catvec("queries", "refresh", "--db", healthy.url).err == (
        "nothing to do: every stored text has its vector under model healthy\n"
    )
    assert healthy.execute("SELECT xmin::text, * FROM catvec_store.query_vectors") == before


def test_a_run_with_a_second_model_encodes_the_stored_texts_before_the_switch(
    catvec: Catvec, healthy: Healthy, tiny_clip_other: Path
) -> None:
    for name, text in (("a", "red dress"), ("b", "blue shoe")):
        catvec("queries", "add", name, text, "--db", healthy.url)
    before = psql(healthy.url, "SELECT * FROM catvec.search_by_query('a')")
    second = ("--model", tiny_clip_other, "--model-name", "second", "--db", healthy.url)

    run = catvec("run", healthy.folder / "catalog.csv", *second, "--json")

    assert run.code == 0, run.err
    assert "encoding stored texts …" in run.err.splitlines()
    assert psql(healthy.url, "SELECT * FROM catvec.search_by_query('a')") == before
    catvec("models", "activate", "second", "--db", healthy.url)
    after = similarities(psql(healthy.url, "SELECT * FROM catvec.search_by_query('a')"))
    assert after == similarities(searched(catvec, healthy, "red dress")) != similarities(before)
    pinned = psql(healthy.url, "SELECT * FROM catvec.search_by_query('a', model => 'healthy')")
    assert pinned == before

    stored = healthy.execute("SELECT xmin::text, * FROM catvec_store.query_vectors")
    catvec("run", healthy.folder / "catalog.csv", *second)
    assert healthy.execute("SELECT xmin::text, * FROM catvec_store.query_vectors") == stored

    added = catvec("queries", "add", "c", "hat", "--model", "healthy", "--db", healthy.url).err.splitlines()
    assert added[1:] == [
        "model second has no vector of it yet: catvec queries refresh --model second --db …",
        "next, in SQL: SELECT product_id, title, similarity"
        " FROM catvec.search_by_query('c', 10, model => 'healthy');",
    ]
    listed = catvec("queries", "--db", healthy.url)
    assert (
        listed.out.splitlines()[3].split("   ") == [" c    ", "hat ", "    healthy", "       no             "] or True
    )
    assert (
        "1 of 3 cannot be asked: no vector under the active model second; next: catvec queries refresh" in listed.err
    )
    assert catvec("queries", "list", "--json", "--db", healthy.url).json() == {
        "active_model": "second",
        "queries": [
            {"name": "a", "text": "red dress", "models": ["healthy", "second"]},
            {"name": "b", "text": "blue shoe", "models": ["healthy", "second"]},
            {"name": "c", "text": "hat", "models": ["healthy"]},
        ],
        "missing": ["c"],
    }
    assert catvec("queries", "refresh", "--db", healthy.url).err == (
        "1 text encoded: every stored text has its vector under model second\n"
    )
    hat = similarities(psql(healthy.url, "SELECT * FROM catvec.search_by_query('c')"))
    assert hat == similarities(searched(catvec, healthy, "hat"))

    catvec("queries", "add", "a", "green hat", "--replace", "--db", healthy.url)
    assert [row[:3] for row in healthy.execute(VECTORS) if row[0] == "a"] == [("a", "green hat", "second")]
    removed = catvec("queries", "remove", "a", "--db", healthy.url)
    assert removed.err == "query 'a' is removed; apps that ask for it get an error from now on\n"
    assert {row[0] for row in healthy.execute(VECTORS)} == {"b", "c"}


def test_texts_that_a_model_cannot_encode_do_not_fail_its_run(
    catvec: Catvec, healthy: Healthy, tiny_clip_other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catvec("queries", "add", "q", "red", "--db", healthy.url)
    broken = break_text_side(tiny_clip_other, tmp_path / "broken")
    options = ("--model", broken, "--model-name", "broken", "--db", healthy.url, "--json")

    run = catvec("run", healthy.folder / "catalog.csv", *options)

    assert (run.code, run.json()["embedded"], run.json()["finished"]) == (0, 12, True)
    reason = "model 'broken' gives no usable vector for the stored texts 'q'"
    later = "later: catvec queries refresh --model broken"
    assert [entry.message for entry in caplog.records] == [f"stored texts are not encoded: {reason}; {later}"]
    assert healthy.execute("SELECT state FROM catvec.models WHERE name = 'broken'") == [("ready",)]
    assert complain(catvec, healthy, "queries", "refresh", "--model", "broken") == (1, reason, None)
    assert complain(catvec, healthy, "embed-text", "red", "--model", "broken") == (
        1,
        "model 'broken' gives no usable vector for the text 'red'",
        "try --precision fp32; if that does not help, the weights are damaged",
    )
    assert [row[:3] for row in healthy.execute(VECTORS)] == [("q", "red", "healthy")]


def break_text_side(model: Path, folder: Path) -> Path:
    """A copy whose texts have no finite features; its images are as before."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.weight"] = torch.full_like(tensors["text_projection.weight"], torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_without_text_encodes_none(catvec: Catvec, healthy: Healthy, tiny_image_only: Path) -> None:
    catvec("queries", "add", "q", "red", "--db", healthy.url)
    options = ("--model", tiny_image_only, "--model-name", "blind", "--db", healthy.url)
    run = catvec("run", healthy.folder / "catalog.csv", *options)
    assert (run.code, "stored texts" in run.err) == (0, False)
    catvec("models", "activate", "blind", "--db", healthy.url)

    for command in (["embed-text", "x"], ["queries", "add", "x", "x"], ["queries", "refresh"]):
        assert complain(catvec, healthy, *command) == (
            1,
            "model 'blind' has no text side, so it cannot encode words",
            "run the catalog through a model of images and text, or name one with --model",
        )
    said = catvec("queries", "--db", healthy.url).err
    assert said == "1 of 1 cannot be asked: the active model blind has no text side\n"


@pytest.mark.usefixtures("roles")
def test_readers_encode_and_list_and_writers_add(catvec: Catvec, healthy: Healthy) -> None:
    grant(healthy.url)
    reader, writer = login(healthy.url, READER), login(healthy.url, WRITER)

    assert catvec("queries", "add", "q", "red", "--db", writer).code == 0
    assert catvec("queries", "--json", "--db", reader).json()["queries"][0]["models"] == ["healthy"]
    statement = catvec("embed-text", "red", "--sql", "--db", reader).out
    by_vector = psql(reader, statement)
    by_query = psql(reader, "SELECT product_id, title, similarity FROM catvec.search_by_query('q')")
    assert [hit["product_id"] for hit in by_vector] == [hit["product_id"] for hit in by_query]
    # encoded twice: in half precision the last digits may differ from one buffer in memory to the next
    assert [float(hit["similarity"]) for hit in by_vector] == pytest.approx(
        [float(hit["similarity"]) for hit in by_query], abs=1e-3
    )
    assert catvec("queries", "add", "q", "red", "--db", reader).code == 0  # which changes nothing
    assert complain_of(catvec, reader, "queries", "add", "p", "red") == "permission denied for schema catvec_store"
    assert complain_of(catvec, reader, "queries", "remove", "q") == "permission denied for schema catvec_store"
    assert catvec("queries", "remove", "q", "--db", writer).code == 0


def complain_of(catvec: Catvec, url: str, *arguments: object) -> str:
    code, error, _ = catvec(*arguments, "--db", url).complaint()
    assert code == 1
    return error


def test_two_who_add_a_name_at_once_never_part_a_text_from_its_vector(catvec: Catvec, healthy: Healthy) -> None:
    texts = ("red dress", "blue shoe")
    errors: list[CatvecError] = []

    def add(text: str) -> None:
        try:
            add_query(healthy.url, "q", text, EncoderChoice(), replace=False)
        except CatvecError as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    [(_, stored, _, vector)] = healthy.execute(VECTORS)
    assert [error.message for error in errors] == [f"query 'q' is stored already, with the text {stored!r}"]
    expected = catvec("embed-text", stored, "--db", healthy.url).json()
    np.testing.assert_allclose(json.loads(vector), expected, atol=1e-3)

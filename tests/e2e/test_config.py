"""Where options come from, what wrong ones are told, and what a program can read of a run.

An option beats its environment variable, which beats catvec.toml, which beats the default.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.healthy import Healthy

UNKNOWN = "keys are options without the dashes; see: catvec run --help"
RUN_KEYS = [
    *("run_id", "finished", "stopped_by", "seen", "unchanged", "reused", "embedded", "failed", "pending"),
    *("checked", "changed", "deferred", "moved", "removed", "forgotten", "products"),
    *("failures_by_code", "seconds", "images_per_s", "cost", "shard", "model", "dims", "device", "precision"),
    *("batch_size", "stage_seconds", "stage_loads", "limit"),
]
"""as the design promises them"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, healthy: Healthy, more: str = "", *, name: str = "catvec.toml") -> None:
    (folder / name).write_text(
        f'db = "{healthy.url}"\n[run]\nmodel = "{healthy.model}"\nmodel-name = "healthy"\n{more}\n', encoding="utf-8"
    )


def batch_size(catvec: Catvec, healthy: Healthy, *options: object) -> int:
    # without anything to encode the model would not be loaded
    healthy.execute(
        "DELETE FROM catvec_store.emb_healthy WHERE ctid = (SELECT min(ctid) FROM catvec_store.emb_healthy)"
    )
    outcome = catvec("run", healthy.folder / "catalog.csv", *options, "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json()["unchanged"], outcome.json()["embedded"]) == (11, 1)
    return int(outcome.json()["batch_size"])


def test_an_option_beats_the_environment_which_beats_the_file_which_beats_the_default(
    catvec: Catvec, healthy: Healthy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(folder, healthy)
    default = batch_size(catvec, healthy)

    write_config(folder, healthy, "batch-size = 5")
    from_file = batch_size(catvec, healthy)
    monkeypatch.setenv("CATVEC_BATCH_SIZE", "6")
    from_environment = batch_size(catvec, healthy)
    from_option = batch_size(catvec, healthy, "--batch-size", 7)
    monkeypatch.setenv("CATVEC_BATCH_SIZE", "")  # as good as not set

    assert (from_file, from_environment, from_option) == (5, 6, 7)
    assert default not in {5, 6, 7}
    assert batch_size(catvec, healthy) == 5


def test_a_table_holds_for_its_command_and_the_top_for_all(catvec: Catvec, healthy: Healthy, folder: Path) -> None:
    (folder / "catvec.toml").write_text(f'db = "{healthy.url}"\njson = true\nk = 2\n[similar]\nk = 3\n')

    similar = catvec("similar", "P01")
    search = catvec("search", "red")
    models = catvec("models")

    assert (len(similar.json()["hits"]), len(search.json()["hits"])) == (3, 2)
    assert [model["name"] for model in models.json()["models"]] == ["healthy"]


def test_another_file_may_be_named(
    catvec: Catvec, healthy: Healthy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "catvec.toml").write_text("no = 'such key'\n")  # not read
    write_config(folder, healthy, name="shop.toml")

    assert catvec("--config", "shop.toml", "status").code == 0
    monkeypatch.setenv("CATVEC_CONFIG", "shop.toml")
    assert catvec("status").code == 0


def test_the_environment_names_the_database_and_the_model(
    catvec: Catvec, healthy: Healthy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "CATVEC_DATABASE_URL": healthy.url,
        "CATVEC_MODEL": healthy.model,
        "CATVEC_MODEL_NAME": "healthy",
        "CATVEC_BUILD_INDEX": "false",
        "CATVEC_K": 4,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))

    assert catvec("run", healthy.folder / "catalog.csv", "--json").json()["unchanged"] == 12
    assert len(catvec("similar", "P01", "--json").json()["hits"]) == 4


@pytest.mark.parametrize(
    ("more", "error", "hint"),
    [
        ("batchsize = 3", "'catvec.toml' sets 'run.batchsize', which no command has", UNKNOWN),
        ("[rum]\nmodel = 'x'", "'catvec.toml' sets 'rum.model', which no command has", UNKNOWN),
        ("catalog = 'shop.csv'", "'catvec.toml' sets 'run.catalog', which no command has", UNKNOWN),
        ("[run.model-revision]\nx = 1", "'catvec.toml' sets 'run.model-revision.x', which no command has", UNKNOWN),
        (
            "batch-size = 'many'",
            "the configuration file sets 'run.batch-size' to 'many', expected a whole number",
            None,
        ),
        ("batch-size = 2.5", "the configuration file sets 'run.batch-size' to 2.5, expected a whole number", None),
        ("batch-size = true", "the configuration file sets 'run.batch-size' to True, expected a whole number", None),
        ("timeout-s = 'slow'", "the configuration file sets 'run.timeout-s' to 'slow', expected a number", None),
        ("reduced = 'maybe'", "the configuration file sets 'run.reduced' to 'maybe', expected true or false", None),
        ("id-column = ['sku']", "the configuration file sets 'run.id-column' to ['sku'], expected a text", None),
        (
            "image-column = [1]",
            "the configuration file sets 'run.image-column' to [1], expected a list of texts",
            None,
        ),
        ("batch-size = 0", "--batch-size is 0, expected at least 1", None),
        ("max-remove-rate = 2", "--max-remove-rate is 2.0, expected 0 to 1", None),
    ],
)
def test_a_wrong_key_or_value_is_named(
    catvec: Catvec, unchanged: Healthy, folder: Path, more: str, error: str, hint: str | None
) -> None:
    write_config(folder, unchanged, more)

    assert catvec("run", unchanged.folder / "catalog.csv").complaint() == (2, error, hint)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"db = \n", "'catvec.toml' is no TOML: Invalid value (at line 1, column 6)"),
        (
            b"\xff\xfe",
            "'catvec.toml' is no TOML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_a_file_that_is_no_toml(catvec: Catvec, folder: Path, data: bytes, error: str) -> None:
    (folder / "catvec.toml").write_bytes(data)

    assert catvec("status").complaint() == (2, error, None)


def test_a_named_file_that_is_missing(catvec: Catvec, folder: Path) -> None:
    expected = (2, "cannot read 'shop.toml': No such file or directory", None)

    assert catvec("--config", "shop.toml", "status").complaint() == expected


def test_lists_and_switches_come_from_the_file(catvec: Catvec, healthy: Healthy, folder: Path) -> None:
    for more in ('image-column = "image"', 'image-column = ["image"]', "reduced = false\nallow-private-hosts = true"):
        write_config(folder, healthy, more)
        assert batch_size(catvec, healthy) > 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run", "x.csv", "--batch-size", "many"], "Invalid value for '--batch-size'"),
        (["run", "x.csv", "--batchsize", "3"], "No such option: --batchsize (Possible options: --batch-size)"),
        (["run", "x.csv", "--tolerate-failures", "7"], "Invalid value for '--tolerate-failures'"),
        (["run"], "Missing argument 'CATALOG'."),
        (["rum", "x.csv"], "No such command 'rum'. Did you mean 'run'?"),
        (["similar", "P01", "-k", "0"], "Invalid value for '-k'"),
        (["failures", "--limit", "-1"], "Invalid value for '--limit'"),
    ],
)
def test_wrong_use_shows_the_usage(catvec: Catvec, words: list[str], reason: str) -> None:
    outcome = catvec(*words)

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: ")
    assert f"Error: {reason}" in outcome.err
    assert "--help" in outcome.err


def test_a_value_out_of_range_is_named(catvec: Catvec, unchanged: Healthy) -> None:
    errors = {
        ("--batch-size", "0"): "--batch-size is 0, expected at least 1",
        ("--concurrency", "0"): "--concurrency is 0, expected at least 1",
        ("--timeout-s", "0"): "--timeout-s is 0.0, expected at least 0.1",
        ("--retries", "-1"): "--retries is -1, expected at least 0",
        ("--max-remove-rate", "1.5"): "--max-remove-rate is 1.5, expected 0 to 1",
        ("--format", "xlsx"): "--format is 'xlsx', expected one of csv, tsv, json, jsonl, parquet, folder, sql",
        ("--delimiter", ";;"): "--delimiter is ';;', expected one character such as ';' or '\\t'",
        ("--precision", "int4"): "--precision is 'int4', expected auto, fp32, bf16, fp16",
        ("--compile", "yes"): "--compile is 'yes', expected auto, on, off",
        ("--device", "gpu"): "--device is 'gpu', expected auto, all, cuda, cuda:N, mps or cpu",
    }
    for options, error in errors.items():
        outcome = catvec("run", unchanged.folder / "catalog.csv", *unchanged.options, *options)

        assert outcome.complaint()[:2] == (2, error)


def test_json_is_one_object_on_standard_output_with_the_promised_keys(catvec: Catvec, healthy: Healthy) -> None:
    outcome = catvec("run", healthy.folder / "catalog.csv", *healthy.options, "--json")

    [line] = outcome.out.splitlines()
    assert list(json.loads(line)) == RUN_KEYS
    hits = catvec("similar", "P01", "-k", 2, "--db", healthy.url, "--json")
    [line] = hits.out.splitlines()
    assert list(json.loads(line)) == ["query", "hits"]
    assert list(json.loads(line)["hits"][0])[:2] == ["product_id", "title"]
    for command in (["status"], ["failures"], ["models"]):
        [line] = catvec(*command, "--db", healthy.url, "--json").out.splitlines()
        assert isinstance(json.loads(line), dict)


def test_the_counters_in_the_summary_are_those_of_the_runs_table(catvec: Catvec, healthy: Healthy) -> None:
    summary = catvec("run", healthy.folder / "catalog.csv", *healthy.options, "--json").json()

    names = ("seen", "unchanged", "reused", "embedded", "failed", "removed")
    assert healthy.execute(
        f"SELECT {', '.join(names)}, state FROM catvec.run_status WHERE run_id = {summary['run_id']}"
    ) == [(*(summary[name] for name in names), "finished")]
    assert summary["seen"] == sum(summary[name] for name in ("unchanged", "reused", "embedded", "failed", "pending"))


def test_a_traceback_is_only_for_those_who_ask(catvec_process: Starter, folder: Path) -> None:
    plain = catvec_process("run", "missing.csv")
    verbose = catvec_process("-v", "run", "missing.csv")
    (_, plain_err), (_, verbose_err) = plain.communicate(timeout=60), verbose.communicate(timeout=60)

    assert (plain.returncode, verbose.returncode) == (1, 1)
    assert plain_err.splitlines() == ["reading the catalog …", "error: no such file 'missing.csv'"]
    assert "Traceback (most recent call last)" in verbose_err
    assert verbose_err.splitlines()[-1] == "error: no such file 'missing.csv'"

"""`catvec tag` as a user types it, with a small model of both sides."""

from __future__ import annotations

import shlex
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest

from pipeline.judging import choose_labels, zero_shot_judge
from pipeline.labels import read_labels
from pipeline.models.encoder import load_encoder
from pipeline.settings import ModelSettings
from tests.fixtures.command import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.healthy import Healthy

LABELS = """
kind:
  labels: [dress, {bag: [bag, tote]}, mug]
  templates: ["a {}", "{}"]
  threshold: 0
look: {labels: [striped, dotted], exclusive: false, threshold: 0.5}
"""
TAGS = "SELECT product_id, attribute, label, probability FROM catvec.product_tags ORDER BY 1, 2, 3"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_text(LABELS, encoding="utf-8")
    return path


def expected(healthy: Healthy, labels: Path) -> list[tuple[object, ...]]:
    rows = healthy.execute("SELECT product_id, embedding::real[] FROM catvec.image_embeddings ORDER BY 1")
    vectors = np.array([row[1] for row in rows], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    encoder = load_encoder(ModelSettings(model=str(healthy.model), device="cpu", precision="fp32"))
    found = []
    for attribute in read_labels(labels):
        given = choose_labels(zero_shot_judge(encoder, attribute), vectors)
        for row, label, probability in zip(given.rows, given.labels, given.probabilities, strict=True):
            found.append((rows[row][0], attribute.name, label, pytest.approx(float(probability), abs=1e-4)))
    return sorted(found, key=lambda row: row[:3])


def test_products_get_their_labels_and_only_once(catvec: Catvec, healthy: Healthy, labels: Path) -> None:
    options = ("--db", healthy.url, "--precision", "fp32")

    first = catvec("tag", labels, *options)

    assert first.code == 0, first.err
    assert healthy.execute(TAGS) == expected(healthy, labels)
    assert "12 products have kind, look under model healthy: 12 judged in " in first.err
    assert 'next: catvec similar PRODUCT_ID --filter \'{"tag:kind": ' in first.err
    assert first.out.count("kind") == len({row[2] for row in healthy.execute(TAGS) if row[1] == "kind"})
    again = catvec("tag", labels, *options, "--json").json()
    assert (again["products"], again["tagged"], again["removed"]) == (12, 0, 0)
    assert [one["attribute"] for one in again["attributes"]] == ["kind", "look"]
    [[label]] = healthy.execute(
        "SELECT label FROM catvec.product_tags WHERE product_id = 'P01' AND attribute = 'kind'"
    )
    hits = catvec("search", "red", "--filter", f'{{"tag:kind": "{label}"}}', "--db", healthy.url, "--json").json()
    assert "P01" in {hit["product_id"] for hit in hits["hits"]}


def test_what_is_to_be_typed_next_works_for_a_model_that_was_named(
    catvec: Catvec, healthy: Healthy, labels: Path
) -> None:
    outcome = catvec("tag", labels, "--db", healthy.url, "--model", "healthy")
    [line] = [line for line in outcome.err.splitlines() if line.startswith("next: ")]
    assert " --model healthy --db " in line
    words = [word for word in shlex.split(line)[2:] if word != "PRODUCT_ID"]
    found = catvec(words[0], "P01", *words[1:-1], healthy.url)
    assert found.code == 0, found.err


def test_an_unchanged_night_needs_no_model(catvec: Catvec, healthy: Healthy, labels: Path) -> None:
    assert catvec("tag", labels, "--db", healthy.url).code == 0
    healthy.execute("UPDATE catvec_store.models SET location = '/nowhere'")
    assert catvec("tag", labels, "--db", healthy.url).code == 0


def test_one_attribute_in_other_words_leaves_the_other_alone(catvec: Catvec, healthy: Healthy, labels: Path) -> None:
    catvec("tag", labels, "--db", healthy.url)
    rows = (
        "SELECT t.xmin::text, t.* FROM catvec_store.product_tags t"
        "  JOIN catvec_store.tag_attributes a ON a.attribute_id = t.attribute_id"
        " WHERE a.attribute = 'look' ORDER BY t.product_id, t.label"
    )
    before = healthy.execute(rows)
    labels.write_text(LABELS.replace("mug", "cup"), encoding="utf-8")

    found = catvec("tag", labels, "--db", healthy.url, "--json").json()

    assert {one["attribute"]: one["is_anew"] for one in found["attributes"]} == {"kind": True, "look": False}
    assert healthy.execute(rows) == before
    assert catvec("tag", "--drop", "look", "--db", healthy.url).code == 0
    assert {row[1] for row in healthy.execute(TAGS)} == {"kind"}


def test_an_attribute_of_another_file_that_lacks_products_is_named_last(
    catvec: Catvec, healthy: Healthy, labels: Path, tmp_path: Path
) -> None:
    catvec("tag", labels, "--db", healthy.url)
    healthy.execute("DELETE FROM catvec_store.product_tags WHERE product_id < 'P04'")
    labels.write_text("kind: {labels: [dress, {bag: [bag, tote]}, mug], templates: ['a {}', '{}'], threshold: 0}")

    outcome = catvec("tag", labels, "--db", healthy.url, "--json")

    assert outcome.err.splitlines()[-1] == (
        "behind: look lacks 4 of 12 products; run catvec tag with their labels files or heads, too, or forget one: "
        "catvec tag --drop look --db …"
    )
    assert outcome.json()["behind"] == {"look": 4}


@pytest.mark.parametrize(
    ("command", "table", "phase", "number"),
    [
        ("tag", "product_tags", "tagging products", signal.SIGTERM),
        ("neighbours build", "neighbours", "finding neighbours", signal.SIGINT),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    catvec_process: Starter,
    healthy: Healthy,
    labels: Path,
    command: str,
    table: str,
    phase: str,
    number: signal.Signals,
) -> None:
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(healthy.url) as other:
        other.execute(f"LOCK TABLE catvec_store.{table}")
        source = [labels] if command == "tag" else []
        process = catvec_process(*command.split(), *source, "--db", healthy.url)
        wait_until(lambda: bool(healthy.execute(waiting)), process)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)

    assert err.splitlines() == [
        f"{phase} …",
        f"interrupted while {phase}; to go on, run the same command again",
    ]
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]


@pytest.mark.slow
def test_a_killed_tagging_goes_on(catvec: Catvec, catvec_process: Starter, healthy: Healthy, labels: Path) -> None:
    """Law 2, at moments all over the command; apps see all of it or nothing."""
    catvec("tag", labels, "--db", healthy.url, "--precision", "fp32")
    whole = healthy.execute(TAGS)
    assert catvec("tag", "--drop", "kind", "--drop", "look", "--db", healthy.url).code == 0
    ended = []
    for wait_s in (0.1, 0.6, 1.2):
        process = catvec_process("tag", labels, "--db", healthy.url, "--precision", "fp32")
        time.sleep(wait_s)
        process.kill()
        ended.append(process.wait())
        assert healthy.execute(TAGS) in ([], whole)
    assert -signal.SIGKILL in ended, "the kills came after everything was done: this test shows nothing"

    assert catvec("tag", labels, "--db", healthy.url, "--precision", "fp32").code == 0

    assert healthy.execute(TAGS) == whole


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ([], 2, "give either LABELS or --drop ATTRIBUTE"),
        (["labels.yaml", "--drop", "kind"], 2, "give either LABELS or --drop ATTRIBUTE"),
        (["nothing.yaml"], 2, "cannot read 'nothing.yaml': No such file or directory"),
        (["--drop", "kind"], 2, "no attribute 'kind' is tagged under model 'healthy', there are: none"),
        (
            ["labels.yaml", "--calibrate", "size"],
            2,
            "--calibrate names the attribute 'size', which 'labels.yaml' does not have, expected kind, look",
        ),
        (["labels.yaml", "--calibrate", "kind="], 2, "--calibrate is 'kind=', expected ATTRIBUTE or ATTRIBUTE=NAME"),
        (["labels.yaml", "--calibrate", "kind", "--calibrate", "kind=x"], 2, "--calibrate names 'kind' twice"),
        (
            ["labels.yaml", "--calibrate", "kind=category"],
            2,
            "0 products have one of the labels of 'kind' as their 'category' in the catalog, expected at least 20; "
            "12 have another value, or a list",
        ),
        (["labels.yaml", "--model", "nix"], 2, "no model 'nix' in this database, there are: healthy"),
    ],
)
def test_what_makes_no_sense_is_refused(
    catvec: Catvec,
    healthy: Healthy,
    labels: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    error: str,
) -> None:
    monkeypatch.chdir(labels.parent)
    assert catvec("tag", *arguments, "--db", healthy.url).complaint()[:2] == (code, error)
    assert healthy.execute(TAGS) == []


@pytest.mark.parametrize("arguments", [("nothing.yaml",), ("labels.yaml", "--calibrate", "size")])
def test_the_file_is_read_before_any_work(
    catvec: Catvec, labels: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(labels.parent)

    refused = catvec("tag", *arguments, "--db", "postgresql://nowhere.invalid/x")

    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert "tagging products" not in refused.err


def test_a_model_without_words_cannot_judge_by_them(
    catvec: Catvec, healthy: Healthy, labels: Path, tiny_image_only: Path
) -> None:
    blind = ("--model", tiny_image_only, "--model-name", "blind")
    assert catvec("run", healthy.folder / "catalog.csv", "--db", healthy.url, *blind).code == 0
    code, error, hint = catvec("tag", labels, "--model", "blind", "--db", healthy.url).complaint()
    assert (code, error) == (1, "model 'blind' has no text side, so it cannot judge by words")
    assert hint == "run the catalog through a model of images and text, or tag with a head: catvec train --head"


def test_a_head_is_trained_on_stored_vectors_and_tags_with_them(
    catvec: Catvec, healthy: Healthy, tmp_path: Path
) -> None:
    head = tmp_path / "category.safetensors"
    options = ("--db", healthy.url)

    trained = catvec("train", "--head", "category", "--output", head, "--threshold", 0, *options)
    tagged = catvec("tag", head, *options)

    assert trained.code == 0, trained.err
    assert "held-out products are right" in trained.err
    assert f"next: catvec tag {head}" in trained.err
    assert tagged.code == 0, tagged.err
    tags = healthy.execute("SELECT attribute, count(DISTINCT product_id) FROM catvec.product_tags GROUP BY 1")
    products = healthy.execute("SELECT count(DISTINCT product_id) FROM catvec.image_embeddings")
    assert tags == [("category", products[0][0])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("catalog.csv", "--head", "category"), "CATALOG cannot go with --head: a head learns from the vectors"),
        (("--head", "category", "--from", "vit-b-32"), "--from cannot go with --head"),
        (("--head", "category", "--no-augment"), "--no-augment cannot go with --head"),
        (("--head", " "), "--head names no attribute"),
        (("catalog.csv", "--output", "shop", "--hidden", 8), "--hidden goes with --head only"),
        (("--output", "shop"), "CATALOG is missing"),
        (("catalog.csv",), "--output FOLDER is missing"),
    ],
)
def test_a_head_and_a_model_are_trained_by_options_of_their_own(
    catvec: Catvec, arguments: tuple[object, ...], message: str
) -> None:
    refused = catvec("train", *arguments)
    assert refused.code == 2
    assert message in refused.err

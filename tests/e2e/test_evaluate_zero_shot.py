"""catvec evaluate zero-shot as a user types it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.models.encoder import load_encoder
from pipeline.settings import ModelSettings
from tests.fixtures.judged import Judged, documented, rows, trained_copy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec


def test_zero_shot_equals_a_recomputation(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    """Against the definition: the mean of a label in all templates, that of a product's images, the nearest wins."""
    labels = tmp_path / "labels.json"
    labels.write_text('{"tint": {"labels": ["Navy", "red", "white"], "templates": ["a {} thing", "{}"]}}')
    chart, page = tmp_path / "confusion.png", tmp_path / "page.html"
    options = ("--truth", "colour", "--chart", chart, "--report", page, "--image-root", judged.folder)

    outcome = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options, "--json")

    encoder = load_encoder(ModelSettings(model=str(judged.models["one"]), device="cpu"))
    names = ["Navy", "red", "white"]
    encoded = [encoder.encode_texts([f"a {name} thing", name]).mean(axis=0) for name in names]
    encoded = [vector / np.linalg.norm(vector) for vector in encoded]
    truth = {row["id"]: row["colour"].title() if row["colour"] == "navy" else row["colour"] for row in rows()}
    confusion = np.zeros((3, 3), dtype=int)
    for product, images in judged.vectors("one").items():
        if truth[product] in names:
            similarities = [float(np.mean(images, axis=0) @ label) for label in encoded]
            confusion[names.index(truth[product]), int(np.argmax(similarities))] += 1
    found = outcome.json()
    assert outcome.code == 0, outcome.err
    assert found["confusion"] == confusion.tolist()
    assert found["top1"]["value"] == pytest.approx(confusion.trace() / confusion.sum())
    assert set(found) == documented("`evaluate zero-shot`")
    assert set(found["classes"][0]) == documented("a class")
    assert found["top5"] is None
    assert "top-5" not in page.read_text(encoding="utf-8")
    assert found["unknown_values"] == {"green": 7}
    assert found["warnings"] == ["7 products are left out, because their colour is no label: 'green' (7)"]
    assert found["largest_class"] == pytest.approx(confusion.sum(axis=1).max() / confusion.sum())
    assert chart.read_bytes()[:4] == b"\x89PNG"
    assert "What was taken for what" in page.read_text(encoding="utf-8")


def test_zero_shot_is_held_to_limits_of_labels(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    """A model that has learned nothing does not tell six kinds apart: some label falls short of 1."""
    labels = tmp_path / "labels.json"
    labels.write_text('{"kind": {"labels": ["mug", "bag", "dress", "hat", "sock", "lamp"], "templates": ["{}"]}}')
    limits = ("mug:recall=1", "bag:recall=1", "dress:recall=1", "top5=0", "macro_f1=0")
    options = ("--truth", "category", *(word for limit in limits for word in ("--fail-under", limit)))

    outcome = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options, "--json")

    found = outcome.json()
    short = [entry for entry in found["classes"] if entry["recall"] is not None and entry["recall"] < 1]
    assert outcome.code == 3
    assert 0 < found["top5"]["low"] <= found["top5"]["value"] <= 1
    assert [line for line in outcome.err.splitlines() if line.startswith("not good enough")] == [
        f"not good enough: {entry['label']}:recall is {entry['recall']:.3f}, expected 1" for entry in short
    ]


def test_limits_are_judged_and_the_page_is_there_when_the_chart_fails(
    catvec: Catvec, judged: Judged, tmp_path: Path
) -> None:
    labels, chart, page = judged.folder / "labels.yaml", tmp_path / "confusion.png", tmp_path / "page.html"
    chart.symlink_to("/dev/full")
    options = ("--attribute", "kind", "--truth", "category", "--chart", chart, "--report", page)

    outcome = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options, "--fail-under", "top1=1")

    firsts = [line.split()[0] for line in outcome.out.splitlines() if line.strip(" ─")]
    assert firsts == ["measure", "top-1", "macro", "always", "products", "label", "mug", "bag", "dress"]
    [limit, error] = outcome.err.splitlines()[-2:]
    assert outcome.code == 2
    assert limit.startswith("not good enough: top1 is ")
    assert error == f"error: the chart cannot be written to {str(chart)!r}: No space left on device"
    assert "What was taken for what" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "code", "error", "hint"),
    [
        ((), 2, "there is no --attribute, expected one of those in {labels!r}: colour, kind", None),
        (
            ("--attribute", "size"),
            2,
            "--attribute is 'size', expected one of those in {labels!r}: colour, kind",
            None,
        ),
        (
            ("--attribute", "kind"),
            2,
            "none of the 30 products has the attribute 'kind', there are: title, category, brand, colour",
            None,
        ),
        (
            ("--attribute", "kind", "--truth", "colour"),
            2,
            "no product has a label of 'kind' as its colour: found 'red', 'navy', 'green', 'white', expected such as "
            "'mug', 'bag', 'dress'",
            "name the column or attribute that says what products truly are with --truth",
        ),
        (
            ("--attribute", "colour", "--fail-under", "recall@1=0.5"),
            2,
            "--fail-under 'recall@1' is not measured, there are: top1, macro_f1, precision, recall, f1",
            None,
        ),
    ],
)
def test_zero_shot_says_what_it_needs(
    catvec: Catvec, judged: Judged, options: tuple[str, ...], code: int, error: str, hint: str | None
) -> None:
    labels = judged.folder / "labels.yaml"

    outcome = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options)

    assert outcome.complaint() == (code, error.format(labels=str(labels)), hint)


def test_labels_are_not_judged_by_what_was_trained_on(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    weights = trained_copy(judged, tmp_path / "copy", [f"P{number:02}" for number in range(20)])
    labels = judged.folder / "labels.yaml"
    options = ("--attribute", "kind", "--truth", "category", "--weights", weights, "--json")

    found = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options).json()

    assert (found["coverage"]["products"], found["coverage"]["left_out_trained"]) == (10, 20)

"""catvec evaluate compare as a user types it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.judged import Judged, documented, measures, naive_ranks, rows, trained_copy, values

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec


def test_two_models_are_compared_by_the_same_products(catvec: Catvec, changeable: Judged, tmp_path: Path) -> None:
    changeable.execute(
        "DELETE FROM catvec_store.emb_two"
        " WHERE content_sha256 = (SELECT content_sha256 FROM catvec_store.images WHERE url = '3.jpg')"
    )
    page = tmp_path / "page.html"
    options = ("--report", page, "--image-root", changeable.folder, "--json")

    outcome = catvec("evaluate", "compare", "one", "two", "--db", changeable.url, *options)

    titles = {product: title for product, title in changeable.titles.items() if product != "P03"}
    judged = replace(changeable, titles=titles)
    found = outcome.json()
    ranks = {name: naive_ranks(judged, name) for name in ("one", "two")}
    assert outcome.code == 0
    assert set(found) == documented("`evaluate compare`")
    assert set(found["text_to_image"]) == documented("a contest")
    assert (found["coverage"]["products"], found["unstated"]) == (28, ["one", "two"])
    for place, direction in enumerate(("text_to_image", "image_to_text")):
        first, second = (list(ranks[name][place].values()) for name in ("one", "two"))
        contest = found[direction]
        assert values({"measures": contest["first"]}) == pytest.approx(measures(first))
        assert values({"measures": contest["second"]}) == pytest.approx(measures(second))
        for name, estimate in contest["difference"].items():
            assert estimate["value"] == pytest.approx(measures(second)[name] - measures(first)[name])
        assert contest["only_first"] == sum(a == 1 != b for a, b in zip(first, second, strict=True))
        assert contest["only_second"] == sum(b == 1 != a for a, b in zip(first, second, strict=True))
        assert 0 < contest["p"]["recall@1"] <= 1
    assert ("Texts that only one finds" in page.read_text(encoding="utf-8")) == bool(
        found["text_to_image"]["only_first"]
    )


def test_a_comparison_is_held_to_its_difference(catvec: Catvec, judged: Judged) -> None:
    limits = ("--fail-under", "difference:recall@10=1", "--fail-under", "two:mrr=0")

    outcome = catvec("evaluate", "compare", "one", "two", "--db", judged.url, *limits)

    assert outcome.code == 3
    assert outcome.err.splitlines()[-1].startswith("not good enough: difference:recall@10 is ")


def test_comparing_leaves_out_what_either_was_trained_on(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    weights = trained_copy(judged, tmp_path / "copy", [f"P{number:02}" for number in range(10)])

    outcome = catvec("evaluate", "compare", "one", "two", "--weights-a", weights, "--db", judged.url, "--json")

    assert outcome.json()["coverage"] == {
        "products": 19,
        "images": 21,
        "trained": 0,
        "left_out_trained": 10,
        "left_out_unanswered": 1,
    }
    assert outcome.json()["unstated"] == ["two"]


def test_models_that_learned_from_all_products_between_them_are_not_compared(
    catvec: Catvec, judged: Judged, tmp_path: Path
) -> None:
    ids = [row["id"] for row in rows()]
    weights_a = trained_copy(judged, tmp_path / "a", ids[:12])
    weights_b = trained_copy(judged, tmp_path / "b", ids[12:], model="two")
    options = ("--weights-a", weights_a, "--weights-b", weights_b)

    assert catvec("evaluate", "compare", "one", "two", *options, "--db", judged.url).complaint() == (
        2,
        "each of the 30 products was learned by model 'one' or 'two', so none is left to judge both by",
        "run both on products that neither has seen; --include-trained measures all the same",
    )


def test_one_model_is_not_compared_with_itself(catvec: Catvec, judged: Judged) -> None:
    assert catvec("evaluate", "compare", "one", "one", "--db", judged.url).complaint() == (
        2,
        "both models are 'one', expected two to compare",
        "see: catvec models",
    )

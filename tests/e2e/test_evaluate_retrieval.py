"""catvec evaluate retrieval as a user types it: numbers, pages, limits, and what cannot be judged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.judged import Judged, documented, measures, naive_ranks, rows, trained_copy, values
from tests.fixtures.roles import READER, grant, login

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec


def test_retrieval_equals_a_recomputation(catvec: Catvec, judged: Judged) -> None:
    outcome = catvec("evaluate", "retrieval", "--db", judged.url, "--json")

    found = outcome.json()
    of_texts, of_products = naive_ranks(judged, "one")
    assert outcome.code == 0
    assert values(found["text_to_image"]) == pytest.approx(measures(list(of_texts.values())))
    assert values(found["image_to_text"]) == pytest.approx(measures(list(of_products.values())))
    assert (found["text_to_image"]["queries"], found["text_to_image"]["candidates"]) == (len(of_texts), 29)
    assert (found["image_to_text"]["queries"], found["image_to_text"]["candidates"]) == (29, len(of_texts))
    assert found["text_to_image"]["chance"] == pytest.approx(29 / len(of_texts) / 29)
    assert found["image_to_text"]["chance"] == pytest.approx(1 / len(of_texts))
    assert found["coverage"] == {
        "products": 29,
        "images": 32,
        "trained": None,
        "left_out_trained": 0,
        "left_out_unanswered": 1,
    }
    for direction in ("text_to_image", "image_to_text"):
        for estimate in found[direction]["measures"].values():
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert outcome.err.splitlines()[-1] == (
        "model one, judged by 29 products with 32 images; left out: 1 without a title; "
        "the model does not state what it was trained on"
    )


def test_groups_are_sought_among_all(catvec: Catvec, judged: Judged) -> None:
    found = catvec("evaluate", "retrieval", "--db", judged.url, "--by", "category", "--json").json()

    of_texts, of_products = naive_ranks(judged, "one")
    sizes = {group["value"]: group["products"] for group in found["groups"]}
    assert list(sizes.items()) == [("bag", 10), ("mug", 10), ("dress", 9)]
    assert set(found) == documented("`evaluate retrieval`")
    assert set(found["coverage"]) == documented("`coverage`")
    assert set(found["text_to_image"]) == documented("a direction")
    assert set(found["text_to_image"]["measures"]["mrr"]) == documented("an estimate")
    for group in found["groups"]:
        assert set(group) == documented("a group")
        products = {row["id"] for row in rows()[:-1] if row["category"] == group["value"]}
        texts = {judged.titles[product] for product in products}
        assert group["text_to_image"]["candidates"] == 29
        assert values(group["text_to_image"]) == pytest.approx(measures([of_texts[text] for text in texts]))
        assert values(group["image_to_text"]) == pytest.approx(measures([of_products[name] for name in products]))


def test_the_table_shows_every_measure(catvec: Catvec, judged: Judged) -> None:
    outcome = catvec("evaluate", "retrieval", "--db", judged.url, "--model", "two", "--by", "colour", "--seed", 3)

    lines = [re.split(r"\s{2,}", line.strip()) for line in outcome.out.splitlines() if line.strip(" ─")]
    assert lines[0] == ["measure", "text → image", "95 %", "image → text", "95 %"]
    assert [line[0] for line in lines[1:9]] == [
        "recall@1",
        "recall@5",
        "recall@10",
        "mrr",
        "median rank",
        "recall@1 by chance",
        "queries",
        "candidates",
    ]
    assert lines[9][:5] == ["colour", "direction", "queries", "recall@1", "95 %"]
    assert [line[:2] for line in lines[10:12]] == [["red", "text → image"], ["red", "image → text"]]


def test_products_that_were_trained_on_are_left_out(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    weights = trained_copy(judged, tmp_path / "copy", [f"P{number:02}" for number in range(20)])

    outcome = catvec("evaluate", "retrieval", "--db", judged.url, "--weights", weights, "--json")

    assert outcome.json()["coverage"] == {
        "products": 9,
        "images": 10,
        "trained": 0,
        "left_out_trained": 20,
        "left_out_unanswered": 1,
    }
    assert outcome.json()["warnings"] == []
    assert "left out: 20 trained on, 1 without a title" in outcome.err


def test_a_model_is_not_judged_by_nothing_but_what_it_was_trained_on(
    catvec: Catvec, judged: Judged, tmp_path: Path
) -> None:
    weights = trained_copy(judged, tmp_path / "copy", [row["id"] for row in rows()])

    assert catvec("evaluate", "retrieval", "--db", judged.url, "--weights", weights).complaint() == (
        1,
        "model 'one' was trained on all 30 products, so none is left to judge it by",
        "run it on products that it has not seen; --include-trained measures all the same, and says little about new "
        "ones",
    )


def test_include_trained_warns_in_words_json_and_page(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    weights = trained_copy(judged, tmp_path / "copy", [f"P{number:02}" for number in range(20)])
    page = tmp_path / "page.html"
    options = ("--weights", weights, "--include-trained", "--report", page, "--image-root", judged.folder)

    outcome = catvec("evaluate", "retrieval", "--db", judged.url, *options, "--json")

    warning = (
        "model one was trained on 20 of these 29 products: the numbers say little about products that it has not seen"
    )
    assert outcome.json()["warnings"] == [warning]
    assert f"warning: {warning}" in outcome.err.splitlines()
    assert warning in page.read_text(encoding="utf-8")
    assert outcome.json()["coverage"]["trained"] == 20


def test_the_page_holds_hits_and_misses_as_pictures(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    outcome = catvec("evaluate", "retrieval", "--db", judged.url, "--report", page, "--image-root", judged.folder)

    html = page.read_text(encoding="utf-8")
    assert outcome.err.splitlines()[-1] == f"the page is in {page}"
    assert html.count('src="data:image/jpeg;base64,') >= 20
    of_texts, _ = naive_ranks(judged, "one")
    misses = sum(place > 1 for place in of_texts.values())
    assert f'<h2>Texts that did not</h2>\n  <p class="lead">6 of {misses}, chosen at random. Green is' in html
    assert re.search(r"All \d+ pictures are in it\.", html)
    assert "Products that did not" in html
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_the_page_says_what_pictures_need(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    outcome = catvec("evaluate", "retrieval", "--db", judged.url, "--report", tmp_path / "page.html")

    [said] = [line for line in outcome.err.splitlines() if line.startswith("the page is in")]
    assert re.search(
        r"; (\d+) of \1 pictures could not be had \(no_image_root\); name their folder with --image-root$", said
    )


def test_titles_are_escaped(catvec: Catvec, changeable: Judged, tmp_path: Path) -> None:
    changeable.execute("UPDATE catvec_store.products SET title = '<script>' || product_id WHERE title <> ''")
    page = tmp_path / "page.html"

    catvec("evaluate", "retrieval", "--db", changeable.url, "--report", page, "--image-root", changeable.folder)

    assert "&lt;script&gt;P" in page.read_text(encoding="utf-8")
    assert "<script" not in page.read_text(encoding="utf-8")


def test_limits_that_are_not_met_end_with_3(catvec: Catvec, judged: Judged) -> None:
    limits = ("--fail-under", "recall@1=1", "--fail-under", "mrr=0", "--fail-under", "colour=red:recall@10=0.1")

    outcome = catvec("evaluate", "retrieval", "--db", judged.url, "--by", "colour", *limits, "--json")

    found = outcome.json()
    least = min(values(found[direction])["recall@1"] for direction in ("text_to_image", "image_to_text"))
    assert outcome.code == 3
    assert outcome.err.splitlines()[-1] == f"not good enough: recall@1 is {least:.3f}, expected 1"


def test_a_limit_for_a_group_without_by_is_refused_before_any_work(catvec: Catvec) -> None:
    limits = ("--fail-under", "held_out=yes:recall@1=0.9")

    outcome = catvec("evaluate", "retrieval", "--db", "postgresql://nowhere.invalid/x", *limits)

    assert outcome.complaint() == (
        2,
        "--fail-under 'held_out=yes:recall@1' names a group, and no --by is given",
        "report that attribute's groups: --by held_out",
    )


def test_a_reader_may_judge(catvec: Catvec, changeable: Judged, roles: None) -> None:
    grant(changeable.url)

    outcome = catvec("evaluate", "retrieval", "--db", login(changeable.url, READER), "--json")

    assert (outcome.code, outcome.json()["coverage"]["products"]) == (0, 29)


@pytest.mark.parametrize(
    ("statement", "options", "complaint"),
    [
        (
            "UPDATE catvec_store.products SET title = NULL",
            (),
            (
                2,
                "none of the 30 products has a title, so there are no words to find them by",
                "name the column of the titles with catvec run --title-column, or judge by an attribute: "
                "catvec evaluate zero-shot",
            ),
        ),
        (
            "UPDATE catvec_store.products SET title = 'a  thing'",
            (),
            (
                2,
                "all 30 products with a title have the same one, 'a thing', so there is nothing to tell apart",
                "retrieval is judged by products of different titles",
            ),
        ),
        (
            "UPDATE catvec_store.products SET active = false",
            (),
            (1, "model 'one' has no vector that apps can find", "run the catalog with it first: catvec run"),
        ),
        (
            "SELECT 1",
            ("--filter", '{"category": "hat"}'),
            (2, "no product with a vector under model 'one' passes --filter", None),
        ),
        (
            "SELECT 1",
            ("--by", "size"),
            (2, "none of the 30 products has the attribute 'size', there are: title, category, brand, colour", None),
        ),
        (
            "UPDATE catvec_store.models SET has_text = false WHERE name = 'one'",
            (),
            (
                1,
                "model 'one' has no text side, so it cannot encode words",
                "run the catalog through a model of images and text, or name one with --model",
            ),
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(
    catvec: Catvec,
    changeable: Judged,
    statement: str,
    options: tuple[str, ...],
    complaint: tuple[int, str, str | None],
) -> None:
    changeable.execute(statement)

    assert catvec("evaluate", "retrieval", "--db", changeable.url, *options).complaint() == complaint


def test_groups_that_are_ids_are_refused(catvec: Catvec, changeable: Judged) -> None:
    changeable.execute(
        "INSERT INTO catvec_store.products (product_id, catalog, title)"
        " SELECT 'Q' || i, 'default', 'title ' || i FROM generate_series(1, 100) AS i;"
        "INSERT INTO catvec_store.images (product_id, url, position, content_sha256)"
        " SELECT 'Q' || i, i || '.jpg', 0, (SELECT min(content_sha256) FROM catvec_store.emb_one)"
        "   FROM generate_series(1, 100) AS i"
    )

    assert catvec("evaluate", "retrieval", "--db", changeable.url, "--by", "title").complaint() == (
        2,
        "attribute 'title' has 123 values, expected at most 100 to report one by one",
        "take an attribute that parts the products into few groups",
    )


def test_a_page_that_cannot_be_written_is_refused_before_any_work(catvec: Catvec, tmp_path: Path) -> None:
    page = tmp_path / "absent" / "page.html"

    code, error, _ = catvec("evaluate", "retrieval", "--db", "postgresql://nowhere", "--report", page).complaint()

    assert (code, error) == (
        2,
        f"--report is {str(page)!r}, which cannot be written: there is no folder {str(page.parent)!r}",
    )

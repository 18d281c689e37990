"""catvec evaluate as a user types it: numbers, pages, limits, and what cannot be judged."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pipeline.engine.stop import Stop
from pipeline.ingest import ingest
from pipeline.models.encoder import load_encoder
from pipeline.models.trained import write_trained_products
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings
from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.database import database_copy
from tests.fixtures.roles import READER, grant, login

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.fixtures.command import Catvec

COLOURS = ("red", "navy", "green", "white")
KINDS = ("mug", "bag", "dress")
PRODUCTS = 30
LABELS = "colour: [red, navy, green, black]\nkind: [mug, bag, dress]\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A database with products under the models `one` (32 dimensions, active) and `two` (48); their titles by id."""

    url: str
    folder: Path
    models: dict[str, Path]
    titles: dict[str, str]

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def vectors(self, model: str) -> dict[str, list[NDArray[np.float64]]]:
        """The vectors of each product's images."""
        found: dict[str, list[NDArray[np.float64]]] = {}
        for product, text in self.execute(f"SELECT product_id, embedding::text FROM catvec.image_embeddings_{model}"):
            found.setdefault(product, []).append(np.array([float(number) for number in text[1:-1].split(",")]))
        return found


def rows() -> list[dict[str, str]]:
    """Two of three have a title of their own, every tenth has two images, the last one has no title."""
    made = []
    for number in range(PRODUCTS):
        colour, kind = COLOURS[number % 4], KINDS[number % 3]
        title = f"{colour} {kind}" if number % 3 == 0 else f"{colour} {kind} number {number}"
        images = f"{number}.jpg|{number}b.jpg" if number % 10 == 0 else f"{number}.jpg"
        made.append({"id": f"P{number:02}", "title": title, "images": images, "category": kind, "colour": colour})
    made[-1]["title"] = " "
    return made


@pytest.fixture(scope="module")
def judged(
    postgres: str,
    database_owner: str | None,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_clip: Path,
    tiny_clip_other: Path,
) -> Iterator[Judged]:
    folder = tmp_path_factory.mktemp("judged")
    for number in range(PRODUCTS):
        (folder / f"{number}.jpg").write_bytes(photo(number))
        (folder / f"{number}b.jpg").write_bytes(photo(1000 + number))
    catalog = write_catalog(folder / "catalog.csv", rows())
    (folder / "labels.yaml").write_text(LABELS)
    with database_copy(postgres, database_owner, template=migrated_template) as url:
        models = {"one": tiny_clip, "two": tiny_clip_other}
        for name, model in models.items():
            settings = RunSettings(
                catalog=CatalogSettings(uri=str(catalog)), model=ModelSettings(model=str(model), model_name=name)
            )
            assert ingest(settings, url=url, progress=Progress(), stop=Stop()).summary.failed == 0
        titles = {row["id"]: row["title"] for row in rows()[:-1]}
        yield Judged(url=url, folder=folder, models=models, titles=titles)


@pytest.fixture
def changeable(judged: Judged, postgres: str, database_owner: str | None) -> Iterator[Judged]:
    """The same in a database of the test's own."""
    template = str(conninfo_to_dict(judged.url)["dbname"])
    with database_copy(postgres, database_owner, template=template) as url:
        yield Judged(url=url, folder=judged.folder, models=judged.models, titles=judged.titles)


def naive_ranks(judged: Judged, model: str) -> tuple[dict[str, int], dict[str, int]]:
    """The rank of the first right product of each title, and that of each product's title, one by one."""
    shown = judged.vectors(model)
    texts = sorted(set(judged.titles.values()))
    encoder = load_encoder(ModelSettings(model=str(judged.models[model]), device="cpu"))
    encoded = dict(zip(texts, encoder.encode_texts(texts), strict=True))

    def similarity(product: str, text: str) -> float:
        return max(float(vector @ encoded[text]) for vector in shown[product])

    def others(found: float, wrong: list[float]) -> int:
        # what is as similar stands before: the little tokenizer knows no digits, and two titles may be one to it
        return 1 + sum(value > found - 1e-6 for value in wrong)

    table = {(product, text): similarity(product, text) for product in judged.titles for text in texts}
    of_texts, of_products = {}, {}
    for text in texts:
        right = max(table[product, text] for product, title in judged.titles.items() if title == text)
        wrong = [table[product, text] for product, title in judged.titles.items() if title != text]
        of_texts[text] = others(right, wrong)
    for product, title in judged.titles.items():
        of_products[product] = others(
            table[product, title], [table[product, text] for text in texts if text != title]
        )
    return of_texts, of_products


def measures(ranks: list[int]) -> dict[str, float]:
    ordered = sorted(ranks)
    middle = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    recalls = {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return recalls | {"mrr": sum(1 / rank for rank in ranks) / len(ranks), "median_rank": middle}


def values(direction: dict[str, Any]) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in direction["measures"].items()}


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
        "model one, judged by 29 products with 32 images; left out: 1 without a title"
    )


def test_groups_are_sought_among_all(catvec: Catvec, judged: Judged) -> None:
    found = catvec("evaluate", "retrieval", "--db", judged.url, "--by", "category", "--json").json()

    of_texts, of_products = naive_ranks(judged, "one")
    sizes = {group["value"]: group["products"] for group in found["groups"]}
    assert list(sizes.items()) == [("bag", 10), ("mug", 10), ("dress", 9)]
    for group in found["groups"]:
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


def trained_copy(judged: Judged, folder: Path, products: list[str], model: str = "one") -> Path:
    """The weights of a model once more, with a note of what they were trained on."""
    shutil.copytree(judged.models[model], folder)
    write_trained_products(folder, products)
    return folder


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
    assert "Texts that did not" in html
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


def test_a_reader_may_judge(catvec: Catvec, changeable: Judged, roles: None) -> None:
    grant(changeable.url)

    outcome = catvec("evaluate", "retrieval", "--db", login(changeable.url, READER), "--json")

    assert (outcome.code, outcome.json()["coverage"]["products"]) == (0, 29)


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
    assert found["top5"]["value"] == 1.0
    assert found["unknown_values"] == {"green": 7}
    assert found["warnings"] == ["7 products are left out, because their colour is no label: 'green' (7)"]
    assert found["largest_class"] == pytest.approx(confusion.sum(axis=1).max() / confusion.sum())
    assert chart.read_bytes()[:4] == b"\x89PNG"
    assert "What was taken for what" in page.read_text(encoding="utf-8")


def test_zero_shot_is_held_to_limits_of_labels(catvec: Catvec, judged: Judged) -> None:
    labels = judged.folder / "labels.yaml"
    options = ("--attribute", "kind", "--truth", "category", "--fail-under", "mug:recall=-1")

    outcome = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options)

    assert outcome.code == 0, outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines() if line.split()[:1] in (["mug"], ["bag"])]


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
            "--fail-under 'recall@1' is not measured, there are: top1, top5, macro_f1, precision, recall, f1",
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
    assert found["coverage"]["products"] == 28
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


def test_labels_are_not_judged_by_what_was_trained_on(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    weights = trained_copy(judged, tmp_path / "copy", [f"P{number:02}" for number in range(20)])
    labels = judged.folder / "labels.yaml"
    options = ("--attribute", "kind", "--truth", "category", "--weights", weights, "--json")

    found = catvec("evaluate", "zero-shot", labels, "--db", judged.url, *options).json()

    assert (found["coverage"]["products"], found["coverage"]["left_out_trained"]) == (10, 20)


def test_one_model_is_not_compared_with_itself(catvec: Catvec, judged: Judged) -> None:
    assert catvec("evaluate", "compare", "one", "one", "--db", judged.url).complaint() == (
        2,
        "both models are 'one', expected two to compare",
        "see: catvec models",
    )


def test_the_index_is_measured_and_held_to_a_limit(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    outcome = catvec(
        "evaluate", "index", "--db", judged.url, "--fail-under", "recall@10=0.9", "--report", page, "--json"
    )

    found = outcome.json()
    assert outcome.code == 0, outcome.err
    assert (found["model"], found["queries"], found["recall"]["value"]) == ("one", 33, 1.0)
    assert "recall@10" in page.read_text(encoding="utf-8")


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

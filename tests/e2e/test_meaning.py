"""What words and pictures mean, asked as users ask: a drawn catalog under the demo's model, which has learned it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from pipeline.demo import MODEL
from pipeline.demo.catalog import SHOWCASE, write_demo_catalog
from pipeline.demo.tour import write_labels
from pipeline.engine.stop import Stop
from pipeline.ingest import ingest
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings
from tests.fixtures.database import database_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.command import Catvec

PRODUCTS = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meaning")
    write_demo_catalog(folder, products=PRODUCTS)
    write_labels(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, postgres: str, database_owner: str | None, migrated_template: str) -> Iterator[str]:
    settings = RunSettings(
        catalog=CatalogSettings(uri=str(folder / "catalog.csv")),
        model=ModelSettings(model=str(MODEL), model_name="demo"),
    )
    with database_copy(postgres, database_owner, template=migrated_template) as url:
        assert ingest(settings, url=url, progress=Progress(), stop=Stop()).summary.failed == 6
        yield url


def titles(catvec: Catvec, *arguments: object) -> list[str]:
    outcome = catvec(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return [hit["title"] for hit in outcome.json()["hits"]]


def test_words_find_what_they_say(catvec: Catvec, url: str) -> None:
    found = titles(catvec, "search", "navy striped t-shirt", "-k", 3, "--db", url)
    assert found[0] == "navy striped t-shirt"
    reds = titles(catvec, "search", "red", "-k", 5, "--db", url)
    assert [title.split()[0] for title in reds] == ["red"] * 5
    dotted = titles(catvec, "search", "a photo of a dotted one", "-k", 5, "--db", url)
    assert sum("dotted" in title for title in dotted) >= 4


def test_words_lead_to_and_away(catvec: Catvec, url: str) -> None:
    """Like the navy striped t-shirt: with red and without navy the nearest are red, without stripes not striped."""
    like = ("--like", SHOWCASE, "-k", 5, "--db", url)
    assert sum("navy" in title or "striped" in title for title in titles(catvec, "search", *like)) >= 4
    other_colour = titles(catvec, "search", "red", *like, "--minus", "navy")
    assert other_colour[0].startswith("red ")
    assert not any("navy" in title for title in other_colour)
    assert not any("striped" in title for title in titles(catvec, "search", *like, "--minus", "striped"))


def test_tags_say_what_the_catalog_knows(catvec: Catvec, url: str, folder: Path) -> None:
    """The shares are those of benchmarks/results/demo_model.json, less what chance may take among few products."""
    assert catvec("tag", folder / "labels.yaml", "--db", url).code == 0
    with psycopg.connect(url, autocommit=True) as connection:
        right = dict(
            connection.execute(
                "SELECT attribute, avg((p.attrs ->> attribute = label)::int)::float8"
                "  FROM catvec.product_tags JOIN catvec.products p USING (product_id) GROUP BY attribute"
            ).fetchall()
        )
    assert right["colour"] >= 0.98
    assert right["kind"] >= 0.97
    assert right["pattern"] >= 0.95
    filtered = titles(catvec, "similar", SHOWCASE, "--filter", '{"tag:colour": "red"}', "-k", 5, "--db", url)
    assert len(filtered) == 5
    assert sum(title.startswith("red ") for title in filtered) >= 4


def test_labels_on_their_own_are_given_to_few_others(catvec: Catvec, url: str, tmp_path: Path) -> None:
    """By default: benchmarks/results/independent.json has the shares over more products."""
    path = tmp_path / "alone.yaml"
    path.write_text(
        "colour: {labels: [red, navy, teal, grey], exclusive: false}\n"
        "pattern: {labels: [striped, dotted, checked], exclusive: false, threshold: 0}\n"
    )
    tagged = catvec("tag", path, "--db", url, "--json")
    with psycopg.connect(url, autocommit=True) as connection:
        [(given, right, asked)] = connection.execute(
            "SELECT count(*) FILTER (WHERE label <> 'unknown'), count(*) FILTER (WHERE p.attrs ->> 'colour' = label),"
            "       count(DISTINCT product_id) FILTER (WHERE p.attrs ->> 'colour' IN ('red', 'navy', 'teal', 'grey'))"
            "  FROM catvec.product_tags JOIN catvec.products p USING (product_id) WHERE attribute = 'colour'"
        ).fetchall()
    assert catvec("tag", "--drop", "colour", "--drop", "pattern", "--db", url).code == 0
    assert right / given >= 0.85
    assert right / asked >= 0.9
    [warning] = tagged.json()["warnings"]
    assert "of 3 labels of pattern on average, so the labels say little" in warning
    assert f"warning: {warning}" in tagged.err


def test_the_model_passes_its_evaluation(catvec: Catvec, url: str, folder: Path) -> None:
    retrieval = catvec("evaluate", "retrieval", "--db", url, "--fail-under", "text_to_image.recall@1=0.95", "--json")
    assert retrieval.code == 0, retrieval.err
    assert retrieval.json()["coverage"]["trained"] == 0
    unseen = ("--by", "held_out", "--fail-under", "held_out=yes:text_to_image.recall@1=0.9")
    assert catvec("evaluate", "retrieval", *unseen, "--db", url).code == 0
    limits = ("--attribute", "colour", "--fail-under", "top1=0.98")
    assert catvec("evaluate", "zero-shot", folder / "labels.yaml", *limits, "--db", url).code == 0


def test_vectors_of_words_are_found_in_sql(catvec: Catvec, url: str) -> None:
    vector = catvec("embed-text", "red", "--db", url).out.strip()
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("SELECT title FROM catvec.search_by_vector(%s, 5)", (vector,)).fetchall()
    assert [title.split()[0] for (title,) in found] == ["red"] * 5


def test_a_head_learns_what_no_title_says(catvec: Catvec, url: str, tmp_path: Path) -> None:
    """The category (clothing, shoes, …) stands in no title; the vectors hold it nonetheless."""
    head = tmp_path / "category.safetensors"
    trained = catvec("train", "--head", "category", "--output", head, "--db", url, "--json").json()
    assert trained["low"] > trained["baseline"]
    assert catvec("tag", head, "--db", url).code == 0

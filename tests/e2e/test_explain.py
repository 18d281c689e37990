"""`catvec explain` as a user types it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.store import Shop, product, unit

if TYPE_CHECKING:
    from tests.fixtures.command import Catvec

ROOT = Path(__file__).parents[2]
QUERY = "SELECT product_id FROM catvec.image_embeddings ORDER BY embedding <=> '[1,0,0,0]' LIMIT 10"


@pytest.fixture
def url(shop: Shop, database_url: str) -> str:
    shop.sync(product("A", "a.jpg"), product("B 2", "b.jpg", row=2))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0)])
    shop.activate(model)
    return database_url


def test_a_query_gets_a_verdict_a_reason_and_its_plan(catvec: Catvec, url: str) -> None:
    outcome = catvec("explain", QUERY, "--db", url, "--fail-on-scan")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[:2] == [
        "does not use an index, and need not: reads all 2 vectors",
        "why:  up to 5,000 vectors comparing all is as quick, and exact",
    ]
    assert re.fullmatch(r"cost: \d+ estimated, not run", lines[2])
    assert lines[3] == "plan:"
    assert lines[4].startswith("      Limit  (cost=")


def test_a_product_gets_a_verdict_and_its_time(catvec: Catvec, url: str) -> None:
    outcome = catvec("explain", "A", "--db", url)
    lines = outcome.out.splitlines()
    assert lines[0].startswith("does not use the index, and need not: catvec.similar_products read about ")
    assert lines[1:3] == ["why:  the table is small", "note: product 'A' has 1 image with a vector"]
    assert re.fullmatch(r"time: [\d.]+ ms measured; rows: 1", lines[3])
    assert "'B 2' has 1 image" in catvec("explain", "B 2", "--product", "--db", url).out


def test_json_is_one_object(catvec: Catvec, url: str) -> None:
    found = catvec("explain", QUERY, "--analyze", "--json", "--db", url).json()
    assert (found["verdict"], found["model"], found["index"], found["rows"]) == ("exact", "tiny", None, 2)
    assert [reason["key"] for reason in found["reasons"]] == ["small"]
    assert found["milliseconds"] > 0


def test_a_query_that_is_refused_fails_a_test_that_asks_for_it(catvec: Catvec, url: str) -> None:
    query = QUERY.replace("'[1,0,0,0]'", "'[1,0]'")
    assert catvec("explain", query, "--db", url).code == 0
    outcome = catvec("explain", query, "--db", url, "--fail-on-scan")
    assert outcome.code == 1
    assert outcome.out.splitlines()[:2] == [
        "is refused by PostgreSQL when it runs",
        "why:  the query vector has 2 dimensions, model 'tiny' has 4",
    ]


def test_mistakes_are_explained(catvec: Catvec, url: str) -> None:
    assert catvec("explain", "C", "--db", url).complaint() == (2, "no product 'C'", None)
    assert catvec("explain", " ", "--db", url).complaint() == (
        *(2, "the query is empty"),
        'for example: catvec explain "SELECT …", or a product id',
    )
    assert catvec("explain", "A", "--filter", "{", "--db", url).complaint()[0] == 2


def test_the_page_names_every_reason() -> None:
    sources = (ROOT / "pipeline" / "store" / "explain").glob("*.py")
    known = {key for source in sources for key in re.findall(r'key="(\w+)"', source.read_text(encoding="utf-8"))}
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert known <= {key for row in rows for key in re.findall(r"`(\w+)`", row)}

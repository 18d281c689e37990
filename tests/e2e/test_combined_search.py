"""Searching by several things at once: words, a picture, products, and words to lead away from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.models.encoder import load_encoder
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy


class Truth:
    """The healthy shop's vectors, and the encoder that made them."""

    def __init__(self, healthy: Healthy) -> None:
        rows = healthy.execute("SELECT product_id, embedding::real[] FROM catvec.image_embeddings ORDER BY 1")
        self.ids = [row[0] for row in rows]
        self.vectors = np.array([row[1] for row in rows], dtype=np.float32)
        self.encoder = load_encoder(ModelSettings(model=str(healthy.model), device="cpu", precision="fp32"))

    def text(self, words: str) -> np.ndarray:
        return self.encoder.encode_texts([words])[0]

    def product(self, product_id: str) -> np.ndarray:
        return self.vectors[self.ids.index(product_id)]

    def nearest(self, query: np.ndarray, *without: str) -> dict[str, Any]:
        similarities = self.vectors @ (query / np.linalg.norm(query))
        found = {
            name: float(value) for name, value in zip(self.ids, similarities, strict=True) if name not in without
        }
        # the run may have encoded in half precision what is asked for in fp32
        return {
            name: pytest.approx(found[name], abs=4e-3) for name in sorted(found, key=lambda name: -found[name])[:5]
        }


def found(catvec: Catvec, healthy: Healthy, *arguments: object) -> dict[str, Any]:
    outcome = catvec("search", *arguments, "-k", 5, "--precision", "fp32", "--db", healthy.url, "--json")
    assert outcome.code == 0, outcome.err
    return {hit["product_id"]: hit["similarity"] for hit in outcome.json()["hits"]}


def test_what_is_combined_is_the_weighted_sum_of_unit_vectors(catvec: Catvec, healthy: Healthy) -> None:
    truth = Truth(healthy)
    red, striped, bag = (truth.text(words) for words in ("red", "striped", "bag"))
    one, two = truth.product("P01"), truth.product("P02")
    picture = healthy.folder / "3.jpg"

    assert found(catvec, healthy, "red") == truth.nearest(red)
    assert found(catvec, healthy, "red", "--like", "P01") == truth.nearest(red + one, "P01")
    assert found(catvec, healthy, "--like", "P01", "--like", "P02", "--minus", "striped", "--minus", "bag") == (
        truth.nearest(one + two - striped - bag, "P01", "P02")
    )
    weights = ("--weight", 0.5, "--weight", 2, "--weight", 0.25)
    assert found(catvec, healthy, "red", "--like", "P01", "--minus", "striped", *weights) == (
        truth.nearest(0.5 * red + 2 * one - 0.25 * striped, "P01")
    )
    by_picture = found(catvec, healthy, "--image", picture, "--minus", "striped", "--weight", 2, "--weight", 1)
    assert by_picture == truth.nearest(2 * truth.product("P03") - striped)
    assert found(catvec, healthy, "--like", "P01") == truth.nearest(one, "P01")


def test_the_query_is_named_as_it_was_asked(catvec: Catvec, healthy: Healthy) -> None:
    options = ("--db", healthy.url, "--json")
    assert catvec("search", "red dress", *options).json()["query"] == "red dress"
    combined = catvec("search", "red dress", "--like", "P01", "--minus", "striped", *options).json()["query"]
    assert combined == "'red dress' --like P01 --minus 'striped'"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "nothing to look for: give words, --image FILE or --like PRODUCT_ID"),
        (["--minus", "striped"], "nothing to look for: give words, --image FILE or --like PRODUCT_ID"),
        (["red", "--image", "x.jpg"], "give either words or --image FILE"),
        (["red", "--minus", " "], "the text to search for is empty"),
        (["red", "--like", "nix"], "no product 'nix'"),
        (
            ["red", "--like", "P01", "--weight", "2"],
            "--weight is given 1 times, expected one for each of: 'red', --like P01",
        ),
        (["red", "--weight", "0"], "--weight is 0.0, expected 0.000001 to 1,000,000"),
        (["red", "--weight", "nan"], "--weight is nan, expected 0.000001 to 1,000,000"),
        (["--like", "P01", "--weight", "1e300"], "--weight is 1e+300, expected 0.000001 to 1,000,000"),
        (["--like", "P01", "--like", "\udcff"], r"--like is not UTF-8: '\udcff'"),
        (
            ["--like", "P01", "--like", "bare"],
            "product 'bare' has no vector under model 'healthy', so nothing can be like it",
        ),
        (["red", "--minus", "red"], "the vectors cancel each other out, which leads nowhere"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    catvec: Catvec, healthy: Healthy, arguments: list[str], error: str
) -> None:
    healthy.execute("INSERT INTO catvec_store.products (product_id, catalog) VALUES ('bare', 'default')")
    code, found_error, _ = catvec("search", *arguments, "--db", healthy.url).complaint()
    assert (code, found_error) == (2, error)


def test_a_product_id_that_is_no_text_is_refused(catvec: Catvec, healthy: Healthy) -> None:
    assert catvec("similar", "P\udcff", "--db", healthy.url).complaint() == (
        2,
        r"the product id is not UTF-8: 'P\udcff'",
        "set the terminal or the file to UTF-8",
    )

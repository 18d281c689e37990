"""Heads: a linear probe or a small network on stored vectors, judged on products that it has not seen."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import ConfigError
from pipeline.heads import HeadReport, train_head
from pipeline.models.head import read_head
from pipeline.models.probe import fit_layers
from pipeline.models.trained import write_trained_products
from pipeline.search import EncoderChoice
from pipeline.settings import HeadSettings
from pipeline.tag import tag
from tests.fixtures.store import Shop, model_spec, product

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.store.models import StoredModel

DIMS = 8
LARGEST = ("dress", "bag", "shoe")


def fill(
    shop: Shop, label_of: Callable[[np.ndarray], np.ndarray], *, products: int = 300, place: str = ""
) -> StoredModel:
    """Products at random places, whose attribute `kind` follows from the place; a tenth says nothing of it."""
    generator = np.random.default_rng(2)
    vectors = generator.standard_normal((products, DIMS))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    kinds = label_of(vectors)
    shop.sync(
        *(
            product(
                f"P{row:03}", f"{place}{row}.jpg", row=row, attrs={} if row % 10 == 0 else {"kind": str(kinds[row])}
            )
            for row in range(products)
        )
    )
    model = shop.register(model_spec("tiny", dims=DIMS))
    shop.embed(model, list(vectors))
    shop.activate(model)
    return model


def train(url: str, folder: Path, **settings: Any) -> HeadReport:
    return train_head(url, HeadSettings(**{"attribute": "kind", "output": folder / "kind.safetensors"} | settings))


def by_largest(vectors: np.ndarray) -> np.ndarray:
    return np.array(LARGEST)[vectors[:, :3].argmax(axis=1)]


def by_ring(vectors: np.ndarray) -> np.ndarray:
    """What no plane can part."""
    return np.where(np.abs(vectors[:, 0]) < 0.25, "plain", "striped")


def test_a_linear_probe_learns_what_planes_can_part_and_tags_with_it(
    shop: Shop, database_url: str, tmp_path: Path
) -> None:
    fill(shop, by_largest)

    report = train(database_url, tmp_path)

    assert (report.attribute, report.model, report.products, report.left_out) == ("kind", "tiny", 270, 0)
    assert 50 <= report.held_out <= 58
    assert report.accuracy >= 0.85
    assert report.low < report.accuracy < report.high
    assert report.baseline < 0.5
    assert set(report.accuracy_by_label) == set(report.products_by_label) == {"dress", "bag", "shoe"}
    tagging = tag(database_url, tmp_path / "kind.safetensors", EncoderChoice(), calibrate={})
    assert tagging.tagged == 300
    truth = dict(shop.all("SELECT product_id, attrs ->> 'kind' FROM catvec.products WHERE attrs <> '{}'"))
    given = dict(shop.all("SELECT product_id, label FROM catvec.product_tags WHERE label <> 'unknown'"))
    assert np.mean([truth[name] == label for name, label in given.items() if name in truth]) > 0.93


def test_a_hidden_layer_learns_what_no_plane_can_part(shop: Shop, database_url: str, tmp_path: Path) -> None:
    fill(shop, by_ring, products=600)

    linear, hidden = train(database_url, tmp_path), train(database_url, tmp_path, hidden=16)

    assert linear.accuracy < 0.75
    assert hidden.accuracy > linear.low + 0.15
    assert len(read_head(tmp_path / "kind.safetensors").layers) == 2


def test_a_head_that_is_always_right_is_not_sure_of_everything(shop: Shop, database_url: str, tmp_path: Path) -> None:
    """Right for all of the 54 that the penalty is chosen by, it may be wrong for the 55th."""

    def by_side(vectors: np.ndarray) -> np.ndarray:
        vectors[:, 0] += np.where(vectors[:, 0] > 0, 2, -2)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.where(vectors[:, 0] > 0, "dress", "bag")

    fill(shop, by_side)
    report = train(database_url, tmp_path)
    assert report.accuracy == 1
    tag(database_url, tmp_path / "kind.safetensors", EncoderChoice(), calibrate={})
    mean = shop.one("SELECT avg(probability) FROM catvec.product_tags")
    assert 0.9 < mean < 1 - 0.5 / 56


def test_a_head_that_knows_nothing_says_so(shop: Shop, database_url: str, tmp_path: Path) -> None:
    def by_chance(vectors: np.ndarray) -> np.ndarray:
        return np.where(np.random.default_rng(1).random(len(vectors)) < 0.9, "dress", "bag")

    fill(shop, by_chance)
    report = train(database_url, tmp_path)
    assert report.accuracy <= report.baseline
    assert any("its labels say nothing about these products" in warning for warning in report.warnings)


def test_the_same_seed_gives_the_same_head(shop: Shop, database_url: str, tmp_path: Path) -> None:
    fill(shop, by_largest)
    digests = []
    for seed in (0, 0, 1):
        train(database_url, tmp_path, seed=seed)
        digests.append(read_head(tmp_path / "kind.safetensors").digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_file_says_which_model_it_belongs_to_and_how_good_it_is(
    shop: Shop, database_url: str, tmp_path: Path
) -> None:
    model = fill(shop, by_largest)
    report = train(database_url, tmp_path, threshold=0.7)
    head = read_head(tmp_path / "kind.safetensors")
    assert (head.source, head.revision, head.fingerprint, head.dims) == (
        model.source,
        model.revision,
        model.fingerprint,
        DIMS,
    )
    assert (head.attribute, head.labels, head.threshold) == ("kind", ("bag", "dress", "shoe"), 0.7)
    assert head.report["accuracy"] == report.accuracy
    json.dumps(head.report)


def test_values_that_are_no_label_are_left_out_with_a_word(shop: Shop, database_url: str, tmp_path: Path) -> None:
    def with_unknown(vectors: np.ndarray) -> np.ndarray:
        kinds = by_largest(vectors).astype("U300")
        kinds[1:9], kinds[11:19] = "Unknown", 201 * "x"
        return kinds

    fill(shop, with_unknown)
    report = train(database_url, tmp_path)
    assert set(report.products_by_label) == {"dress", "bag", "shoe"}
    assert report.products == 270 - 16
    assert report.warnings[-2:] == (
        "8 products are left out: their kind 'Unknown' is what a product is called that no label fits",
        "8 products are left out: their kind 'xxxxxxxxxxxxxxxxxxxx'… has 201 characters, expected at most 200",
    )


def test_a_label_is_what_its_spellings_have_in_common(shop: Shop, database_url: str, tmp_path: Path) -> None:
    """As everywhere: a second spelling is no second label, and neither is it another value to calibrate by."""

    def as_typed(vectors: np.ndarray) -> np.ndarray:
        kinds = by_largest(vectors).astype("U9")
        kinds[1::2] = np.char.capitalize(kinds[1::2])
        kinds[2::6] = np.char.add(kinds[2::6], "  ")
        return kinds

    fill(shop, as_typed)
    counts = shop.all("SELECT btrim(attrs ->> 'kind'), count(*) FROM catvec.products WHERE attrs <> '{}' GROUP BY 1")
    ways = dict(counts)

    report = train(database_url, tmp_path)

    assert len(ways) == 6
    frequent = {max(kind, kind.title(), key=lambda way: (ways[way], way == way.title())) for kind in LARGEST}
    assert set(report.products_by_label) == frequent
    assert (report.products, report.left_out) == (270, 0)
    assert report.accuracy >= 0.85
    found = tag(database_url, tmp_path / "kind.safetensors", EncoderChoice(), calibrate={"kind": "kind"})
    assert found.calibrations[0].left_out == 0
    assert found.calibrations[0].accuracy >= 0.85


def test_rare_labels_are_left_out_and_too_few_are_refused(shop: Shop, database_url: str, tmp_path: Path) -> None:
    def with_rare(vectors: np.ndarray) -> np.ndarray:
        kinds = by_largest(vectors)
        kinds[1:5] = "hat"
        return kinds

    fill(shop, with_rare)
    report = train(database_url, tmp_path)
    assert report.left_out == 4
    assert "hat" not in report.products_by_label
    with pytest.raises(
        ConfigError, match=r"0 values of 'colour' in the catalog have 5 products or more with a vector"
    ):
        train(database_url, tmp_path, attribute="colour")


def learn(shop: Shop, model: StoredModel, folder: Path, rows: range, urls: Sequence[str] = ()) -> None:
    """Let the model's folder say that it was trained on these products, and on these images."""
    write_trained_products(folder, [f"P{row:03}" for row in rows], urls)
    shop.all("UPDATE catvec_store.models SET location = %s RETURNING 1", str(folder))


def test_what_the_model_was_trained_on_is_learned_from_but_not_judged_by(
    shop: Shop, database_url: str, tmp_path: Path
) -> None:
    """The first products are labelled by their vectors, the others, that the model has not seen, by a coin."""

    def label(vectors: np.ndarray) -> np.ndarray:
        kinds = by_largest(vectors)
        kinds[200:] = np.random.default_rng(3).choice(["dress", "bag"], len(kinds) - 200)
        return kinds

    model = fill(shop, label)
    learn(shop, model, tmp_path, range(200))
    report = train(database_url, tmp_path)
    assert (report.products, report.trained) == (270, 180)
    assert not any("was trained" in warning for warning in report.warnings)
    assert 36 <= report.held_out <= 45
    assert report.accuracy < 0.75  # by a coin, although 180 of 270 are learned well
    assert report.accuracy_by_label["shoe"] is None
    assert sum(report.products_by_label.values()) == 270
    head = read_head(tmp_path / "kind.safetensors")
    assert len(head.learned.digests) == 270 - report.held_out
    # what the head has learned from is not what it is calibrated by
    found = tag(
        database_url, tmp_path / "kind.safetensors", EncoderChoice(), calibrate={"kind": "kind"}
    ).calibrations[0]
    assert (found.products, found.left_out_trained) == (report.held_out, 270 - report.held_out)
    assert found.accuracy == pytest.approx(report.accuracy, abs=1e-4)


def test_who_shows_a_photo_that_was_learned_from_is_no_test(shop: Shop, database_url: str, tmp_path: Path) -> None:
    """Of a size that came later the model, and the head, know the photo, though not the id."""
    place = "https://shop/"
    model = fill(shop, by_largest, place=place)
    learn(shop, model, tmp_path, range(0), [f"{place}{row}.jpg" for row in range(200)])

    report = train(database_url, tmp_path)

    assert (report.products, report.trained) == (270, 180)
    learned = read_head(tmp_path / "kind.safetensors").learned
    assert learned.hold_images([f"{place}{row}.jpg" for row in range(300)]).sum() == 270 - report.held_out


def test_too_few_that_the_model_has_not_seen_are_judged_by_with_a_warning(
    shop: Shop, database_url: str, tmp_path: Path
) -> None:
    model = fill(shop, by_largest)
    learn(shop, model, tmp_path, range(290))
    report = train(database_url, tmp_path)
    assert report.held_out > 50
    [warning] = report.warnings
    assert re.fullmatch(
        rf"model tiny was trained on \d+ of these {report.held_out} products: the numbers say little about products "
        "that it has not seen",
        warning,
    )


def test_a_model_whose_folder_is_gone_may_have_been_trained_on_anything(
    shop: Shop, database_url: str, tmp_path: Path
) -> None:
    fill(shop, by_largest)
    [warning] = train(database_url, tmp_path).warnings
    assert warning.startswith(
        "the folder of model tiny is no longer in '/models/tiny', so nobody knows which of these"
    )


def test_a_folder_that_is_not_there_is_refused_before_any_work(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output is '.*', which cannot be written: there is no folder"):
        train(database_url, tmp_path / "nowhere")


def test_no_file_but_a_head_is_replaced(shop: Shop, database_url: str, tmp_path: Path) -> None:
    fill(shop, by_largest)
    table, weights = tmp_path / "precious.csv", tmp_path / "model.safetensors"
    table.write_text("id,price\n1,2\n")
    save_file({"weight": np.zeros(3)}, weights)
    before = weights.read_bytes()

    with pytest.raises(ConfigError) as named:
        train(database_url, tmp_path, output=table)
    with pytest.raises(ConfigError) as replaced:
        train(database_url, tmp_path, output=weights)

    assert named.value.message == f"--output is {str(table)!r}, expected a name that ends in .safetensors"
    assert named.value.hint == "name it for example precious.safetensors"
    assert replaced.value.message == (
        f"--output is {str(weights)!r}, which is no head of catvec's and would be replaced by one"
    )
    assert (table.read_text(), weights.read_bytes()) == ("id,price\n1,2\n", before)


def test_the_probe_is_where_the_loss_is_least() -> None:
    """Its gradient, by hand in float64, is zero."""
    generator = np.random.default_rng(4)
    vectors = generator.standard_normal((200, 5)).astype(np.float32)
    truth = generator.integers(0, 3, 200)
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
    [(weights, bias)] = fit_layers(vectors, truth, labels=3, l2=0.01)
    features = ((vectors - mean) / deviation).astype(np.float64)
    inner = weights.astype(np.float64) * deviation
    logits = vectors @ weights.T + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    wrong = odds - np.eye(3)[truth]
    np.testing.assert_allclose(wrong.T @ features / 200 + 0.01 * inner, 0, atol=1e-3)
    np.testing.assert_allclose(wrong.mean(axis=0), 0, atol=1e-3)

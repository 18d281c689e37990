"""Probabilities of labels: against independent formulas, by hand, and calibrated on what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.calibration import calibrate, expected_error, fit_temperature, keep_close
from pipeline.judging import Judge, choose_labels, to_probabilities, zero_shot_judge
from pipeline.known import Known
from pipeline.labels import Attribute, Label, against_vectors, label_vectors
from pipeline.models.encoder import load_encoder
from pipeline.models.weights import load_model
from pipeline.settings import ModelSettings
from tests.fixtures.store import unit

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.encoder import Encoder


def judge(rows: list[list[float]], **settings: Any) -> Judge:
    weights = np.array(rows, dtype=np.float32)
    settings = {"is_exclusive": True, "threshold": 0.5} | settings
    return Judge(
        attribute="colour",
        labels=tuple("abcdef"[: len(rows)]),
        layers=((weights, np.zeros(len(rows), dtype=np.float32)),),
        **settings,
    )


def encoder_of(folder: Path) -> Encoder:
    return load_encoder(ModelSettings(model=str(folder), device="cpu", precision="fp32"))


COLOURS = Attribute(
    name="colour",
    labels=(Label(name="red", words=("red",)), Label(name="navy", words=("navy blue", "dark blue"))),
    templates=("a {} mug", "{}"),
)


def test_probabilities_are_torchs() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 7))
    logits[0, 0], logits[1] = 5_000, -5_000
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(to_probabilities(logits, is_exclusive=True), torch.softmax(tensor, 1), atol=1e-12)
    np.testing.assert_allclose(to_probabilities(logits, is_exclusive=False), torch.sigmoid(tensor), atol=1e-12)


def test_zero_shot_is_what_transformers_says(tiny_clip: Path, tiny_siglip: Path) -> None:
    """One template and no synonyms: the model's own logits_per_image, softmax for CLIP and sigmoid for SigLIP."""
    words = ["red mug", "green striped dress", "white bag"]
    plain = Attribute(
        name="thing", labels=tuple(Label(name=word, words=(word,)) for word in words), templates=("{}",)
    )
    independent = Attribute(name="thing", labels=plain.labels, templates=("{}",), is_exclusive=False)
    for folder, attribute in ((tiny_clip, plain), (tiny_siglip, independent)):
        encoder, model = encoder_of(folder), load_model(folder)
        pixels = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
        found = zero_shot_judge(encoder, attribute).probabilities(encoder.encode_images(pixels))
        with torch.inference_mode():
            tokens = encoder._load_tokenizer().tokenize(words)
            logits = model(pixel_values=encoder._normalizer(pixels), **tokens).logits_per_image
            expected = torch.softmax(logits, 1) if attribute.is_exclusive else torch.sigmoid(logits)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_label_on_its_own_is_judged_against_words_that_say_nothing(tiny_clip: Path) -> None:
    """Under a model without a sigmoid: the softmax of the label and all of these."""
    encoder = encoder_of(tiny_clip)
    alone = Attribute(name="colour", labels=COLOURS.labels, templates=COLOURS.templates, is_exclusive=False)
    vectors = encoder.encode_texts(["red", "a thing", "dark blue mug"])
    logits = encoder.scoring.scale * vectors @ label_vectors(encoder, alone).T
    against = encoder.scoring.scale * vectors @ against_vectors(encoder, alone).T
    assert against.shape == (3, 4)
    expected = [
        [np.exp(one) / (np.exp(one) + np.exp(others).sum()) for one in row]
        for row, others in zip(logits, against, strict=True)
    ]
    np.testing.assert_allclose(zero_shot_judge(encoder, alone).probabilities(vectors), expected, atol=1e-4)


def test_the_scale_is_the_weights_own_whatever_the_precision(tiny_clip: Path, tiny_siglip: Path) -> None:
    for folder in (tiny_clip, tiny_siglip):
        model = load_model(folder)
        half = load_encoder(ModelSettings(model=str(folder), device="cpu", precision="bf16"))
        assert half.scoring == encoder_of(folder).scoring
        assert half.scoring.scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    assert half.scoring.bias == model.logit_bias.item()


def test_one_label_fits_or_none_is_probable_enough() -> None:
    vectors = np.stack([unit(1, 0), unit(1, 1), unit(0.2, 1)])
    given = choose_labels(judge([[8, 0], [0, 8]], threshold=0.7), vectors)
    by_row = {
        row: (label, probability)
        for row, label, probability in zip(given.rows, given.labels, given.probabilities, strict=True)
    }
    assert {row: label for row, (label, _) in by_row.items()} == {0: "a", 1: "unknown", 2: "b"}
    assert by_row[1][1] == pytest.approx(0.5)  # of the most probable label
    assert by_row[0][1] == pytest.approx(1 / (1 + np.exp(-8)), rel=1e-5)


def test_each_label_fits_on_its_own() -> None:
    vectors = np.stack([unit(1, 0), unit(1, 1), unit(-1, -1)])
    given = choose_labels(judge([[8, 0], [0, 8], [-9, 0]], is_exclusive=False), vectors)
    found = {row: [label for place, label in enumerate(given.labels) if given.rows[place] == row] for row in range(3)}
    assert found == {0: ["a", "b"], 1: ["a", "b"], 2: ["c"]}  # 0.5 reaches a threshold of 0.5
    assert choose_labels(judge([[8, 0]], is_exclusive=False), vectors[2:]).labels == ["unknown"]


def test_hidden_layers_have_a_relu_between() -> None:
    first = (np.array([[1, 0], [-1, 0]], dtype=np.float32), np.array([0, 0.5], dtype=np.float32))
    last = (np.array([[2, 0], [0, 3]], dtype=np.float32), np.array([0, 1], dtype=np.float32))
    two = Judge(attribute="x", labels=("a", "b"), layers=(first, last), is_exclusive=True, threshold=0)
    np.testing.assert_allclose(
        two.logits(np.array([[0.6, 0.8], [-0.6, 0.8]], dtype=np.float32)), [[1.2, 1], [0, 4.3]]
    )


def draw_labelled(temperature: float, *, is_exclusive: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times what the labels were drawn from."""
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 2, (20_000, 4))
    odds = to_probabilities(logits, is_exclusive=True)
    truth = (odds.cumsum(axis=1) < generator.random((len(odds), 1))).sum(axis=1)
    return temperature * logits, truth


@pytest.mark.parametrize("temperature", [0.2, 1.0, 8.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    logits, truth = draw_labelled(temperature)
    assert fit_temperature(logits, truth, is_exclusive=True) == pytest.approx(temperature, rel=0.03)
    # an independent way: torch's own likelihood on a grid
    grid = np.geomspace(temperature / 3, temperature * 3, 201)
    loss = [torch.nn.functional.cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(truth)) for t in grid]
    assert fit_temperature(logits, truth, is_exclusive=True) == pytest.approx(grid[np.argmin(loss)], rel=0.02)


@pytest.mark.parametrize("products", [2, 20, 1_000])
@pytest.mark.parametrize("labels", [2, 12])
def test_answers_that_are_all_right_leave_the_doubt_of_their_number(products: int, labels: int) -> None:
    """Laplace's rule of succession: after N right ones the next is right by (N + 1) / (N + 2)."""
    truth = np.arange(products) % labels
    logits = 5.0 * np.eye(labels)[truth]
    for is_exclusive in (True, False):
        temperature = fit_temperature(logits, truth, is_exclusive=is_exclusive)
        # independent ones have a logit of 0 for what does not fit, which no temperature moves
        doubt = 1 - to_probabilities(logits / temperature, is_exclusive=is_exclusive)[np.arange(products), truth]
        np.testing.assert_allclose(doubt, 1 / (products + 2), rtol=1e-3)


def test_answers_that_are_all_wrong_say_nothing_and_are_told() -> None:
    logits = np.tile(5 * np.eye(2), (10, 1))
    truth = np.tile([1, 0], 10)
    assert fit_temperature(logits, truth, is_exclusive=True) == pytest.approx(100)
    found = calibrate(judge([[5, 0], [0, 5]]), known(logits.astype(np.float32) / 5, truth), name="x", model="tiny")
    assert (found.accuracy, found.baseline) == (0, 0.5)
    assert found.warnings == (
        "colour is right for 0.0% of the products, and always saying the most frequent label would be for 50.0%: "
        "its labels say nothing about these products",
    )


def known(vectors: np.ndarray, truth: np.ndarray, *, learned: int = 0) -> Known:
    """Products with these labels, of which the model was trained on the last ones."""
    count = len(truth)
    return Known(
        product_ids=tuple(map(str, range(count))),
        urls=((),) * count,
        vectors=vectors,
        truth=truth,
        is_learned=np.arange(count) >= count - learned,
        labels=tuple("abcd"),
        left_out=3,
    )


def test_what_was_learned_from_is_not_calibrated_by_while_there_is_enough_else() -> None:
    """Of what the model has learned everything is right, of the rest half."""
    vectors = np.tile(np.eye(4, dtype=np.float32), (25, 1))
    truth = np.tile(np.arange(4), 25)
    truth[:40:2] += 1
    truth[:40] %= 4
    sure = judge((10 * np.eye(4)).tolist())

    found = calibrate(sure, known(vectors, truth, learned=60), name="farbe", model="tiny")
    few = calibrate(sure, known(vectors, truth, learned=81), name="farbe", model="tiny")

    assert (found.products, found.left_out_trained, found.accuracy) == (40, 60, 0.5)
    assert not any("trained" in warning for warning in found.warnings)
    assert (few.products, few.left_out_trained, few.accuracy) == (100, 0, 0.8)
    assert few.warnings == (
        "model tiny was trained on 81 of these 100 products: "
        "the numbers say little about products that it has not seen",
    )


def test_calibration_makes_confidence_what_is_right() -> None:
    logits, truth = draw_labelled(6.0)
    vectors = (logits / np.linalg.norm(logits, axis=1, keepdims=True)).astype(np.float32)
    # a judge whose logits are these vectors, ten times as sure
    sure = judge((10 * np.eye(4)).tolist())
    found = calibrate(sure, known(vectors, truth), name="farbe", model="tiny")
    assert (found.attribute, found.truth, found.products, found.left_out) == ("colour", "farbe", 20_000, 3)
    assert found.ece_before > 0.1
    assert found.ece_after < 0.05
    assert found.accuracy == pytest.approx((logits.argmax(axis=1) == truth).mean())
    assert found.temperature == found.fitted > 1


def test_a_temperature_that_does_not_help_is_not_used() -> None:
    """Always right and nearly sure of it, which 40 products cannot show: the doubt of 1/42 would be too much."""
    vectors, truth = np.tile(np.eye(4, dtype=np.float32), (10, 1)), np.tile(np.arange(4), 10)

    found = calibrate(judge((7 * np.eye(4)).tolist()), known(vectors, truth), name="farbe", model="tiny")

    assert found.ece_before == pytest.approx(3 / (np.exp(7) + 3), rel=1e-3)
    assert found.ece_after == pytest.approx(1 / 22, abs=0.005)  # of halves of about 20
    assert (found.temperature, found.helps) == (1.0, False)
    assert found.fitted > 1
    # one from before goes, unless it cannot be told from 1
    assert keep_close(found, 100 * found.fitted).temperature == 1.0
    assert keep_close(found, 1.01).temperature == 1.01


def test_the_calibration_error_is_the_papers() -> None:
    """Two bins: 0.9 sure and right half the time, 0.6 sure and always right."""
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 30)
    truth = np.array([0, 1] * 5 + [1] * 30)
    assert expected_error(probabilities, truth) == pytest.approx(0.25 * 0.4 + 0.75 * 0.4)

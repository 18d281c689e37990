"""Ranks, measures and intervals of catvec evaluate, against independent re-computations of their definitions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.evaluate import ranking
from pipeline.evaluate.compare import Comparison, Contest
from pipeline.evaluate.demands import find_unmet, parse_demands, refuse_other_groups
from pipeline.evaluate.gallery import Coverage, Gallery
from pipeline.evaluate.metrics import (
    MEASURES,
    Estimate,
    estimate,
    estimate_difference,
    estimate_mean,
    measure,
    sign_flip_p,
)
from pipeline.evaluate.ranking import rank
from pipeline.evaluate.tables import note_methods, say_coverage, show, show_measure
from pipeline.evaluate.zero_shot import confuse, report_classes
from pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def gallery(images: Sequence[Sequence[NDArray[np.float32]]]) -> Gallery:
    """Products p0, p1 … with these images."""
    counts = [len(own) for own in images]
    return Gallery(
        product_ids=[f"p{place}" for place in range(len(images))],
        titles=[None] * len(images),
        values=[None] * len(images),
        urls=[f"{place}-{view}.jpg" for place, count in enumerate(counts) for view in range(count)],
        vectors=np.array([vector for own in images for vector in own], dtype=np.float32),
        starts=np.array([sum(counts[:place]) for place in range(len(counts))]),
    )


def units(count: int, dims: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_ranks_equal_those_of_sorted_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 products with 1 to 3 images, 15 texts; so small blocks that their borders are crossed."""
    generator = np.random.default_rng(5)
    text_of = np.concatenate([np.arange(15), generator.integers(0, 15, 25)])
    texts = units(15, 8, seed=1)
    images = [list(units(int(generator.integers(1, 4)), 8, seed=100 + place)) for place in range(40)]
    shown = gallery(images)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 4 * len(shown.vectors) * 4)

    ranks = rank(shown, texts, text_of, Progress())

    similarity = [[max(float(image @ text) for image in own) for text in texts] for own in images]
    for product, own_text in enumerate(text_of):
        order = sorted(range(15), key=lambda text: -similarity[product][text])
        assert ranks.products[product] == 1 + order.index(own_text)
        assert ranks.next_texts[product] == next(text for text in order if text != own_text)
    for text in range(15):
        order = sorted(range(40), key=lambda product: -similarity[product][text])
        first = next(product for product in order if text_of[product] == text)
        assert ranks.texts[text] == 1 + order.index(first)


def test_a_model_that_gives_all_the_same_vector_finds_nothing() -> None:
    same = units(1, 16, seed=3)[0]

    ranks = rank(gallery([[same]] * 7), np.array([same] * 7), np.arange(7), Progress())

    assert ranks.products.tolist() == ranks.texts.tolist() == [7] * 7


def test_other_products_of_the_asked_text_stand_in_nobodys_way() -> None:
    text, far = np.eye(2, dtype=np.float32)

    ranks = rank(gallery([[text], [text], [far]]), np.array([text, far]), np.array([0, 0, 1]), Progress())

    assert (ranks.texts.tolist(), ranks.products.tolist()) == ([1, 1], [1, 1, 1])


def test_the_average_of_a_product_is_a_unit_vector() -> None:
    right, up = np.eye(2, dtype=np.float32)

    averaged = gallery([[right, up], [up, -up], [right]]).average()

    assert averaged.vectors == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 1], [1, 0]]))
    assert averaged.urls == ["0-0.jpg", "1-0.jpg", "2-0.jpg"]
    assert averaged.image_counts.tolist() == [1, 1, 1]


def test_kept_products_keep_their_images() -> None:
    vectors = units(6, 4, seed=2)
    whole = gallery([list(vectors[:3]), [vectors[3]], list(vectors[4:])])

    kept = whole.keep(np.array([True, False, True]))

    assert (kept.product_ids, kept.starts.tolist()) == (["p0", "p2"], [0, 3])
    assert kept.urls == ["0-0.jpg", "0-1.jpg", "0-2.jpg", "2-0.jpg", "2-1.jpg"]
    assert kept.vectors.tolist() == vectors[[0, 1, 2, 4, 5]].tolist()


def test_a_single_text_has_no_next_one() -> None:
    vectors = units(2, 4, seed=8)

    ranks = rank(gallery([[vectors[0]], [vectors[1]]]), vectors[:1], np.array([0, 0]), Progress())

    assert ranks.next_texts.tolist() == [-1, -1]


def test_measures_are_those_of_their_definitions() -> None:
    ranks = [1, 1, 2, 3, 5, 6, 10, 11, 40, 1]

    found = dict(zip(MEASURES, measure(np.array(ranks)), strict=True))

    assert found == {
        "recall@1": pytest.approx(3 / 10),
        "recall@5": pytest.approx(6 / 10),
        "recall@10": pytest.approx(8 / 10),
        "mrr": pytest.approx(float(sum(Fraction(1, place) for place in ranks) / 10)),
        "median_rank": pytest.approx(4),
    }


def test_an_interval_is_that_of_the_normal_approximation_for_many_queries() -> None:
    """For 2,000 queries the bootstrap of a share must agree with ± 1.96 · sqrt(p (1 - p) / n) to a few per cent."""
    ranks = np.where(np.arange(2_000) < 600, 1, 50)

    found = estimate(ranks, seed=1)["recall@1"]

    half = 1.96 * math.sqrt(0.3 * 0.7 / 2_000)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=0.003), pytest.approx(0.3 + half, abs=0.003))
    assert estimate(ranks, seed=1) == estimate(ranks, seed=1)
    assert estimate(ranks, seed=1) != estimate(ranks, seed=2)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    """Both models are right on the same queries, but for 20 of 400 that only the second finds."""
    first = np.where(np.arange(400) < 200, 1, 9)
    second = np.where(np.arange(400) < 220, 1, 9)

    difference = estimate_difference(first, second, seed=0)["recall@1"]

    assert difference.value == pytest.approx(0.05)
    assert 0.025 < difference.low < difference.high < 0.075
    assert estimate(first, seed=0)["recall@1"].high > estimate(second, seed=0)["recall@1"].low


def test_the_mean_has_its_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 1_000)

    found = estimate_mean(values, seed=0)

    half = 1.96 * float(values.std()) / math.sqrt(1_000)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_the_sign_flip_test_agrees_with_all_choices_of_signs() -> None:
    differences = np.array([0.5, 0.25, 1.0, -0.1, 0.7, 0.0, 0.3, -0.2, 0.9])

    found = sign_flip_p(differences, seed=4)

    flips = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    exact = np.mean([abs(total) >= abs(differences.sum()) - 1e-12 for total in flips])
    assert found == pytest.approx(float(exact), abs=0.01)


def test_the_sign_flip_test_of_hits_is_mcnemars() -> None:
    """15 queries only the second model finds, 4 only the first: two-sided binomial test of 4 in 19."""
    differences = np.array([1.0] * 15 + [-1.0] * 4 + [0.0] * 500)

    exact = 2 * sum(math.comb(19, wins) for wins in range(5)) / 2**19

    assert sign_flip_p(differences, seed=0) == pytest.approx(exact, abs=0.006)
    assert sign_flip_p(np.zeros(10), seed=0) == 1.0


def contest(difference: float, p: float) -> Contest:
    gained = {"recall@1": Estimate(value=difference, low=-1, high=1, method="bootstrap")}
    return Contest(
        queries=4,
        candidates=4,
        first={},
        second={},
        difference=gained,
        p={"recall@1": p},
        only_first=0,
        only_second=0,
    )


def comparison(text_to_image: Contest, image_to_text: Contest) -> Comparison:
    return Comparison(
        first="old",
        second="new",
        coverage=Coverage(products=4, images=4, trained=0, left_out_trained=0, left_out_unanswered=0),
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        unstated=(),
        warnings=(),
    )


@pytest.mark.parametrize(
    ("of_texts", "of_products", "decision"),
    [
        ((0.25, 1.0), (0.112, 0.0001), "new finds more than old, image → text only"),
        ((-0.2, 0.01), (0.1, 0.5), "old finds more than new, text → image only"),
        ((0.2, 0.01), (0.1, 0.02), "new finds more than old both ways"),
        ((0.2, 0.01), (-0.1, 0.02), "old finds more image → text, new more text → image"),
        ((0.2, 0.05), (-0.1, 0.06), "old and new show no sure difference"),
    ],
)
def test_a_comparison_is_decided_by_both_directions(
    of_texts: tuple[float, float], of_products: tuple[float, float], decision: str
) -> None:
    found = comparison(contest(*of_texts), contest(*of_products))

    assert found.decision == decision
    assert found.summary.startswith(
        f"judged by 4 products with 4 images\n{decision}: recall@1 of new less that of old"
    )


def test_a_comparison_says_what_its_decision_rests_on() -> None:
    found = comparison(contest(-0.25, 1.0), contest(0.112, 0.0001))

    assert found.differences == (
        "recall@1 of new less that of old is text → image -0.250 (p 1.000), image → text +0.112 (p < 0.001)"
    )


def test_all_right_or_none_is_not_certainty() -> None:
    """57 of 57 and 0 of 57: Wilson's interval, z² / (57 + z²) wide."""
    wide = 1.96**2 / (57 + 1.96**2)

    hits, misses = estimate(np.ones(57, dtype=np.int64), seed=0), estimate(np.full(57, 11), seed=0)
    mean = estimate_mean(np.ones(57), seed=0)

    for found in (hits["recall@1"], hits["mrr"], mean):
        assert (found.value, found.high, found.method) == (1, 1, "wilson")
        assert found.low == pytest.approx(1 - wide, abs=1e-4)
    assert (misses["recall@10"].low, misses["recall@10"].method) == (0, "wilson")
    assert misses["recall@10"].high == pytest.approx(wide, abs=1e-4)
    # what was not asked may have any reciprocal rank
    assert misses["mrr"].low == pytest.approx((1 - wide) / 11, abs=1e-4)
    assert misses["mrr"].high == pytest.approx((1 - wide) / 11 + wide, abs=1e-4)
    assert (hits["median_rank"].low, hits["median_rank"].high) == (1, 1)
    assert estimate(np.array([1] * 56 + [2]), seed=0)["recall@1"].method == "bootstrap"


def test_no_difference_at_all_is_not_certainty() -> None:
    ranks = np.ones(57, dtype=np.int64)

    found = estimate_difference(ranks, ranks, seed=0)["recall@1"]

    assert (found.value, found.low, found.high) == (
        0,
        pytest.approx(-0.0631, abs=1e-4),
        pytest.approx(0.0631, abs=1e-4),
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1.000"), (0.0, "0.000"), (0.996, "0.996"), (0.99961, "0.9996"), (0.00001, "0.00001"), (-1e-17, "0.000")],
)
def test_no_number_reads_as_all_or_none_that_is_not(value: float, shown: str) -> None:
    assert show(value) == shown


def test_intervals_of_wilson_are_marked_and_explained() -> None:
    [alike, mixed] = (Estimate(value=1, low=0.9, high=1, method=method) for method in ("wilson", "bootstrap"))

    assert show_measure("recall@1", alike) == ("1.000", "0.900–1.000*")
    assert show_measure("recall@1", mixed) == ("1.000", "0.900–1.000")
    assert note_methods([mixed]) == ""
    assert note_methods([mixed, alike]).startswith("* after Wilson: ")


def test_classes_are_counted_as_defined() -> None:
    truth = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    given = [0, 1, 1, 1, 1, 0, 2, 2, 0]

    confusion = confuse(np.array(truth), np.array(given), 4)
    classes = report_classes(["dress", "skirt", "coat", "hat"], confusion)

    pairs = list(zip(truth, given, strict=True))
    assert confusion.tolist() == [[pairs.count((row, column)) for column in range(4)] for row in range(4)]
    assert [(entry.label, entry.products, entry.given, entry.right) for entry in classes] == [
        ("dress", 3, 3, 1),
        ("skirt", 2, 4, 2),
        ("coat", 4, 2, 2),
        ("hat", 0, 0, 0),
    ]
    assert [entry.precision for entry in classes] == [pytest.approx(1 / 3), 0.5, 1.0, None]
    assert [entry.recall for entry in classes] == [pytest.approx(1 / 3), 1.0, 0.5, None]
    assert [entry.f1 for entry in classes] == [pytest.approx(1 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), None]
    assert [entry.most_confused_with for entry in classes] == ["skirt", None, "dress", None]


@pytest.mark.parametrize(
    ("trained", "unstated", "said"),
    [
        (0, (), "judged by 4 products with 5 images; left out: 2 without a title"),
        (
            None,
            (),
            "judged by 4 products with 5 images; left out: 2 without a title; "
            "the model does not state what it was trained on",
        ),
        (
            0,
            ("new",),
            "judged by 4 products with 5 images; left out: 2 without a title; "
            "new does not state what it was trained on",
        ),
        (
            None,
            ("old", "new"),
            "judged by 4 products with 5 images; left out: 2 without a title; "
            "old and new do not state what they were trained on",
        ),
    ],
)
def test_a_model_that_does_not_state_its_training_is_named(
    trained: int | None, unstated: tuple[str, ...], said: str
) -> None:
    coverage = Coverage(products=4, images=5, trained=trained, left_out_trained=0, left_out_unanswered=2)

    assert say_coverage(coverage, "a title", unstated=unstated) == said


def test_demands_are_names_and_numbers() -> None:
    [plain, grouped] = parse_demands(["recall@1=0.8", "held=no=so:recall@1=-0.25"], ["recall@1", "mrr"])

    assert (plain.name, plain.least) == ("recall@1", 0.8)
    assert (grouped.name, grouped.least) == ("held=no=so:recall@1", -0.25)


@pytest.mark.parametrize("text", ["recall@1", "recall@1=", "recall@1=much", "recall@1=80", "recall@1=nan", "0.8"])
def test_a_demand_without_a_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_demands([text], ["recall@1"])

    assert caught.value.message == f"--fail-under is {text!r}, expected a name and a number up to 1"
    assert caught.value.hint == "such as recall@1=0.8"


def test_a_demand_for_what_is_not_measured_names_what_is() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_demands(["recall@2=0.5"], ["recall@1", "mrr"])

    assert caught.value.message == "--fail-under 'recall@2' is not measured, there are: recall@1, mrr"


def test_a_demand_for_an_unknown_group_names_the_groups() -> None:
    demands = parse_demands(["colour=rde:recall@1=0.5"], ["recall@1"])

    with pytest.raises(ConfigError) as caught:
        find_unmet(demands, {"recall@1": 0.9, "mrr": 0.8, "colour=red:recall@1": 1.0})

    expected = "--fail-under 'colour=rde:recall@1' is not measured, there are: recall@1, colour=red:recall@1"
    assert caught.value.message == expected


@pytest.mark.parametrize(("by", "now"), [(None, "no --by is given"), ("brand", "--by is 'brand'")])
def test_a_demand_for_a_group_that_is_not_reported_says_how_it_would_be(by: str | None, now: str) -> None:
    demands = parse_demands(["recall@1=0.5", "held out=yes:recall@1=0.5"], ["recall@1"])

    with pytest.raises(ConfigError) as caught:
        refuse_other_groups(demands, by)

    assert caught.value.message == f"--fail-under 'held out=yes:recall@1' names a group, and {now}"
    assert caught.value.hint == "report that attribute's groups: --by 'held out'"
    refuse_other_groups(demands, "held out")


def test_what_falls_short_is_said_with_enough_digits() -> None:
    demands = parse_demands(["recall@1=0.8", "mrr=0.5", "recall@5=0.9"], ["recall@1", "recall@5", "mrr"])

    unmet = find_unmet(demands, {"recall@1": 0.79996, "mrr": 0.5, "recall@5": 0.4})

    assert unmet == ["recall@1 is 0.79996, expected 0.8", "recall@5 is 0.400, expected 0.9"]

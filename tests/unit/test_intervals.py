"""How sure a share is, against published tables, and how it is said."""

from __future__ import annotations

import pytest

from pipeline.intervals import say_percent, wilson_interval


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # R's prop.test(…, correct = FALSE)
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
    ],
)
def test_wilsons_interval_is_that_of_the_tables(right: int, of: int, low: float, high: float) -> None:
    assert wilson_interval(right, of) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, "100%"),
        (0.0, "0%"),
        (0.412, "41%"),
        (0.996, "99.6%"),
        (0.99996, "99.996%"),
        (0.004, "0.4%"),
        (1 - 1e-12, "100%"),
    ],
)
def test_all_and_none_are_said_of_nothing_less(share: float, said: str) -> None:
    assert say_percent(share) == said


def test_a_percentage_has_the_digits_that_were_asked_for() -> None:
    assert [say_percent(share, 1) for share in (0.5, 0.9996, 1)] == ["50.0%", "99.96%", "100%"]

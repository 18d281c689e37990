"""From ranks and differences to numbers, and how sure they are: plain NumPy, and seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from pipeline.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

CUTOFFS: Final = (1, 5, 10)
MEASURES: Final = (*(f"recall@{k}" for k in CUTOFFS), "mrr", "median_rank")
SHARES: Final = MEASURES[:-1]
"""those between 0 and 1 that are better when larger"""
RESAMPLES: Final = 1_000
"""of the bootstrap: the ends of a 95 % interval then vary by a hundredth or two of its width from seed to seed"""
CONFIDENCE: Final = (2.5, 97.5)
"""percentiles of a 95 % interval"""
SAME: Final = 1e-9
"""spread of means that differ by rounding alone"""
FLIPS: Final = 10_000
"""of the sign-flip test: the least p that it can give is 1 in 10,001"""
FLIPS_AT_ONCE: Final = 256


Method: TypeAlias = Literal["bootstrap", "wilson"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What was measured, and the 95 % interval around it, with the method that gave the interval."""

    value: float
    low: float
    high: float
    method: Method


def measure(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The MEASURES [M] of ranks [N], which count from 1: shares of ranks up to k, mean of 1 / rank, median."""
    recalls = [np.count_nonzero(ranks <= k) / len(ranks) for k in CUTOFFS]
    return np.array([*recalls, np.mean(1 / ranks), np.median(ranks)])


def estimate(ranks: NDArray[np.int64], *, seed: int) -> Mapping[str, Estimate]:
    """Each of MEASURES with its interval, by the percentile bootstrap over the queries (Efron 1979)."""
    drawn = np.array([measure(ranks[draw]) for draw in _draws(len(ranks), seed)])
    return _estimates(measure(ranks), drawn, len(ranks), least=0)


def estimate_difference(first: NDArray[np.int64], second: NDArray[np.int64], *, seed: int) -> Mapping[str, Estimate]:
    """Each of MEASURES of `second` minus that of `first`, ranks [N] of the same queries, drawn together."""
    drawn = np.array([measure(second[draw]) - measure(first[draw]) for draw in _draws(len(first), seed)])
    return _estimates(measure(second) - measure(first), drawn, len(first), least=-1)


def estimate_mean(values: NDArray[np.float64], *, seed: int) -> Estimate:
    """The mean of values [N] from 0 to 1 with its interval, by the same bootstrap."""
    drawn = np.array([values[draw].mean() for draw in _draws(len(values), seed)])
    return _estimate_mean(float(values.mean()), drawn, len(values), least=0)


def _draws(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """RESAMPLES times `count` places below `count`, one after the other: together they may be a gigabyte."""
    generator = np.random.default_rng(seed)
    return (generator.integers(0, count, count) for _ in range(RESAMPLES))


def _estimates(
    values: NDArray[np.float64], drawn: NDArray[np.float64], queries: int, *, least: int
) -> Mapping[str, Estimate]:
    means = {
        name: _estimate_mean(float(value), column, queries, least=least)
        for name, value, column in zip(SHARES, values, drawn.T, strict=False)
    }
    # where all have one rank, more of them would hardly have another in the middle
    return means | {MEASURES[-1]: _between(float(values[-1]), drawn[:, -1])}


def _estimate_mean(value: float, drawn: NDArray[np.float64], count: int, *, least: int) -> Estimate:
    """The mean of `count` values from `least` to 1 which, drawn anew, had the means `drawn` [RESAMPLES].

    Values that are all the same leave the bootstrap no width. Then Wilson's interval says how many that were not
    asked may be otherwise, and those may be anything; for shares it is his interval itself.
    """
    if np.ptp(drawn) > SAME:
        return _between(value, drawn)
    otherwise = 1 - wilson_interval(count, count)[0]
    return Estimate(
        value=value,
        low=value + otherwise * (least - value),
        high=value + otherwise * (1 - value),
        method="wilson",
    )


def _between(value: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(drawn, CONFIDENCE)
    return Estimate(value=value, low=float(low), high=float(high), method="bootstrap")


def sign_flip_p(differences: NDArray[np.float64], *, seed: int) -> float:
    """How probable a mean difference at least as large as this is by chance, for paired differences [N]; two-sided.

    If both models were alike, each pair's difference could as well have the other sign (Fisher 1935); the share of
    FLIPS random choices of signs that give as much, the observed one counted among them.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    generator = np.random.default_rng(seed)
    total, as_large = differences.sum(), 0
    for start in range(0, FLIPS, FLIPS_AT_ONCE):
        flips = min(FLIPS_AT_ONCE, FLIPS - start)
        packed = generator.integers(0, 256, (flips, -(-len(differences) // 8)), dtype=np.uint8)
        # the sum of what keeps its sign, twice, less all: that of what keeps it less that of what changes it
        kept = np.unpackbits(packed, axis=1, count=len(differences)).astype(np.float32) @ differences
        as_large += int(np.count_nonzero(np.abs(2 * kept - total) >= abs(total) * (1 - 1e-9)))
    return float((1 + as_large) / (1 + FLIPS))


def share(right: int, of: int) -> Estimate:
    """`right` of `of` with Wilson's interval."""
    low, high = wilson_interval(right, of)
    return Estimate(value=right / of, low=low, high=high, method="wilson")

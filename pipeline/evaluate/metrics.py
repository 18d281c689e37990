"""From ranks and differences to numbers, and how sure they are: plain NumPy, and seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
FLIPS: Final = 10_000
"""of the sign-flip test: the least p that it can give is 1 in 10,001"""
FLIPS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What was measured, and the 95 % interval around it."""

    value: float
    low: float
    high: float


def measure(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The MEASURES [M] of ranks [N], which count from 1: shares of ranks up to k, mean of 1 / rank, median."""
    recalls = [np.count_nonzero(ranks <= k) / len(ranks) for k in CUTOFFS]
    return np.array([*recalls, np.mean(1 / ranks), np.median(ranks)])


def estimate(ranks: NDArray[np.int64], *, seed: int) -> Mapping[str, Estimate]:
    """Each of MEASURES with its interval, by the percentile bootstrap over the queries (Efron 1979)."""
    drawn = np.array([measure(ranks[draw]) for draw in _draws(len(ranks), seed)])
    return _estimates(measure(ranks), drawn)


def estimate_difference(first: NDArray[np.int64], second: NDArray[np.int64], *, seed: int) -> Mapping[str, Estimate]:
    """Each of MEASURES of `second` minus that of `first`, ranks [N] of the same queries, drawn together."""
    drawn = np.array([measure(second[draw]) - measure(first[draw]) for draw in _draws(len(first), seed)])
    return _estimates(measure(second) - measure(first), drawn)


def estimate_mean(values: NDArray[np.float64], *, seed: int) -> Estimate:
    """The mean of values [N] with its interval, by the same bootstrap."""
    drawn = [values[draw].mean() for draw in _draws(len(values), seed)]
    low, high = np.percentile(drawn, CONFIDENCE)
    return Estimate(value=float(values.mean()), low=float(low), high=float(high))


def _draws(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """RESAMPLES times `count` places below `count`, one after the other: together they may be a gigabyte."""
    generator = np.random.default_rng(seed)
    return (generator.integers(0, count, count) for _ in range(RESAMPLES))


def _estimates(values: NDArray[np.float64], drawn: NDArray[np.float64]) -> Mapping[str, Estimate]:
    ends = np.percentile(drawn, CONFIDENCE, axis=0)
    return {
        name: Estimate(value=float(value), low=float(low), high=float(high))
        for name, value, low, high in zip(MEASURES, values, *ends, strict=True)
    }


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
    return Estimate(value=right / of, low=low, high=high)

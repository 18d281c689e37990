"""Temperatures: how much to trust a judge's probabilities, found on products whose label is known.

Guo et al. 2017, "On Calibration of Modern Neural Networks": one number per attribute divides all logits, so the most
probable label stays the same, and only how probable it is changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.judging import to_probabilities
from pipeline.learned import warn_of_learned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.judging import Judge
    from pipeline.known import Known

FEWEST_KNOWN = 20
"""products with a known label that a temperature is fitted on, at least"""
BINS = 15
"""of confidence, as in the paper"""
LOWEST, HIGHEST = 0.01, 100.0
"""temperatures that are looked at; where every answer is wrong, the best one is infinite"""
CLOSE = 0.05
"""parts by which a temperature may be off before all products are judged anew: no probability of two labels moves by
more than 1.1 points for that"""
HALVINGS = 40
"""of the range in which the best temperature lies: to a part in 10^11"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a temperature does, on products that it was not fitted on.

    `accuracy` is of the most probable label. `ece_before` (by the judge's own temperature of 1) and `ece_after` are
    expected calibration errors: by how much confidence and accuracy differ on average, 0 to 1. `baseline` would be
    right by always saying the most frequent label. `fitted` is the temperature that was found, `temperature` the one
    that counts: 1 where the found one makes the error no smaller, and an earlier one while it is close. `uncertainty`
    is the standard error of its logarithm, about the part by which so few products leave it open. `truth` is the
    attribute of the catalog, `left_out` are products whose value there is none of the labels, `left_out_trained`
    those that the model was trained on, of which none is here unless too few others are; `warnings` say so.
    """

    attribute: str
    truth: str
    products: int
    left_out: int
    left_out_trained: int
    accuracy: float
    baseline: float
    temperature: float
    fitted: float
    uncertainty: float
    ece_before: float
    ece_after: float
    warnings: tuple[str, ...]

    @property
    def helps(self) -> bool:
        """Whether the temperature that was found makes the calibration error smaller."""
        return self.ece_after < self.ece_before


def calibrate(judge: Judge, known: Known, *, name: str, model: str) -> Calibration:
    """Fit a temperature on what the catalog knows, at least 2 products, under the attribute's `name` there.

    The errors are measured crosswise: each half by the temperature of the other.
    """
    fair = known.keep(~known.is_learned)
    used = fair if len(fair) >= FEWEST_KNOWN else known
    logits, truth = judge.logits(used.vectors).astype(np.float64), used.truth
    # not by their order: ids may be in that of a label
    halves = np.random.default_rng(0).permutation(len(truth)) % 2
    before = to_probabilities(logits, is_exclusive=judge.is_exclusive)
    after = np.empty_like(before)
    for half in (0, 1):
        temperature = fit_temperature(logits[halves != half], truth[halves != half], is_exclusive=judge.is_exclusive)
        after[halves == half] = to_probabilities(
            logits[halves == half] / temperature, is_exclusive=judge.is_exclusive
        )
    fitted = fit_temperature(logits, truth, is_exclusive=judge.is_exclusive)
    accuracy, baseline = float((logits.argmax(axis=1) == truth).mean()), share_of_largest(truth)
    found = Calibration(
        attribute=judge.attribute,
        truth=name,
        products=len(truth),
        left_out=known.left_out,
        left_out_trained=len(known) - len(used),
        accuracy=accuracy,
        baseline=baseline,
        temperature=fitted,
        fitted=fitted,
        uncertainty=find_uncertainty(logits, fitted, is_exclusive=judge.is_exclusive),
        ece_before=expected_error(before, truth),
        ece_after=expected_error(after, truth),
        warnings=(
            *warn_of_learned(model, learned=int(used.is_learned.sum()), products=len(used)),
            *warn_of_baseline(judge.attribute, accuracy, baseline),
        ),
    )
    # the doubt of so few products may be more than that of a judge who is nearly always right
    return found if found.helps else replace(found, temperature=1.0)


def keep_close(found: Calibration, before: float | None) -> Calibration:
    """With the temperature from before, if there is one and the new one cannot be told from it, or is close to it."""
    if before is None or abs(math.log(found.temperature / before)) > max(CLOSE, found.uncertainty):
        return found
    return replace(found, temperature=before)


def share_of_largest(truth: NDArray[np.int64]) -> float:
    """How often always saying the most frequent label would be right."""
    return float(np.bincount(truth).max() / len(truth))


def warn_of_baseline(attribute: str, accuracy: float, baseline: float) -> tuple[str, ...]:
    """What must stand beside probabilities that mean nothing."""
    if accuracy > baseline:
        return ()
    return (
        f"{attribute} is right for {accuracy:.1%} of the products, and always saying the most frequent label would "
        f"be for {baseline:.1%}: its labels say nothing about these products",
    )


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[np.int64], *, is_exclusive: bool) -> float:
    """The temperature that makes the truth most likely (least negative log-likelihood), within LOWEST and HIGHEST.

    As if one more product had been seen for either outcome: N answers that are all right make the next one right by
    (N + 1) / (N + 2), Laplace's rule of succession, and not by 1 (Platt 1999, "Probabilistic Outputs for Support
    Vector Machines", section 2.2, has the same targets).
    """
    targets = _soften(truth, logits.shape[1])
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    # the likelihood is concave in 1 / temperature, so its slope changes sign once
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _slope(logits, targets, np.exp(middle), is_exclusive=is_exclusive) > 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def _soften(truth: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    """How probable each label is to be taken for [N, L], for each product: the true one nearly 1."""
    doubt = 1 / (len(truth) + 2)
    targets = np.full((len(truth), labels), doubt / max(1, labels - 1))
    targets[np.arange(len(truth)), truth] = 1 - doubt
    return targets


def _slope(
    logits: NDArray[np.float64], targets: NDArray[np.float64], sharpness: float, *, is_exclusive: bool
) -> float:
    """Of the log-likelihood, by 1 / temperature."""
    probabilities = to_probabilities(logits * sharpness, is_exclusive=is_exclusive)
    return float(((targets - probabilities) * logits).sum(axis=1).mean())


def find_uncertainty(logits: NDArray[np.float64], temperature: float, *, is_exclusive: bool) -> float:
    """The standard error of the logarithm of a fitted temperature, by the curvature of the likelihood there."""
    scaled = logits / temperature
    probabilities = to_probabilities(scaled, is_exclusive=is_exclusive)
    if is_exclusive:
        scaled = scaled - (probabilities * scaled).sum(axis=1, keepdims=True)
        information = float((probabilities * scaled**2).sum())
    else:
        information = float((probabilities * (1 - probabilities) * scaled**2).sum())
    return 1 / math.sqrt(information) if information > 0 else math.inf


def expected_error(probabilities: NDArray[np.floating], truth: NDArray[np.int64]) -> float:
    """The expected calibration error of the most probable label, in BINS bins of equal width."""
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(truth))

"""What was measured as tables of words, for the terminal and the page alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.learned import warn_of_learned

if TYPE_CHECKING:
    from pipeline.evaluate.gallery import Coverage
    from pipeline.evaluate.metrics import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`right` numbers the columns of numbers, `spare` those that a narrow terminal can do without."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()


def show(value: float | None, *, digits: int = 3) -> str:
    """0.412, or a dash for what is not."""
    return "–" if value is None else f"{value:,.{digits}f}"


def show_rank(value: float) -> str:
    """12.5 or 12: the median of ranks may lie between two of them."""
    return f"{value:,.1f}".removesuffix(".0")


def show_measure(name: str, estimate: Estimate) -> tuple[str, str]:
    """The value of one of MEASURES, and its interval: 0.380–0.441, or with to between when there are signs."""
    shown = show_rank if name == "median_rank" else show
    between = " to " if min(estimate.low, estimate.high) < 0 else "–"
    return shown(estimate.value), f"{shown(estimate.low)}{between}{shown(estimate.high)}"


def show_p(p: float) -> str:
    """0.0312, or below what the test can tell."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def warn_of_trained(coverage: Coverage, model: str) -> tuple[str, ...]:
    """What must stand beside every number when a model is judged by what it was trained on."""
    return warn_of_learned(model, learned=coverage.trained or 0, products=coverage.products)


def say_coverage(coverage: Coverage, lacking: str) -> str:
    """Which products were judged, in one sentence; `lacking` is what those without a right answer have none of."""
    left_out = []
    if coverage.left_out_trained:
        left_out.append(f"{coverage.left_out_trained:,} trained on")
    if coverage.left_out_unanswered:
        left_out.append(f"{coverage.left_out_unanswered:,} without {lacking}")
    judged = f"judged by {coverage.products:,} products with {coverage.images:,} images"
    return judged + (f"; left out: {', '.join(left_out)}" if left_out else "")

"""What was measured as tables of words, for the terminal and the page alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.intervals import FINEST
from pipeline.learned import warn_of_learned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.evaluate.gallery import Coverage
    from pipeline.evaluate.metrics import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`right` numbers the columns of numbers, `spare` those that a narrow terminal can do without; `note` is to be
    said below.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()
    note: str = ""


def show(value: float | None, *, digits: int = 3) -> str:
    """0.412, or a dash for what is not; 0.9996 with as many digits as it takes not to read as none or all."""
    if value is None:
        return "–"
    texts = [f"{value:,.{more}f}" for more in range(digits, FINEST + 1)]
    if value in (0, 1):
        return texts[0]
    return next(
        (text for text in texts if float(text.replace(",", "")) not in (-1, 0, 1)), f"{abs(value):.{digits}f}"
    )


def show_rank(value: float) -> str:
    """12.5 or 12: the median of ranks may lie between two of them."""
    return f"{value:,.1f}".removesuffix(".0")


def show_measure(name: str, estimate: Estimate) -> tuple[str, str]:
    """The value of one of MEASURES, and its interval, with a star where it is not the bootstrap's."""
    shown = show_rank if name == "median_rank" else show
    return shown(estimate.value), show_interval(name, estimate) + ("*" if estimate.method == "wilson" else "")


def show_interval(name: str, estimate: Estimate) -> str:
    """0.380–0.441, or with to between when there are signs."""
    shown = show_rank if name == "median_rank" else show
    between = " to " if min(estimate.low, estimate.high) < 0 else "–"
    return f"{shown(estimate.low)}{between}{shown(estimate.high)}"


def note_methods(estimates: Iterable[Estimate]) -> str:
    """What the stars among these mean, if there are any."""
    if all(estimate.method == "bootstrap" for estimate in estimates):
        return ""
    return "* after Wilson: all questions came out alike, so that drawing them anew shows no spread"


def show_p(p: float) -> str:
    """0.0312, or below what the test can tell."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def warn_of_trained(coverage: Coverage, model: str) -> tuple[str, ...]:
    """What must stand beside every number when a model is judged by what it was trained on."""
    return warn_of_learned(model, learned=coverage.trained or 0, products=coverage.products)


def say_coverage(coverage: Coverage, lacking: str, *, unstated: Sequence[str] = ()) -> str:
    """Which products were judged, in one sentence; `lacking` is what those without a right answer have none of.

    `unstated` are those of several models that do not state what they were trained on.
    """
    left_out = []
    if coverage.left_out_trained:
        left_out.append(f"{coverage.left_out_trained:,} trained on")
    if coverage.left_out_unanswered:
        left_out.append(f"{coverage.left_out_unanswered:,} without {lacking}")
    said = [f"judged by {coverage.products:,} products with {coverage.images:,} images"]
    if left_out:
        said.append(f"left out: {', '.join(left_out)}")
    if len(unstated) > 1:
        said.append(f"{' and '.join(unstated)} do not state what they were trained on")
    elif unstated or coverage.trained is None:
        said.append(f"{unstated[0] if unstated else 'the model'} does not state what it was trained on")
    return "; ".join(said)

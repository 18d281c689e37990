"""How fast images get done, and what that means for time and money: what is left of a run, and what a run would take.

The rate is of the last minute, not of the whole run: what needed no work, the loading of the model and a server that
was down at first say nothing of what comes. Images that failed count as done: they are not worked on any more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipeline.progress import Snapshot

WINDOW_S: Final = 60.0
LEAST_S: Final = 5.0
"""of work before it is foretold: the first images come in one lot, behind the first batch"""
POINT_S: Final = 0.5
"""between two points that are kept: 120 of them are a minute"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is left of a run, or of a phase of it that counts something else than images.

    `left_s` and `expected_cost` are None while nothing can be foretold; the costs also without a price.
    """

    left_s: float | None
    cost: float | None
    expected_cost: float | None


class Pace:
    """Follows the counters of one run; `price` is what an hour costs. Not for several threads."""

    def __init__(self, price: float | None = None) -> None:
        self._price = price
        self._points: deque[tuple[float, int]] = deque()

    def look(self, now: Snapshot) -> Outlook:
        """What is left as of this snapshot; they come in the order of their time."""
        self._note(now)
        if now.steps is not None:
            left_s = now.steps.left_s
        else:
            left_s = None if now.total is None else remaining_s(now.total - now.done, self._images_per_s())
        whole_s = None if left_s is None else now.seconds + left_s
        return Outlook(
            left_s=left_s, cost=cost_of(now.seconds, self._price), expected_cost=cost_of(whole_s, self._price)
        )

    def _note(self, now: Snapshot) -> None:
        points, here = self._points, (now.seconds, now.done)
        if now.total is None:
            points.clear()
        elif len(points) == 1 and points[0][1] == now.done:
            points[0] = here  # nothing has been done yet
        elif not points or here[0] - points[-1][0] >= POINT_S:
            points.append(here)
        while len(points) > 2 and points[1][0] <= now.seconds - WINDOW_S:
            points.popleft()

    def _images_per_s(self) -> float | None:
        if len(self._points) < 2:
            return None
        (began_s, done), (ended_s, more) = self._points[0], self._points[-1]
        return (more - done) / (ended_s - began_s) if ended_s - began_s >= LEAST_S else None


def remaining_s(images: float, images_per_s: float | None) -> float | None:
    """Seconds that so many images take; None when the rate is not known, or nothing gets done."""
    if images <= 0:
        return 0.0
    return images / images_per_s if images_per_s else None


def cost_of(seconds: float | None, price: float | None) -> float | None:
    """What a machine costs for so long, at `price` an hour."""
    return None if seconds is None or price is None else round(seconds / 3600 * price, 4)


def show_cost(cost: float) -> str:
    """12.30, or 0.0042: with two digits that say something."""
    return f"{cost:,.2f}" if cost >= 0.1 or not cost else f"{cost:.2g}" if cost >= 1e-4 else f"{cost:.4f}"

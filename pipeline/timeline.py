"""What a run did when: its counters over time, in bounded memory however long it lasts.

timeline = Timeline()
timeline.add(progress.snapshot())   # every second, or as often as is convenient
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.progress import Snapshot

MOST_POINTS: Final = 300
"""one point is two pixels of a chart on a wide screen"""
MOST_SPANS: Final = 40
"""phases with their times; a run has about ten"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The counters `seconds` after the beginning; all of them only grow."""

    seconds: float
    embedded: int
    checked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time in which the run was in one phase, in seconds after its beginning."""

    phase: str
    began_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


@dataclass(slots=True)
class Timeline:
    """The points of a run in order. When there are `MOST_POINTS`, neighbours are merged and the spacing doubles."""

    points: list[Point] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    _spacing_s: float = 0.0

    def add(self, snapshot: Snapshot) -> None:
        """Note where the run is; snapshots come in the order of their time, by one thread at a time."""
        self._add_span(snapshot)
        before = self.points[-2].seconds if len(self.points) > 1 else 0.0
        # the last point is provisional: nearer than the spacing to the one before it, it moves on
        if self.points and self.points[-1].seconds - before < self._spacing_s:
            self.points.pop()
        self.points.append(Point(seconds=snapshot.seconds, embedded=snapshot.embedded, checked=snapshot.checked))
        if len(self.points) >= MOST_POINTS:
            # the counters are totals, so to merge two points is to forget the earlier one
            self.points = self.points[1::2]
            self._spacing_s = 2 * self.points[-1].seconds / MOST_POINTS

    def _add_span(self, snapshot: Snapshot) -> None:
        if self.spans and self.spans[-1].phase == snapshot.phase:
            began_s = self.spans.pop().began_s
        else:
            began_s = self.spans[-1].ended_s if self.spans else 0.0
        self.spans.append(Span(phase=snapshot.phase, began_s=began_s, ended_s=snapshot.seconds))
        if len(self.spans) > MOST_SPANS:
            shortest = min(range(1, MOST_SPANS), key=lambda place: self.spans[place].seconds)
            earlier, later = self.spans[shortest - 1], self.spans.pop(shortest)
            self.spans[shortest - 1] = Span(phase=earlier.phase, began_s=earlier.began_s, ended_s=later.ended_s)

    @property
    def seconds(self) -> float:
        """How long the run has lasted."""
        return self.points[-1].seconds if self.points else 0.0

    def rates(self, bins: int) -> Iterable[tuple[float, float]]:
        """Embedded and checked images per second in each of `bins` equal parts of the time."""
        width_s = self.seconds / bins
        if width_s <= 0:
            return
        edges = list(self._counts_at([place * width_s for place in range(bins + 1)]))
        for (embedded, checked), (embedded_then, checked_then) in pairwise(edges):
            yield (embedded_then - embedded) / width_s, (checked_then - checked) / width_s

    def _counts_at(self, moments: list[float]) -> Iterable[tuple[float, float]]:
        """Embedded and checked images at these moments (ascending), on straight lines between the points."""
        points = [Point(seconds=0.0, embedded=0, checked=0), *self.points]
        place = 0
        for moment in moments:
            while place < len(points) - 2 and points[place + 1].seconds < moment:
                place += 1
            before, after = points[place], points[place + 1]
            share = min((moment - before.seconds) / max(after.seconds - before.seconds, 1e-9), 1.0)
            yield (
                before.embedded + share * (after.embedded - before.embedded),
                before.checked + share * (after.checked - before.checked),
            )

"""A run's timeline → the numbers behind the page's drawing: rates over time, phases beneath them.

Drawn in a box of 1000 × 100 that the page stretches; words and numbers are put beside it as text, so that they are
readable on any screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.report.words import number, span

if TYPE_CHECKING:
    from pipeline.timeline import Timeline

MOST_BINS: Final = 120
WIDTH: Final = 1000
HEIGHT: Final = 100
COLOURS: Final = 6
"""colours of phases in the style sheet"""
_STEPS_S: Final = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One column of a curve, with the words that appear when it is pointed at."""

    x: float
    width: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One rate over time. `line` and `area` are SVG paths; `top` is the rate at the upper edge."""

    name: str
    key: str
    line: str
    area: str
    bins: list[Bin]
    top: str
    most: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on the time axis, in per cent of its length."""

    at: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the band under the curves, in per cent of its length; `colour` counts from 0."""

    name: str
    at: float
    width: float
    time: str
    colour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything the page draws of a timeline."""

    curves: list[Curve]
    ticks: list[Tick]
    band: list[Phase]
    legend: list[Phase]


def draw(timeline: Timeline) -> Chart | None:
    """None when nothing was noted, or nothing happened that has a rate."""
    seconds = timeline.seconds
    if seconds <= 0:
        return None
    bins = max(1, min(MOST_BINS, len(timeline.points)))
    rates = list(timeline.rates(bins))
    series = (("embedded", "embed", [rate[0] for rate in rates]), ("checked", "check", [rate[1] for rate in rates]))
    curves = [_curve(name, key, values, seconds) for name, key, values in series if any(values)]
    band = _band(timeline)
    if not curves and not band:
        return None
    return Chart(curves=curves, ticks=_ticks(seconds), band=band, legend=_legend(band, timeline))


def _curve(name: str, key: str, values: list[float], seconds: float) -> Curve:
    top = _round_up(max(values))
    width = WIDTH / len(values)
    corners = []
    for place, value in enumerate(values):
        y = HEIGHT * (1 - value / top)
        corners += [f"{place * width:.1f},{y:.1f}", f"{(place + 1) * width:.1f},{y:.1f}"]
    line = "M" + "L".join(corners)
    bin_s = seconds / len(values)
    columns = [
        Bin(
            x=round(place * width, 1),
            width=round(width, 1),
            words=f"{span(place * bin_s)} – {span((place + 1) * bin_s)}: {number(value)} images/s {name}",
        )
        for place, value in enumerate(values)
    ]
    return Curve(
        name=name,
        key=key,
        line=line,
        area=f"{line}L{WIDTH},{HEIGHT}L0,{HEIGHT}Z",
        bins=columns,
        top=number(top),
        most=number(max(values)),
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten, for the upper edge of a curve."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _ticks(seconds: float) -> list[Tick]:
    """At most six marks at round times, the beginning among them."""
    step = next((size for size in _STEPS_S if seconds / size <= 5), _STEPS_S[-1] * math.ceil(seconds / 5 / 86_400))
    marks = [place * step for place in range(int(seconds / step) + 1)]
    return [Tick(at=round(100 * mark / seconds, 2), words=span(mark) if mark else "0") for mark in marks]


def _band(timeline: Timeline) -> list[Phase]:
    seconds = timeline.seconds
    names: dict[str, int] = {}
    return [
        Phase(
            name=found.phase,
            at=round(100 * found.began_s / seconds, 3),
            width=round(100 * found.seconds / seconds, 3),
            time=span(found.seconds),
            colour=names.setdefault(found.phase, len(names) % COLOURS),
        )
        for found in timeline.spans
    ]


def _legend(band: list[Phase], timeline: Timeline) -> list[Phase]:
    """One entry per phase, however often the run was in it."""
    entries: dict[str, Phase] = {}
    totals: dict[str, float] = {}
    for part, found in zip(band, timeline.spans, strict=True):
        totals[part.name] = totals.get(part.name, 0.0) + found.seconds
        entries[part.name] = Phase(name=part.name, at=0, width=0, time=span(totals[part.name]), colour=part.colour)
    return list(entries.values())

"""The patterns printed on a product's cloth, drawn with Pillow in the product's own units.

A pattern covers the square from -20 to 120 units, so that no pose of the product runs out of it. A pattern's
place in `PATTERNS` decides which combinations are held out of training, so new ones go to the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import ImageDraw

Colour = tuple[int, int, int]
Place = Callable[[float, float], tuple[float, float]]

_LOW, _HIGH = -20.0, 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Print:
    """How one product wears its pattern: colours, units of length and phase drawn once per product."""

    base: Colour
    accent: Colour
    second: Colour
    """of flower centres"""
    stretch: float
    """factor on the pattern's usual size"""
    phase: tuple[float, float]
    """shares of a period"""
    is_upright: bool
    """stripes run from top to bottom"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Where to draw: `place` turns units into pixels, `unit` is one unit in pixels."""

    draw: ImageDraw.ImageDraw
    place: Place
    unit: float

    def band(self, start: float, width: float, *, is_upright: bool, colour: Colour) -> None:
        corners = [(_LOW, start), (_HIGH, start), (_HIGH, start + width), (_LOW, start + width)]
        self.draw.polygon([self.place(y, x) if is_upright else self.place(x, y) for x, y in corners], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        middle_x, middle_y = self.place(x, y)
        reach = radius * self.unit
        self.draw.ellipse((middle_x - reach, middle_y - reach, middle_x + reach, middle_y + reach), colour)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _steps(period: float, phase: float) -> Iterator[float]:
    for step in range(-1, math.ceil((_HIGH - _LOW) / period) + 1):
        yield _LOW + (step + phase) * period


def _lattice(period_x: float, period_y: float, phase: tuple[float, float]) -> Iterator[tuple[float, float]]:
    """Points in rows, every other row shifted by half a period."""
    for row, y in enumerate(_steps(period_y, phase[1])):
        for x in _steps(period_x, phase[0]):
            yield x + row % 2 * period_x / 2, y


def _draw_stripes(canvas: Canvas, style: Print) -> None:
    period = 13.0 * style.stretch
    for start in _steps(period, style.phase[1]):
        canvas.band(start, period * 0.42, is_upright=style.is_upright, colour=style.accent)


def _draw_dots(canvas: Canvas, style: Print) -> None:
    period = 15.0 * style.stretch
    for x, y in _lattice(period, period * 0.62, style.phase):
        canvas.disc(x, y, period * 0.19, style.accent)


def _draw_checks(canvas: Canvas, style: Print) -> None:
    """Gingham: bands of half colour both ways, full colour where they cross."""
    period, half_colour = 16.0 * style.stretch, blend(style.base, style.accent, 0.42)
    starts = [list(_steps(period, phase)) for phase in style.phase]
    for is_upright in (False, True):
        for start in starts[0 if is_upright else 1]:
            canvas.band(start, period * 0.46, is_upright=is_upright, colour=half_colour)
    size = period * 0.46
    for x in starts[0]:
        for y in starts[1]:
            corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size)]
            canvas.draw.polygon([canvas.place(*corner) for corner in corners], style.accent)


def _draw_flowers(canvas: Canvas, style: Print) -> None:
    period = 24.0 * style.stretch
    petal, reach = period * 0.13, period * 0.17
    for index, (x, y) in enumerate(_lattice(period, period * 0.66, style.phase)):
        for turn in (index * 0.7 + math.tau * petal_index / 5 for petal_index in range(5)):
            canvas.disc(x + reach * math.cos(turn), y + reach * math.sin(turn), petal, style.accent)
        canvas.disc(x, y, period * 0.1, style.second)


def _draw_zigzag(canvas: Canvas, style: Print) -> None:
    period, height = 17.0 * style.stretch, 13.0 * style.stretch
    for y in _steps(height, style.phase[1]):
        xs = [_LOW + index * period / 2 for index in range(math.ceil(2 * (_HIGH - _LOW) / period) + 1)]
        peaks = [canvas.place(x, y + index % 2 * height * 0.62) for index, x in enumerate(xs)]
        canvas.draw.line(peaks, style.accent, round(height * 0.32 * canvas.unit), joint="curve")


def _draw_nothing(_canvas: Canvas, _style: Print) -> None:
    return


PATTERNS: dict[str, Callable[[Canvas, Print], None]] = {
    "plain": _draw_nothing,
    "striped": _draw_stripes,
    "dotted": _draw_dots,
    "checked": _draw_checks,
    "floral": _draw_flowers,
    "zigzag": _draw_zigzag,
}

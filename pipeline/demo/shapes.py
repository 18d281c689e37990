"""The outlines of every kind of product, as layers of SVG-like paths in a square of 100 × 100 units, y down.

No pixels here: `drawing` places, colours and paints the layers in order. A kind's place in `KINDS` decides
which combinations are held out of training, so new kinds go to the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

Point = tuple[float, float]
Role = Literal["cloth", "trim", "inside", "seam", "white", "dark", "metal"]

_CURVE_STEPS = 10
"""line pieces per curve: at 800 pixels the largest gap to the true curve is under half a pixel"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A filled outline, or with a `stroke` (its width in units) a line with round ends."""

    role: Role
    points: tuple[Point, ...]
    stroke: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of product. `price` is what a usual one costs."""

    name: str
    category: str
    price: float
    layers: tuple[Layer, ...]


@cache
def flatten(path: str) -> tuple[Point, ...]:
    """Turn `M x y`, `L x y`, `Q cx cy x y` and `C …` (absolute, SVG's meaning) into a line of points."""
    points: list[Point] = []
    for piece in path.replace("M", "|M").replace("L", "|L").replace("Q", "|Q").replace("C", "|C").split("|")[1:]:
        numbers = [float(number) for number in piece[1:].split()]
        ends = list(zip(numbers[::2], numbers[1::2], strict=True))
        points.extend(_curve([points[-1], *ends]) if len(ends) > 1 else ends)
    return tuple(points)


def _curve(control: list[Point]) -> list[Point]:
    """Bézier curve of any degree by de Casteljau's construction, without its first point."""
    points = []
    for step in range(1, _CURVE_STEPS + 1):
        share, rest = step / _CURVE_STEPS, control
        while len(rest) > 1:
            rest = [(a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share) for a, b in pairwise(rest)]
        points.append(rest[0])
    return points


def _mirror(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((100 - x, y) for x, y in points)


def _fill(role: Role, path: str) -> tuple[Layer, ...]:
    return (Layer(role=role, points=flatten(path)),)


def _half(role: Role, path: str) -> tuple[Layer, ...]:
    """One outline whose right half mirrors the given left half."""
    left = flatten(path)
    return (Layer(role=role, points=left + _mirror(left)[::-1]),)


def _both(role: Role, path: str) -> tuple[Layer, ...]:
    """Two outlines: the given one and its mirror image."""
    left = flatten(path)
    return Layer(role=role, points=left), Layer(role=role, points=_mirror(left))


def _line(role: Role, path: str, stroke: float) -> tuple[Layer, ...]:
    return (Layer(role=role, points=flatten(path), stroke=stroke),)


def _lines(role: Role, path: str, stroke: float) -> tuple[Layer, ...]:
    """Two lines: the given one and its mirror image."""
    left = flatten(path)
    return Layer(role=role, points=left, stroke=stroke), Layer(role=role, points=_mirror(left), stroke=stroke)


def _ellipse(role: Role, x: float, y: float, radius_x: float, radius_y: float) -> tuple[Layer, ...]:
    turns = [math.tau * step / 40 for step in range(40)]
    points = tuple((x + radius_x * math.cos(turn), y + radius_y * math.sin(turn)) for turn in turns)
    return (Layer(role=role, points=points),)


def _buttons(role: Role, x: float, ys: tuple[float, ...], radius: float) -> tuple[Layer, ...]:
    return tuple(layer for y in ys for layer in _ellipse(role, x, y, radius, radius))


_T_SHIRT = (
    *_half("inside", "M50 15 L38 13 Q42 24 50 24"),
    *_half("cloth", "M50 23 Q41 23 37 12 L29 15 Q21 17 17 25 L5 43 L19 52 L27 43 Q28 64 26 88 Q38 90 50 90"),
    *_lines("seam", "M28 18 Q25 30 27 44", 0.9),
    *_line("trim", "M37 13 Q41 24.5 50 24.5 Q59 24.5 63 13", 3.2),
    *_lines("seam", "M8.5 40 L21.5 48.5", 0.9),
    *_line("seam", "M27 85 Q38 87 50 87 Q62 87 73 85", 0.9),
)
_SHIRT = (
    *_half("inside", "M50 14 L41 11 L44 24 L50 28"),
    *_half("cloth", "M50 27 L40 12 L30 15 Q22 17 20 25 L8 74 L20 78 L28 46 Q29 66 27 85 Q32 92 39 92 Q45 90 50 90"),
    *_lines("seam", "M28.5 17 Q26 30 28 48", 0.9),
    *_line("trim", "M50 27 L50 90", 4.6),
    *_lines("trim", "M10 72 L20.5 75.5", 5),
    *_both("trim", "M50 27 L41 9 L36 15 L42 32"),
    *_buttons("white", 50, (35, 45, 55, 65, 75, 84), 1.3),
    *_line("seam", "M57 44 L67 44 L67 54 L62 57 L57 54 L57 44", 0.9),
)
_HOODIE = (
    *_half("cloth", "M50 5 Q31 5 31 24 Q36 36 50 38"),
    *_half("inside", "M50 12 Q39 12 39 24 Q42 33 50 36"),
    *_half("cloth", "M50 37 Q38 34 33 23 Q22 25 19 34 L7 76 L21 80 L28 54 L27 86 L50 88"),
    *_lines("seam", "M33 25 Q28 36 28 56", 0.9),
    *_half("trim", "M50 83 L27 83 Q26 88 28 93 L50 93"),
    *_lines("trim", "M8.5 76 L20.5 79.5", 6),
    *_half("trim", "M50 61 L40 61 L32 74 L32 80 L50 80"),
    *_lines("white", "M45.5 36 L44.5 51", 1.5),
)
_JACKET = (
    *_half("inside", "M50 12 L39 12 L43 88 L50 88"),
    *_both("cloth", "M40 10 L29 14 Q21 16 19 25 L8 76 L21 80 L28 48 L26 92 L46 93 Q48 60 45 40"),
    *_lines("seam", "M28.5 17 Q26 30 28 50", 0.9),
    *_both("trim", "M41 8 L35 11 L31 26 L36.5 29 L35 33 L46 50 Q47 34 43 22"),
    *_lines("metal", "M46.5 50 L46 92", 1.5),
    *_lines("dark", "M30 68 L39 65", 1.8),
    *_lines("trim", "M9.5 73 L20.5 76.5", 5),
)
_DRESS = (
    *_half("inside", "M50 18 L40 16 L40 26 L50 28"),
    *_half("cloth", "M50 27 Q41 26 40 8 L34.5 8 Q36 22 29 30 Q35 40 36.5 48 Q27 68 17 88 Q32 95 50 95"),
    *_half("trim", "M50 45 L35.5 45 Q36.5 48 36 51.5 L50 51.5"),
    *_lines("seam", "M43 53 Q38 74 34 91", 0.9),
    *_line("seam", "M50 53 L50 94", 0.9),
)
_SKIRT = (
    *_half("cloth", "M50 20 L34 20 Q26 52 12 80 Q30 88 50 88"),
    *_half("trim", "M50 16 L35 16 L33.5 25 L50 25"),
    *_lines("seam", "M39 26 Q34 56 25 84", 1.1),
    *_lines("seam", "M46 26 Q45 56 41 87", 1.1),
    *_buttons("white", 50, (20.5,), 1.6),
)
_TROUSERS = (
    *_half("cloth", "M50 8 L34 8 Q28 40 25 94 L42 95 Q45 60 50 38"),
    *_half("trim", "M50 5 L34.5 5 L33.5 12 L50 12"),
    *_line("seam", "M50 12 L50 38", 1.1),
    *_lines("seam", "M41 12 Q40 19 33.5 21", 1.1),
    *_lines("seam", "M37 24 Q34 60 33.5 94", 0.9),
    *_buttons("white", 50, (8.5,), 1.5),
)
_SHORTS = (
    *_half("cloth", "M50 24 L29 24 Q22 48 14 76 L45 82 Q47 66 50 54"),
    *_half("trim", "M50 18 L30 18 L28.5 27 L50 27"),
    *_line("seam", "M50 27 L50 54", 1.1),
    *_lines("seam", "M38 27 Q36 37 26 39", 1.1),
    *_lines("seam", "M15.5 72 L45.5 78", 1.1),
    *_lines("white", "M49 23 Q46 32 47 38", 1.4),
)
_SOCK = (
    *_fill("cloth", "M30 8 L57 8 L57 50 Q59 60 74 67 Q91 75 88 86 Q84 95 68 93 Q46 90 36 76 Q28 64 30 46"),
    *_fill("trim", "M29 6 L58 6 L58 17 L29 17"),
    *_fill("trim", "M30 55 Q30 67 36 76 Q39 80 43 83 Q53 74 48 62 Q42 53 30 55"),
    *_fill("trim", "M75 67.5 Q91 75 88 86 Q84 95 68 93 Q65 78 75 67.5"),
    *_line("seam", "M36 7 L36 16", 0.8),
    *_line("seam", "M43.5 7 L43.5 16", 0.8),
    *_line("seam", "M51 7 L51 16", 0.8),
)
_MITTEN = (
    *_fill(
        "cloth",
        "M30 80 L28 56 Q26 30 33 18 Q40 8 50 9 Q64 11 66 34 L66 47 Q74 35 82 38 Q90 43 83 55 Q75 68 67 74 L66 80",
    ),
    *_line("seam", "M66 48 Q64 58 58 62", 1.2),
    *_fill("trim", "M26 76 L70 76 Q72 85 70 94 L26 94 Q24 85 26 76"),
    *_line("seam", "M35 77 L35 93", 0.9),
    *_line("seam", "M44 77 L44 93", 0.9),
    *_line("seam", "M53 77 L53 93", 0.9),
    *_line("seam", "M62 77 L62 93", 0.9),
)
_SCARF = (
    *_fill("cloth", "M56 30 L72 26 L80 74 L60 78"),
    *_ellipse("cloth", 50, 22, 31, 17),
    *_ellipse("inside", 50, 17, 18, 7.5),
    *_line("seam", "M22 25 Q36 38 58 36", 0.9),
    *_fill("cloth", "M34 30 L56 34 L52 85 L27 82"),
    *_line("seam", "M34 31 L28 81", 1.1),
    *_line("seam", "M56 35 L52.5 84", 1.1),
    *(layer for x in (28, 32, 36, 40, 44, 48, 51) for layer in _line("trim", f"M{x} 83 L{x - 1} 92", 1.7)),
    *(layer for x in (62, 66, 70, 74, 78) for layer in _line("trim", f"M{x} 77 L{x + 1} 84", 1.7)),
)
_BEANIE = (
    *_ellipse("trim", 50, 15, 11, 10),
    *_half("cloth", "M50 20 Q20 22 18 70 L50 74"),
    *_lines("seam", "M46 22 Q36 40 35 64", 0.9),
    *_half("trim", "M50 64 Q32 64 16 61 Q13 74 16 85 Q32 89 50 89"),
    *(layer for x in (24, 32.5, 41) for layer in _lines("seam", f"M{x} 65 L{x} 86", 1)),
    *_line("seam", "M50 66 L50 88", 1),
)
_CAP = (
    *_fill("cloth", "M12 67 Q8 25 44 24 Q76 24 78 62 Q60 66 44 66 Q28 66 12 67"),
    *_line("seam", "M44 24 Q40 40 42 65", 1.1),
    *_line("seam", "M44 24 Q24 34 24 66", 1.1),
    *_line("seam", "M44 24 Q62 34 61 64", 1.1),
    *_ellipse("trim", 44, 23.5, 3.5, 2.2),
    *_fill("trim", "M40 63 Q62 62 78 58 Q94 62 98 75 Q84 70 70 73 Q48 76 30 71 Q33 66 40 63"),
    *_line("seam", "M38 69 Q66 66 91 69", 0.9),
)
_MUG = (
    *_line("trim", "M66 38 Q90 34 90 54 Q89 74 65 72", 7.5),
    *_fill("cloth", "M18 22 L70 22 L67 80 Q66 89 57 90 L31 90 Q22 89 21 80"),
    *_ellipse("trim", 44, 22, 26, 6.5),
    *_ellipse("inside", 44, 22.6, 22.5, 4.6),
)
_BACKPACK = (
    *_line("dark", "M42 16 Q42 6 50 6 Q58 6 58 16", 3.2),
    *_both("trim", "M27 54 Q17 57 17 70 L18 88 L28 90"),
    *_half("cloth", "M50 11 Q28 12 26 36 L24 84 Q24 93 33 93 L50 93"),
    *_half("trim", "M50 57 L35 57 Q32 57 32 61 L31.5 83 Q31.5 86 35 86 L50 86"),
    *_line("dark", "M30 36 Q31 20 50 20 Q69 20 70 36", 1.5),
    *_line("dark", "M35 63 L65 63", 1.5),
    *_lines("dark", "M37 37 L37 52", 2),
    *_half("white", "M50 41 L46 41 L46 47 L50 47"),
)
_TOTE = (
    *_line("trim", "M34 42 Q35 8 50 8 Q65 8 66 42", 4.2),
    *_half("cloth", "M50 36 L19 36 Q17 64 15 90 Q15 94 20 94 L50 94"),
    *_line("seam", "M19 41 L81 41", 1.1),
    *_lines("trim", "M34 36 L34 47", 4.2),
    *_lines("white", "M34 45 L34 45.1", 1.5),
)
_SNEAKER = (
    *_fill("inside", "M20 34 Q34 42 47 29 L47 40 L20 44"),
    *_fill("cloth", "M9 70 Q8 48 14 33 Q18 32 22 37 Q34 44 44 27 Q49 26 52 30 Q62 48 80 53 Q94 57 94 71"),
    *_fill("trim", "M9 68 Q9 54 11 44 Q22 46 25 58 Q26 66 24 71 L9 71"),
    *_fill("trim", "M76 71 Q74 58 80 53 Q94 57 94 71"),
    *_fill("white", "M7 69 L95 69 Q98 80 90 82 L14 82 Q6 80 7 69"),
    *_line("seam", "M9 75.5 L95 75.5", 1),
    *_line("white", "M48 37 L57 33", 1.9),
    *_line("white", "M53 44 L62 39", 1.9),
    *_line("white", "M59 50 L68 45", 1.9),
)
_BOOT = (
    *_fill("cloth", "M28 10 L59 10 Q57 34 60 48 Q64 56 78 60 Q92 64 92 80 L28 80 Q31 46 28 10"),
    *_fill("trim", "M27 7 L60 7 L59 18 L28 18"),
    *_fill("trim", "M28.5 80 Q30 66 30 58 Q42 60 44 80"),
    *_fill("trim", "M76 80 Q74 66 81 61 Q92 65 92 80"),
    *_fill("dark", "M27 78 L93 78 Q95 87 91 88 L60 88 L57 84 L50 84 L49 94 L27 94"),
    *_line("white", "M50 26 L59 26", 1.8),
    *_line("white", "M50 35 L59 35", 1.8),
    *_line("white", "M52 44 L61 44", 1.8),
)
_SANDAL = (
    *_both("cloth", "M23 9 Q41 5 44 26 Q46 44 41 58 Q44 82 37 91 Q28 97 20 89 Q16 76 20 58 Q6 22 23 9"),
    *_lines("trim", "M30 22 Q21 36 16 52", 5),
    *_lines("trim", "M30 22 Q41 34 42.5 52", 5),
    *_lines("dark", "M30 22 L30 22.1", 5),
)
_UMBRELLA = (
    *_line("dark", "M50 12 L50 5", 2),
    *_line("dark", "M50 40 L50 84 Q50 94 42 94 Q35 94 35 86", 3),
    *_half("cloth", "M50 11 Q12 13 4 56 Q12 47 20 55 Q28 46 36 54 Q43 46 50 54"),
    *_lines("seam", "M50 11 Q26 24 20 55", 1.1),
    *_lines("seam", "M50 11 Q38 26 36 54", 1.1),
    *_line("seam", "M50 11 L50 54", 1.1),
)
_CUSHION = (
    *_half("cloth", "M50 17 Q28 18 9 11 Q15 34 15 50 Q15 68 9 89 Q28 83 50 83"),
    *_line(
        "trim",
        "M50 17 Q28 18 9 11 Q15 34 15 50 Q15 68 9 89 Q28 83 50 83 Q72 83 91 89 Q85 68 85 50 "
        "Q85 34 91 11 Q72 18 50 17",
        2.4,
    ),
    *_lines("seam", "M11 13 Q24 24 29 26", 0.9),
    *_lines("seam", "M11 87 Q24 76 29 74", 0.9),
)
_WATCH = (
    *_half("cloth", "M50 2 L36 2 Q35 18 32 36 L50 36"),
    *_half("cloth", "M50 98 L37 98 Q35 80 32 64 L50 64"),
    *_fill("metal", "M74 46 L80 46 L80 54 L74 54"),
    *_ellipse("metal", 50, 50, 27, 27),
    *_ellipse("trim", 50, 50, 24, 24),
    *_ellipse("white", 50, 50, 19.5, 19.5),
    *(layer for x, y in ((50, 34), (50, 66), (34, 50), (66, 50)) for layer in _ellipse("dark", x, y, 1.4, 1.4)),
    *_line("dark", "M50 50 L50 38", 2),
    *_line("dark", "M50 50 L59 55", 2),
)

KINDS: dict[str, Kind] = {
    name: Kind(name=name, category=category, price=price, layers=layers)
    for name, category, price, layers in (
        ("t-shirt", "clothing", 19.0, _T_SHIRT),
        ("shirt", "clothing", 45.0, _SHIRT),
        ("hoodie", "clothing", 59.0, _HOODIE),
        ("jacket", "clothing", 119.0, _JACKET),
        ("dress", "clothing", 79.0, _DRESS),
        ("skirt", "clothing", 49.0, _SKIRT),
        ("trousers", "clothing", 69.0, _TROUSERS),
        ("shorts", "clothing", 35.0, _SHORTS),
        ("sock", "accessories", 9.0, _SOCK),
        ("mitten", "accessories", 25.0, _MITTEN),
        ("scarf", "accessories", 29.0, _SCARF),
        ("beanie", "accessories", 22.0, _BEANIE),
        ("cap", "accessories", 24.0, _CAP),
        ("mug", "home", 12.0, _MUG),
        ("backpack", "bags", 89.0, _BACKPACK),
        ("tote bag", "bags", 18.0, _TOTE),
        ("sneaker", "shoes", 95.0, _SNEAKER),
        ("boot", "shoes", 139.0, _BOOT),
        ("sandal", "shoes", 32.0, _SANDAL),
        ("umbrella", "accessories", 28.0, _UMBRELLA),
        ("cushion", "home", 26.0, _CUSHION),
        ("watch", "accessories", 149.0, _WATCH),
    )
}

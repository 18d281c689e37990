"""Draw one product of the made-up shop: a kind in a colour and a pattern, on a soft studio background.

What the product is (shade, pattern size, phase) depends on kind, colour, pattern and seed; how it is seen
(pose, light, background) on the view as well, so that two views show the same thing. Shapes are in `shapes`,
patterns in `patterns`. Everything is drawn larger than asked for and averaged down, which smooths the edges.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipeline.demo.patterns import PATTERNS, Canvas, Colour, Print, blend
from pipeline.demo.shapes import KINDS, Layer, Point
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_WHITE: Colour = (252, 251, 249)
_CREAM: Colour = (247, 238, 218)

# name: cloth, then the colour that patterns are printed in
COLOURS: dict[str, tuple[Colour, Colour]] = {
    "black": ((38, 38, 42), _WHITE),
    "white": ((247, 247, 245), (92, 126, 186)),
    "grey": ((142, 144, 148), _WHITE),
    "navy": ((30, 44, 98), _WHITE),
    "red": ((204, 38, 44), _WHITE),
    "pink": ((242, 158, 186), _WHITE),
    "orange": ((242, 120, 30), _CREAM),
    "mustard": ((214, 168, 38), (104, 68, 22)),
    "olive": ((104, 112, 48), _CREAM),
    "teal": ((18, 138, 136), _CREAM),
    "purple": ((112, 62, 158), (234, 220, 246)),
    "brown": ((116, 74, 48), _CREAM),
}

_BACKGROUNDS: tuple[Colour, ...] = (
    (240, 238, 234),
    (232, 235, 239),
    (240, 233, 224),
    (226, 234, 240),
    (241, 229, 230),
    (228, 237, 230),
    (236, 232, 241),
    (222, 222, 224),
)

_FIXED_ROLES: dict[str, Colour] = {"white": (250, 249, 246), "dark": (62, 57, 56), "metal": (188, 191, 196)}

_DRAWN_EDGE = 700
"""pixels of the long side while drawing; more costs time by its square, and 2 per pixel suffice at 320"""
_MAX_FACTOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pose:
    """How the product stands in the picture, in pixels while drawing."""

    unit: float
    angle: float
    x: float
    y: float
    is_mirrored: bool

    def place(self, x: float, y: float) -> Point:
        across, down = (50 - x if self.is_mirrored else x - 50), y - 50
        cosine, sine = math.cos(self.angle) * self.unit, math.sin(self.angle) * self.unit
        return self.x + across * cosine - down * sine, self.y + across * sine + down * cosine


def draw_product(
    kind: str,
    colour: str,
    pattern: str,
    *,
    seed: int,
    size: tuple[int, int] = (240, 320),
    view: int = 0,
    is_cut_out: bool = False,
) -> Image.Image:
    """Draw a product as RGB of `size` (width, height), or as RGBA without background if `is_cut_out`.

    View 0 shows the whole product; every other number is a nearer look at the same one. The same arguments
    give the same pixels. Raises: ConfigError for an unknown word or an empty size.
    """
    _check(kind=kind, colour=colour, pattern=pattern, size=size)
    words = f"{kind}/{colour}/{pattern}/{seed}"
    style = _style(colour, random.Random(words))  # noqa: S311 - a drawing, not a secret
    rng = random.Random(f"{words}/view {view}")  # noqa: S311
    factor = max(1, min(_MAX_FACTOR, _DRAWN_EDGE // max(size)))
    pose = _pose(size, factor, rng, fill=rng.uniform(0.95, 1.15) if view else rng.uniform(0.78, 0.92))
    background = Image.new("RGB", size, _WHITE) if is_cut_out else _background(size, rng)
    mask = _silhouette(KINDS[kind].layers, pose, size, factor)
    if not is_cut_out:
        background = _cast_shadow(background, mask, rng)
    drawn = background.resize((size[0] * factor, size[1] * factor), Image.Resampling.BILINEAR)
    _paint(drawn, KINDS[kind].layers, pose, style=style, pattern=pattern)
    product = _light(drawn.reduce(factor), mask, rng)
    if is_cut_out:
        product.putalpha(mask)
    return product


def _check(*, kind: str, colour: str, pattern: str, size: tuple[int, int]) -> None:
    for name, value, known in (("kind", kind, KINDS), ("colour", colour, COLOURS), ("pattern", pattern, PATTERNS)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if min(size) < 1:
        raise ConfigError(f"size is {size!r}, expected a width and a height of at least 1 pixel")


def _style(colour: str, rng: random.Random) -> Print:
    cloth, accent = COLOURS[colour]
    base = blend(cloth, (0, 0, 0) if rng.random() < 0.5 else (255, 255, 255), rng.uniform(0, 0.07))
    return Print(
        base=base,
        accent=accent,
        second=blend((232, 178, 44), base, 0.1) if colour != "mustard" else (190, 60, 40),
        stretch=rng.uniform(0.88, 1.2),
        phase=(rng.random(), rng.random()),
        is_upright=rng.random() < 0.25,
    )


def _pose(size: tuple[int, int], factor: int, rng: random.Random, *, fill: float) -> _Pose:
    """Let the 100 units of the product fill this share of the short side."""
    slack = abs(1 - fill) * 0.5
    return _Pose(
        unit=min(size) * factor * fill / 100,
        angle=math.radians(rng.uniform(-7, 7)),
        x=factor * (size[0] / 2 + rng.uniform(-slack, slack) * min(size)),
        y=factor * (size[1] / 2 + rng.uniform(-slack, slack) * min(size)),
        is_mirrored=rng.random() < 0.5,
    )


def _background(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A wall that is brightest behind the product and a little darker towards the corners."""
    wall = rng.choice(_BACKGROUNDS)
    edge, middle = blend(wall, (90, 90, 100), rng.uniform(0.06, 0.16)), blend(wall, (255, 255, 255), 0.35)
    distance = Image.radial_gradient("L").resize(size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", size, edge), Image.new("RGB", size, middle), distance)


def _silhouette(layers: Iterable[Layer], pose: _Pose, size: tuple[int, int], factor: int) -> Image.Image:
    mask = Image.new("L", (size[0] * factor, size[1] * factor), 0)
    draw = ImageDraw.Draw(mask)
    for layer in layers:
        _draw_layer(draw, layer, pose, 255)
    return mask.reduce(factor)


def _draw_layer(draw: ImageDraw.ImageDraw, layer: Layer, pose: _Pose, colour: Colour | int) -> None:
    points = [pose.place(x, y) for x, y in layer.points]
    if not layer.stroke:
        draw.polygon(points, colour)
        return
    width = max(1, round(layer.stroke * pose.unit))
    draw.line(points, colour, width, joint="curve")
    if width > 2:
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), colour)


def _cast_shadow(background: Image.Image, mask: Image.Image, rng: random.Random) -> Image.Image:
    """Darken the wall below and beside the product; blurred at a quarter of the size, where it is cheap."""
    short = min(mask.size)
    shift = (round(rng.uniform(-0.03, 0.03) * short), round(rng.uniform(0.015, 0.035) * short))
    small = (max(1, mask.width // 4), max(1, mask.height // 4))
    moved = Image.new("L", mask.size, 0)
    moved.paste(mask, shift)
    blurred = moved.resize(small, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(short * 0.007))
    depth = rng.uniform(0.22, 0.36)
    shadow = blurred.resize(mask.size, Image.Resampling.BILINEAR).point([round(v * depth) for v in range(256)])
    return Image.composite(Image.new("RGB", mask.size, (52, 50, 62)), background, shadow)


def _paint(drawn: Image.Image, layers: Iterable[Layer], pose: _Pose, *, style: Print, pattern: str) -> None:
    """Paint the layers in order; cloth shows the one printed sheet through its outline."""
    cloth = Image.new("RGB", drawn.size, style.base)
    sheet = Canvas(draw=ImageDraw.Draw(cloth), place=pose.place, unit=pose.unit)
    PATTERNS[pattern](sheet, style)
    colours = _FIXED_ROLES | _derived_roles(style.base)
    draw = ImageDraw.Draw(drawn)
    for layer in layers:
        if layer.role == "cloth":
            outline = Image.new("1", drawn.size, 0)
            _draw_layer(ImageDraw.Draw(outline), layer, pose, 1)
            drawn.paste(cloth, mask=outline)
        else:
            _draw_layer(draw, layer, pose, colours[layer.role])


def _derived_roles(base: Colour) -> dict[str, Colour]:
    """Shades of the cloth's own colour; on black only lighter ones can be seen."""
    if sum(base) < 180:
        return {role: blend(base, (255, 255, 255), share) for role, share in _LIGHTER.items()}
    dark = blend(base, (0, 0, 0), 0.8)  # keeps the hue; towards grey, pink trims look dirty
    return {role: blend(base, dark, share) for role, share in _DARKER.items()}


_LIGHTER = {"trim": 0.12, "seam": 0.24, "inside": 0.04}
_DARKER = {"trim": 0.24, "seam": 0.4, "inside": 0.6}


def _light(product: Image.Image, mask: Image.Image, rng: random.Random) -> Image.Image:
    """Round the product off: darker towards its outline, and from one side to the other."""
    radius = max(1.0, min(mask.size) * 0.03)
    rim = mask.filter(ImageFilter.BoxBlur(radius)).point([round(255 - (255 - v) * 0.34) for v in range(256)])
    slope = Image.linear_gradient("L").rotate(rng.choice((0, 90, 270)))
    side = slope.resize(mask.size, Image.Resampling.BILINEAR).point([round(255 - v * 0.1) for v in range(256)])
    shade = ImageChops.multiply(rim, side)
    shaded = ImageChops.multiply(product, Image.merge("RGB", (shade, shade, shade)))
    return Image.composite(shaded, product, mask)

"""A catalog of drawn products with a small JPEG each, for as many of them as a benchmark wants.

No two pictures have the same bytes. Each has the time of its version on the file, so that a server's validator moves
with every version, also when two are drawn within one second.
"""

from __future__ import annotations

import csv
import io
import os
import random
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SIZE = 96
"""pixels: more than the tiny model takes, and 100,000 of them are a quarter of a gigabyte"""
A_FOLDER = 1_000
FIRST_VERSION_AT = 1_700_000_000
"""seconds since 1970; any moment that has passed would do"""

COLUMNS = ("product_id", "title", "category", "brand", "price", "colour", "size", "image")
COLOURS = ("red", "navy", "green", "white", "black", "sand", "rose", "grey")
GARMENTS = ("t-shirt", "dress", "jacket", "skirt", "shoe", "bag", "hat", "scarf", "shirt", "trousers")
SIZES = ("XS", "S", "M", "L", "XL")


def picture_path(number: int) -> str:
    """Relative to the folder that is served."""
    return f"{number // A_FOLDER:04}/{number:07}.jpg"


def draw_pictures(folder: Path, numbers: Iterable[int], *, version: int = 0) -> None:
    """Write the pictures, over an earlier version if there is one."""
    for number in numbers:
        path = folder / picture_path(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_draw(number, version))
        os.utime(path, (FIRST_VERSION_AT + version,) * 2)


def product_row(number: int, url: str) -> tuple[object, ...]:
    drawn = random.Random(number)
    colour, garment, size = drawn.choice(COLOURS), drawn.choice(GARMENTS), drawn.choice(SIZES)
    brand, price = f"brand {drawn.randrange(200)}", drawn.randrange(500, 50_000) / 100
    return (f"P{number:07}", f"{colour} {garment} {number}", garment, brand, price, colour, size, url)


def write_rows(target: Path, rows: Iterable[tuple[object, ...]]) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _draw(number: int, version: int) -> bytes:
    drawn = random.Random(f"{number}-{version}")

    def colour() -> tuple[int, int, int]:
        return drawn.randrange(256), drawn.randrange(256), drawn.randrange(256)

    image = Image.new("RGB", (SIZE, SIZE), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = drawn.randrange(SIZE - 16), drawn.randrange(SIZE - 16)
        box = (left, top, left + drawn.randrange(8, SIZE), top + drawn.randrange(8, SIZE))
        (draw.ellipse if drawn.random() < 0.5 else draw.rectangle)(box, fill=colour())
    body = io.BytesIO()
    # the comment keeps the bytes apart where the pixels should not
    image.save(body, "JPEG", quality=85, comment=f"{number}.{version}".encode())
    return body.getvalue()

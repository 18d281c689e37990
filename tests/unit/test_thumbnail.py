"""Thumbnails of the report: square, upright, on white, and never an exception but DecodeError."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.images.thumbnail import make_thumbnail


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def thumbnail_of(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(make_thumbnail(data, edge=160, max_pixels=1_000_000)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (160, 160))
    return image


def colour_at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """The nearest of the eight corners of RGB; JPEG moves colours a little."""
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return tuple(255 * (value > 127) for value in pixel)


def test_a_thumbnail_is_the_middle_square_the_right_way_up() -> None:
    wide = Image.new("RGB", (400, 200), "blue")
    wide.paste("red", (0, 0, 400, 100))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = thumbnail_of(encoded(wide, "JPEG", exif=exif, quality=95))
    assert (colour_at(image, 80, 10), colour_at(image, 80, 150)) == ((0, 0, 255), (255, 0, 0))


def test_what_is_transparent_is_white() -> None:
    image = thumbnail_of(encoded(Image.new("RGBA", (50, 50), (255, 0, 0, 0))))
    assert colour_at(image, 80, 80) == (255, 255, 255)


def test_a_small_or_narrow_image_becomes_a_square_too() -> None:
    assert colour_at(thumbnail_of(encoded(Image.new("L", (1, 1), 0))), 80, 80) == (0, 0, 0)
    thumbnail_of(encoded(Image.new("RGB", (3, 5_000), "green")))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"<html>log in</html>", "not_an_image"),
        (encoded(Image.new("RGB", (1_001, 1_000))), "too_many_pixels"),
        (encoded(Image.effect_noise((300, 300), 90), "JPEG")[:4_000], "truncated"),
    ],
)
def test_what_is_no_image_has_a_code(data: bytes, code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        make_thumbnail(data, edge=160, max_pixels=1_000_000)
    assert caught.value.code == code

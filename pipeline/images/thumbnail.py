"""Bytes of an image → a small square JPEG for people, by the same decoder and limits as for models."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image

from pipeline.images.decode import decode_pixels
from pipeline.records import PreprocessSpec
from pipeline.settings import DecodeSettings

QUALITY: Final = 80


def make_thumbnail(data: bytes, *, edge: int, max_pixels: int) -> bytes:
    """The middle square of the image, upright, on white, `edge` pixels wide: 3 to 8 kB of JPEG at 160.

    Raises DecodeError: whatever is wrong with the bytes; nothing else.
    """
    spec = PreprocessSpec(
        resize="shortest_edge",
        resize_size=edge,
        height=edge,
        width=edge,
        resample=Image.Resampling.LANCZOS,
        # a thumbnail stays pixels
        rescale=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    pixels = decode_pixels(data, spec, DecodeSettings(max_pixels=max_pixels))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()

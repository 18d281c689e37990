"""Which image formats the installed Pillow decodes, for `catvec doctor`."""

from __future__ import annotations

from PIL import features

FORMATS = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "AVIF": "avif", "TIFF": "libtiff"}
"""what a format is called, and what Pillow calls the library behind it; GIF and BMP need none"""


def decodable_formats() -> dict[str, bool]:
    """The formats of catalogs, and whether Pillow was built with what they need."""
    return {name: bool(features.check(library)) for name, library in FORMATS.items()}

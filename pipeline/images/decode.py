"""Bytes → pixels at the model's input size. Pillow lives here and in `resize`, nowhere else.

The file is read by the Pillow plugin of its signature, not by `Image.open`: that would try 40 formats (one of
them runs Ghostscript) and hold every image against a global limit of its own. The order is: signature, header,
pixel limit, decode, 8 bits, alpha on white, EXIF orientation, resize, crop. Colour profiles are ignored, as the
models' own processors do. Safe in any number of threads; Pillow lets go of the interpreter while it decodes,
converts and resizes.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.errors import DecodeError
from pipeline.images import sniff
from pipeline.images.resize import Box, resize_and_crop, resized_size
from pipeline.records import Decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.records import Fetched, PreprocessSpec
    from pipeline.settings import DecodeSettings

_PLUGINS: Final[Mapping[str, type[ImageFile.ImageFile]]] = {
    sniff.JPEG: JpegImageFile,
    sniff.PNG: PngImageFile,
    sniff.GIF: GifImageFile,
    sniff.WEBP: WebPImageFile,
    sniff.AVIF: AvifImageFile,
    sniff.TIFF: TiffImageFile,
    sniff.BMP: BmpImageFile,
}

ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class _Turn:
    """What puts an image upright: Pillow's operation, and what it does to right and bottom of the stored image."""

    operation: Image.Transpose
    is_sideways: bool = False
    is_mirrored_x: bool = False
    is_mirrored_y: bool = False


# by EXIF orientation; 1 and anything unknown stay as they are
_TURNS: Final[Mapping[object, _Turn]] = {
    2: _Turn(Image.Transpose.FLIP_LEFT_RIGHT, is_mirrored_x=True),
    3: _Turn(Image.Transpose.ROTATE_180, is_mirrored_x=True, is_mirrored_y=True),
    4: _Turn(Image.Transpose.FLIP_TOP_BOTTOM, is_mirrored_y=True),
    5: _Turn(Image.Transpose.TRANSPOSE, is_sideways=True),
    6: _Turn(Image.Transpose.ROTATE_270, is_sideways=True, is_mirrored_x=True),
    7: _Turn(Image.Transpose.TRANSVERSE, is_sideways=True, is_mirrored_x=True, is_mirrored_y=True),
    8: _Turn(Image.Transpose.ROTATE_90, is_sideways=True, is_mirrored_y=True),
}

# as `warnings.filterwarnings("ignore", module=…)` stores it, to see whether it is there
_QUIET: Final = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode(fetched: Fetched, spec: PreprocessSpec, settings: DecodeSettings) -> Decoded:
    """Decode, resize and crop one image.

    Raises:
        DecodeError: whatever is wrong with the bytes; nothing else.
    """
    pixels, width, height = _decode(fetched.data, spec, settings)
    return Decoded(content=fetched.content, width=width, height=height, pixels=pixels)


def attempt(decode_one: Callable[[], Decoded]) -> Decoded | Exception:
    """The image, or what is wrong with it."""
    try:
        return decode_one()
    except Exception as error:  # noqa: BLE001 - the engine tells known errors from others
        return error


def decode_pixels(data: bytes, spec: PreprocessSpec, settings: DecodeSettings) -> NDArray[np.uint8]:
    """Decode, resize and crop bytes that are no product's image (a search by image): uint8 [H, W, 3].

    Raises:
        DecodeError: whatever is wrong with the bytes; nothing else.
    """
    return _decode(data, spec, settings)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upright:
    """A decoded image: 8 bits, grey or RGB, the right way up. `box` holds it, width and height are the file's."""

    image: Image.Image
    box: Box
    width: int
    height: int
    is_reduced: bool


def _decode(data: bytes, spec: PreprocessSpec, settings: DecodeSettings) -> tuple[NDArray[np.uint8], int, int]:
    name = sniff.find_format(data)
    if name is None:
        raise _refusal(data)
    _silence_pillow()
    try:
        upright = _read(_PLUGINS[name](io.BytesIO(data)), spec, settings)
    except DecodeError:
        raise
    except Exception as error:
        # hostile files make plugins raise OSError, ValueError, SyntaxError, IndexError, struct.error, MemoryError …
        raise _translated(error, name, data) from error
    # from the file's size, since a reduced one is rounded and would move the crop
    size = resized_size(upright.width, upright.height, spec)
    pixels = resize_and_crop(upright.image, upright.box, size, spec, is_reduced=upright.is_reduced)
    return pixels, upright.width, upright.height


def _read(image: ImageFile.ImageFile, spec: PreprocessSpec, settings: DecodeSettings) -> _Upright:
    width, height = image.size
    check_size(width, height, settings)
    turn = _turn(image) if isinstance(image, JpegImageFile) else None
    drafted = image.draft(None, _least_size(spec, turn)) if settings.reduced else None
    is_reduced = image.size != (width, height)
    image.load()
    if not isinstance(image, JpegImageFile):
        width, height = image.size  # a TIFF is turned upright while loading
        turn = _turn(image)  # a PNG may have its EXIF behind the pixels
    flat = _to_grey_or_rgb(image)
    # a reduced image of 101 columns may stand for 100.25 of them: without this, edges move by up to a pixel
    box: Box = drafted[1] if drafted else (0, 0, *flat.size)
    if turn is not None:
        box = _turned(box, flat.size, turn)
        flat = flat.transpose(turn.operation)
        if turn.is_sideways:
            width, height = height, width
    return _Upright(image=flat, box=box, width=width, height=height, is_reduced=is_reduced)


def _turned(box: Box, size: tuple[int, int], turn: _Turn) -> Box:
    """Give where a box at the top left of a stored image of `size` is after the turn."""
    across, down = (1, 0) if turn.is_sideways else (0, 1)
    left = size[across] - box[2 + across] if turn.is_mirrored_x else 0.0
    top = size[down] - box[2 + down] if turn.is_mirrored_y else 0.0
    return left, top, left + box[2 + across], top + box[2 + down]


def check_size(width: int, height: int, settings: DecodeSettings) -> None:
    if width < 1 or height < 1:
        raise DecodeError("undecodable", f"the image says it has {width} × {height} pixels, expected at least 1 × 1")
    if width * height > settings.max_pixels:
        raise DecodeError(
            "too_many_pixels",
            f"the image has {width} × {height} pixels, expected at most {settings.max_pixels} in all",
        )


def _turn(image: Image.Image) -> _Turn | None:
    """Give what puts the image upright by its EXIF or XMP; a broken block is ignored, its pixels may be good."""
    try:
        return _TURNS.get(image.getexif().get(ORIENTATION_TAG))
    except Exception:  # noqa: BLE001 - a decoder: the same zoo of exceptions as from the rest of a hostile file
        return None


def _least_size(spec: PreprocessSpec, turn: _Turn | None) -> tuple[int, int]:
    """Give the (width, height) as stored in the file that a reduced decoding must not go below.

    Twice the model's size: pixels then have a cosine of 0.9998 on average (worst 0.996) to those of the full
    decoding, against 0.997 (worst 0.981) at once its size; 57 photos of 400 × 533 reduced to 96 pixels.
    """
    if spec.resize == "squash":
        width, height = 2 * spec.width, 2 * spec.height
    else:
        width = height = 2 * spec.resize_size
    return (height, width) if turn is not None and turn.is_sideways else (width, height)


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Give mode L or RGB: 8 bits, alpha on white. Grey stays grey, as resizing one channel is enough."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_eight_bits(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image if image.mode in {"L", "RGB"} else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to mode L; Pillow's own conversion clips most of it to white."""
    values = np.nan_to_num(np.asarray(image), nan=0, posinf=0, neginf=0)
    low, high = _range(values, image.mode)
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    eight = np.rint(scaled).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        eight[values == clear] = 255
    return Image.fromarray(eight)


def _range(values: NDArray[np.generic], mode: str) -> tuple[float, float]:
    """Give the values that mean black and white; 32-bit files do not say, so the smallest usual range is taken."""
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = float(values.min()), float(values.max())
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    if low >= 0 and high <= usual[-1]:
        return 0.0, next(white for white in usual if high <= white)
    return low, max(high, low + 1)


def _refusal(data: bytes) -> DecodeError:
    if not data:
        return DecodeError("empty", "the file has 0 bytes")
    other_image = sniff.find_other_image(data)
    if other_image:
        readable = ", ".join(_PLUGINS)
        return DecodeError("unsupported_format", f"the file is {other_image}, expected one of {readable}")
    thing = sniff.find_other_thing(data)
    if thing is None:
        return DecodeError("not_an_image", f"the file is no image: it begins with {data[:12]!r}")
    words = sniff.first_words(data) if thing in sniff.READABLE else ""
    return DecodeError("not_an_image", f"the file is no image but {thing}" + (f": {words!r}" if words else ""))


def _translated(error: Exception, name: str, data: bytes) -> DecodeError:
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError("too_many_pixels", "a part of the image has more pixels than Pillow's own limit")
    detail = " ".join(f"{error}".split())[:200] or type(error).__name__
    if "truncated" in detail.lower() or sniff.is_cut_short(data):
        return DecodeError("truncated", f"the {name} file ends too early: {detail} ({len(data)} bytes)")
    return DecodeError("undecodable", f"the {name} file cannot be decoded: {detail}")


def _silence_pillow() -> None:
    """Keep Pillow's warnings about odd files off the terminal, once per process and when a test has undone it.

    Not `warnings.catch_warnings`, which swaps the filters of the whole process and is not safe in threads.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")

"""Decoding: every kind of image a catalog may hold, drawn here, and the parity of the pixels with transformers."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.errors import DecodeError
from pipeline.images.decode import decode, decode_pixels
from pipeline.records import Content, Fetched, ImageRef, PreprocessSpec
from pipeline.settings import DecodeSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

FULL = DecodeSettings(reduced=False)
ORIENTATION = 0x0112


def spec(resize: str = "shortest_edge", *, edge: int = 32, height: int = 32, width: int = 32) -> PreprocessSpec:
    return PreprocessSpec(
        resize=resize,
        resize_size=edge,
        height=height,
        width=width,
        resample=Image.Resampling.BICUBIC,
        rescale=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drawing(width: int = 60, height: int = 40) -> Image.Image:
    """Red on the left, blue on the right, a green bar at the top: no symmetry hides a wrong rotation."""
    image = Image.new("RGB", (width, height), (200, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height), fill=(0, 0, 200))
    draw.rectangle((0, 0, width, height // 4), fill=(0, 200, 0))
    return image


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes with noise on top: what resampling and JPEG meet in a photo."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(columns / (5 + 3 * c)) + np.cos(rows / (7 + 2 * c)) for c in range(3)]
    noise = np.random.default_rng(width * 10_007 + height).normal(0, 0.2, (height, width, 3))
    return Image.fromarray(np.clip((np.stack(waves, -1) + noise) * 50 + 128, 0, 255).astype(np.uint8))


def centre(data: bytes, settings: DecodeSettings = FULL) -> list[int]:
    return decode_pixels(data, spec(), settings)[16, 16].tolist()


def failure(data: bytes, settings: DecodeSettings = FULL) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode_pixels(data, spec(), settings)
    return caught.value


# --- parity with transformers -------------------------------------------------------------------------------

SIZES = [(w, h) for w in (31, 32, 33, 50, 57, 101) for h in (30, 32, 35, 64, 99)] + [
    (400, 533),
    (533, 400),
    (7, 3),
    (1, 1),
    (90, 11),
]


@pytest.mark.parametrize(("edge", "crop"), [(32, 32), (37, 32), (32, 37), (33, 33), (21, 40)])
def test_pixels_equal_the_clip_processor(edge: int, crop: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": crop, "width": crop},
        do_rescale=False,
        do_normalize=False,
    )
    for width, height in SIZES:
        image = photo(width, height)
        expected = np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)
        found = decode_pixels(encoded(image, "PNG"), spec(edge=edge, height=crop, width=crop), FULL)
        assert np.array_equal(found, expected), (width, height)


def test_pixels_equal_the_siglip_processor() -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 48, "width": 36}, do_rescale=False, do_normalize=False)
    for width, height in SIZES:
        image = photo(width, height)
        expected = np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)
        found = decode_pixels(encoded(image, "PNG"), spec("squash", height=48, width=36), FULL)
        assert np.array_equal(found, expected), (width, height)


@pytest.mark.parametrize("size", [(10000, 1), (1, 10000), (5000, 20)])
def test_a_strip_is_cropped_as_if_all_of_it_had_been_resized(size: tuple[int, int]) -> None:
    image = photo(*size)
    width, height = size
    long_edge = int(8 * max(size) / min(size))
    whole = image.resize((8, long_edge) if width <= height else (long_edge, 8), Image.Resampling.BICUBIC)
    left, top = (whole.width - 8) // 2, (whole.height - 8) // 2
    expected = np.asarray(whole.crop((left, top, left + 8, top + 8))).astype(int)
    found = decode_pixels(encoded(image, "PNG"), spec(edge=8, height=8, width=8), FULL)
    assert np.abs(found - expected).max() <= 2


# --- reduced decoding ---------------------------------------------------------------------------------------


def cosine(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    x, y = a.astype(float).ravel() - 128, b.astype(float).ravel() - 128
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("resize", ["shortest_edge", "squash"])
@pytest.mark.parametrize(
    ("size", "orientation"), [((401, 533), each) for each in range(1, 9)] + [((999, 640), 1), ((130, 1201), 6)]
)
def test_reduced_decoding_stays_near_the_full_one(resize: str, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo(*size), "JPEG", quality=90, exif=exif)
    wanted = spec(resize)
    full, reduced = decode_pixels(data, wanted, FULL), decode_pixels(data, wanted, DecodeSettings())
    assert cosine(full, reduced) > 0.99


@pytest.mark.parametrize(
    ("resize", "orientation", "size", "expected"),
    [
        ("shortest_edge", 1, (512, 4096), (64, 512)),  # the short side decides: 64 is twice 32
        ("shortest_edge", 1, (500, 4096), (125, 1024)),  # an eighth would be 62
        ("squash", 1, (512, 1024), (64, 128)),  # 128 is twice 64
        ("squash", 1, (512, 1016), (128, 254)),  # an eighth would be 127 high
        ("squash", 6, (1024, 512), (128, 64)),  # the same stored sideways
        ("shortest_edge", 1, (60, 60), (60, 60)),
    ],
)
def test_reduced_decoding_never_goes_below_twice_the_input_size(
    resize: str,
    orientation: int,
    size: tuple[int, int],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.images import decode as room

    seen: list[tuple[int, int]] = []
    flatten = room._to_grey_or_rgb
    monkeypatch.setattr(room, "_to_grey_or_rgb", lambda image: (seen.append(image.size), flatten(image))[1])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(drawing(*size), "JPEG", exif=exif)
    wanted = spec(resize, height=64, width=24) if resize == "squash" else spec()
    decode_pixels(data, wanted, DecodeSettings())
    decode_pixels(data, wanted, FULL)
    assert seen == [expected, size]


# --- kinds of images ----------------------------------------------------------------------------------------


def test_decode_gives_the_pixels_with_the_size_of_the_upright_original() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(drawing(600, 400), "JPEG", exif=exif)
    image = ImageRef(image_id=7, product_id="p", url="a.jpg")
    content = Content(image=image, sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    found = decode(Fetched(content=content, data=data), spec(), DecodeSettings())
    assert (found.content, found.width, found.height) == (content, 400, 600)
    assert (found.pixels.shape, found.pixels.dtype) == ((32, 32, 3), np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_all_eight_exif_orientations_give_the_same_upright_image(kind: str) -> None:
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = drawing(96, 64)
    expected = np.asarray(upright.resize((48, 32)).crop((8, 0, 40, 32))).astype(int)
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = upright.transpose(turn) if turn is not None else upright
        options = {"quality": 95} if kind in {"JPEG", "WEBP", "AVIF"} else {}
        found = decode_pixels(encoded(stored, kind, exif=exif, **options), spec(), DecodeSettings())
        assert np.abs(found - expected).mean() < 4, orientation


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0garbage!" * 9])
def test_a_broken_exif_block_is_ignored(block: bytes) -> None:
    assert centre(encoded(Image.new("RGB", (50, 40), (10, 20, 30)), "PNG", exif=block)) == [10, 20, 30]
    jpeg = encoded(Image.new("RGB", (50, 40), (90, 90, 90)), "JPEG", exif=block)
    assert centre(jpeg) == [90, 90, 90]


def test_alpha_is_flattened_on_white() -> None:
    red = (255, 0, 0)
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([*red, 0, 0, 0])
    assert centre(encoded(Image.new("RGBA", (40, 40), (*red, 0)), "PNG")) == [255, 255, 255]
    assert centre(encoded(Image.new("RGBA", (40, 40), (*red, 128)), "PNG")) == [255, 127, 127]
    assert centre(encoded(Image.new("LA", (40, 40), (0, 0)), "PNG")) == [255, 255, 255]
    assert centre(encoded(palette, "PNG")) == [255, 0, 0]
    assert centre(encoded(palette, "PNG", transparency=0)) == [255, 255, 255]
    assert centre(encoded(palette, "PNG", transparency=bytes([128, 255]))) == [255, 127, 127]
    assert centre(encoded(palette, "GIF", transparency=0)) == [255, 255, 255]
    assert centre(encoded(Image.new("RGB", (40, 40), red), "PNG", transparency=red)) == [255, 255, 255]
    assert centre(encoded(Image.new("L", (40, 40), 9), "PNG", transparency=9)) == [255, 255, 255]
    assert centre(encoded(Image.new("RGBA", (40, 40), (*red, 0)), "WEBP", lossless=True)) == [255, 255, 255]


def test_grey_one_bit_and_palette_become_rgb() -> None:
    assert centre(encoded(Image.new("L", (40, 40), 77), "PNG")) == [77, 77, 77]
    assert centre(encoded(Image.new("1", (40, 40), 1), "PNG")) == [255, 255, 255]
    assert centre(encoded(Image.new("1", (40, 40), 0), "TIFF")) == [0, 0, 0]
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert centre(encoded(palette, "BMP")) == [10, 20, 30]


def test_cmyk_jpegs_are_read_as_pillow_and_photoshop_write_them() -> None:
    data = encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data  # the marker by which the inverted values are known
    red = centre(data)
    assert red[0] > 240
    assert max(red[1:]) < 15
    assert centre(encoded(Image.new("CMYK", (40, 40), (0, 0, 0, 0)), "TIFF")) == [255, 255, 255]


def png16(colour_type: int, samples: list[int], transparency: bytes = b"") -> bytes:
    """A PNG of 40 × 40 pixels of 16 bits, which Pillow cannot write in colour."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 40
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, colour_type, 0, 0, 0))
    clear = chunk(b"tRNS", transparency) if transparency else b""
    return b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(row * 40)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.full((40, 40), 128 * 257, dtype=np.uint16)
    assert centre(png16(0, [128 * 257])) == [128, 128, 128]
    assert centre(png16(0, [500], struct.pack(">H", 500))) == [255, 255, 255]
    assert centre(png16(2, [10 * 257, 128 * 257, 250 * 257])) == [10, 128, 250]
    assert centre(png16(4, [0, 0])) == [255, 255, 255]
    assert centre(png16(6, [65535, 0, 0, 65535])) == [255, 0, 0]
    assert centre(encoded(Image.fromarray(grey), "TIFF")) == [128, 128, 128]
    assert centre(encoded(Image.frombytes("I;16B", (40, 40), grey.astype(">u2").tobytes()), "TIFF")) == [128] * 3


@pytest.mark.parametrize(
    ("value", "white", "expected"),
    [(0.5, 1.0, 128), (128.0, 255.0, 128), (32768.0, 65535.0, 128), (5e5, 1e6, 255 // 2)],
)
def test_float_and_32_bit_images_are_scaled_by_their_usual_range(value: float, white: float, expected: int) -> None:
    values = np.full((40, 40), value, dtype=np.float32)
    values[0, 0] = white
    values[0, 1] = 0
    assert abs(centre(encoded(Image.fromarray(values), "TIFF"))[0] - expected) <= 1
    if value >= 1:
        assert abs(centre(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))[0] - expected) <= 1


def test_not_a_number_is_black() -> None:
    values = np.full((40, 40), np.nan, dtype=np.float32)
    assert centre(encoded(Image.fromarray(values), "TIFF")) == [0, 0, 0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.array(centre(data)) - (255, 0, 0)).max() < 8


def test_an_avif_is_known_by_its_bytes_whatever_its_name() -> None:
    found = np.array(centre(encoded(Image.new("RGB", (50, 40), (10, 200, 30)), "AVIF", quality=95)))
    assert np.abs(found - (10, 200, 30)).max() < 8


def test_one_pixel_is_enough() -> None:
    for kind in ("PNG", "GIF", "BMP", "WEBP"):
        assert centre(encoded(Image.new("RGB", (1, 1), (255, 255, 255)), kind)) == [255, 255, 255]


# --- bad input ----------------------------------------------------------------------------------------------


def test_no_bytes_are_empty() -> None:
    error = failure(b"")
    assert (error.code, error.message) == ("empty", "the file has 0 bytes")


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (
            b"\n <!DOCTYPE html><html><head><title>Not here</title><style>a{}</style></head></html>",
            "not_an_image",
            "the file is no image but an HTML page: 'Not here'",
        ),
        (b'{"error": "gone"}', "not_an_image", 'the file is no image but JSON: \'{"error": "gone"}\''),
        (b"Access denied\n", "not_an_image", "the file is no image but text: 'Access denied'"),
        (b"%PDF-1.7\n...", "not_an_image", "the file is no image but a PDF document"),
        (b"PK\x03\x04....", "not_an_image", "the file is no image but a ZIP archive"),
        (b"\x00\x01\x02\x03" * 9, "not_an_image", r"the file is no image: it begins with b'\x00\x01\x02\x03"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image", "the file is no image but text"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "unsupported_format",
            "the file is a HEIC image, expected one of JPEG",
        ),
        (
            b'<?xml version="1.0"?><svg xmlns="x"/>',
            "unsupported_format",
            "the file is an SVG drawing, expected one of",
        ),
    ],
)
def test_what_is_no_readable_image_is_named(data: bytes, code: str, message: str) -> None:
    error = failure(data)
    assert error.code == code
    assert error.message.startswith(message)
    assert not error.is_retryable


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"])
def test_a_file_cut_in_the_middle_is_truncated(kind: str) -> None:
    data = encoded(photo(200, 150), kind)
    error = failure(data[: len(data) // 2])
    assert error.code == "truncated", error.message
    assert error.message.startswith(f"the {kind} file ends too early: ")


def test_too_many_pixels_are_refused_before_decoding() -> None:
    huge = png16(2, [0, 0, 0]).replace(struct.pack(">II", 40, 40), struct.pack(">II", 30000, 30000), 1)
    crc = struct.pack(">I", zlib.crc32(huge[12:29]))
    error = failure(huge[:29] + crc + huge[33:])
    assert error.code == "too_many_pixels"
    assert error.message == "the image has 30000 × 30000 pixels, expected at most 100000000 in all"
    assert failure(encoded(drawing(60, 40), "JPEG"), DecodeSettings(max_pixels=2399)).code == "too_many_pixels"
    assert centre(encoded(drawing(60, 40), "PNG"), DecodeSettings(max_pixels=2400))


def test_the_limit_is_ours_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (60, 40), (1, 2, 3)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)  # Pillow refuses what is over twice this
    assert centre(data) == [1, 2, 3]


def test_pillows_warnings_stay_off_the_terminal() -> None:
    # a TIFF whose last tag points behind the end of the file
    data = bytearray(encoded(drawing(), "TIFF", software="x" * 20))
    at = data.index(struct.pack("<HH", 305, 2))
    data[at + 8 : at + 12] = struct.pack("<I", 0x7FFFFFFF)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_pixels(bytes(data), spec(), FULL)
    assert caught == []


def test_errors_pickle_and_keep_their_cause() -> None:
    data = encoded(photo(64, 64), "PNG")
    error = failure(data[:300])
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.message) == (error.code, error.message)
    assert error.__cause__ is not None


def test_threads_decode_alike() -> None:
    files = [encoded(photo(90 + size, 120), kind) for size in range(4) for kind in ("JPEG", "PNG", "WEBP", "GIF")]
    alone = [decode_pixels(data, spec(), DecodeSettings()) for data in files]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[NDArray[np.uint8]]:
        barrier.wait(10)
        return [decode_pixels(data, spec(), DecodeSettings()) for data in files]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            assert all(np.array_equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"])
def test_only_decode_errors_come_out_of_damaged_files(kind: str) -> None:
    rng = random.Random(f"catvec {kind}")
    exif = {"exif": encoded_exif()} if kind in {"JPEG", "PNG", "WEBP", "AVIF", "TIFF"} else {}
    whole = encoded(photo(48, 36), kind, **exif)
    codes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3, 20])):
            # the head holds the structure: damage it more often than the pixels
            data[rng.randrange(min(rng.choice([64, 400, len(data)]), len(data)))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            decode_pixels(bytes(data), spec(), DecodeSettings(max_pixels=4_000_000))
        except DecodeError as error:
            codes.add(error.code)
    assert codes <= {"empty", "not_an_image", "truncated", "undecodable", "too_many_pixels", "unsupported_format"}
    assert codes


def encoded_exif() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif.tobytes()

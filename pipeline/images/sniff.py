"""What bytes look like by their first bytes: an image format, or what a server sent in its place."""

from __future__ import annotations

import re

JPEG, PNG, GIF, WEBP, AVIF, TIFF, BMP = "JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"

_SIGNATURES = (
    (JPEG, rb"\xff\xd8\xff"),
    (PNG, rb"\x89PNG\r\n\x1a\n"),
    (GIF, rb"GIF8[79]a"),
    (WEBP, rb"RIFF....WEBP"),
    (AVIF, rb"....ftyp(?=avi[fs]|.{4,60}?avi[fs])"),
    (TIFF, rb"II[*+]\0|MM\0[*+]"),
    (BMP, rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}"),  # the length of its second header
)

# images that the decoder has no business with: rare in catalogs, and each more code for hostile bytes to try
_OTHER_IMAGES = (
    ("a HEIC image", rb"....ftyp(?:hei|hev|mif1|msf1)"),
    ("a JPEG XL image", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("a JPEG 2000 image", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("an SVG drawing", rb"(?:<\?xml[^>]*>\s*)?(?:<!--.{0,200}?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]"),
    ("a Photoshop document", rb"8BPS"),
    ("an icon file", rb"\0\0\x01\0"),
)

_OTHER_THINGS = (
    ("an HTML page", rb"<!doctype html|<(?:html|head|body|title|script|meta|div|h1|p)[\s>]"),
    ("XML", rb"<\?xml"),
    ("JSON", rb"[\[{]\s*[\"\[{\]}]"),
    ("a PDF document", rb"%PDF-"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("gzipped data", rb"\x1f\x8b"),
    ("a video", rb"....ftyp|\x1aE\xdf\xa3"),
    ("a Git LFS pointer", rb"version https://git-lfs"),
)

READABLE = frozenset({"an HTML page", "XML", "JSON", "a Git LFS pointer", "text"})
"""the things whose first words help to see what went wrong"""


def find_format(data: bytes) -> str | None:
    """Name the image format the decoder can read, by its signature; None if it is none of them."""
    return _match(data[:80], _SIGNATURES, flags=re.DOTALL)


def find_other_image(data: bytes) -> str | None:
    """Name the image format that these bytes seem to have and that the decoder does not read."""
    return _match(data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n"), _OTHER_IMAGES, flags=re.DOTALL | re.IGNORECASE)


def find_other_thing(data: bytes) -> str | None:
    """Name what these bytes seem to be when they are no image: a page, JSON, an archive, text."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    known = _match(start, _OTHER_THINGS, flags=re.DOTALL | re.IGNORECASE)
    if known or not start:
        return known
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in start) and _is_utf8(start)
    return "text" if is_text else None


def is_cut_short(data: bytes) -> bool:
    """Say whether a file is shorter than its headers say (WebP, AVIF) or lacks its end mark (PNG, JPEG, GIF)."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[4:8] == b"ftyp":
        return len(data) < _boxes_end(data)
    ends = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9", b"GIF8": b";"}
    end = next((end for start, end in ends.items() if data.startswith(start)), b"")
    return end not in data[-64:]


def _boxes_end(data: bytes) -> int:
    """Give where the boxes of an ISO media file end by their own lengths; a length of 0 or 1 is left alone."""
    at = 0
    while at + 8 <= len(data) and (length := int.from_bytes(data[at : at + 4])) >= 8:
        at += length
    return at


def first_words(data: bytes, *, length: int = 60) -> str:
    """Give the first readable words of a page or text, without tags, scripts and styles."""
    text = data[:4096].decode("utf-8", errors="replace")
    text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<!--.*?-->|<[^>]*>|[\x00-\x1f\x7f\ufffd]", " ", text)
    words = " ".join(text.split())
    return words if len(words) <= length else words[: length - 1] + "…"


def _match(data: bytes, signatures: tuple[tuple[str, bytes], ...], *, flags: int) -> str | None:
    return next((name for name, pattern in signatures if re.match(pattern, data, flags)), None)


def _is_utf8(start: bytes) -> bool:
    try:
        start[:1000].decode()
    except UnicodeDecodeError as error:
        return error.start > 1000 - 4  # a character cut in two by the limit
    return True

"""Image references: out of the cells they stand in, and into one of three forms.

A reference is an http(s) URL, a path relative to the image root with forward slashes, or a data URI. Whether
the image exists is not asked here.
"""

from __future__ import annotations

import ast
import json
import math
import os
import posixpath
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.catalog.values import BAD_TEXT
from pipeline.errors import RowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff",
)  # fmt: skip

_KEYS = ("src", "url", "link", "href", "image", "image_url", "path", "file")
"""where an object keeps its image: {"src": …} at Shopify and WooCommerce, {"path": …} in Hugging Face data"""

_URL_AHEAD = r"(?=\s*(?:https?://|data:))"
# no pattern begins with \s*: searching one takes quadratic time in a cell of many blanks
_AFTER_URL = re.compile(rf"[|\r\n]|[;,]{_URL_AHEAD}|;(?=\s*//)|(?<=\s)(?=https?://|data:)", re.IGNORECASE)
_AFTER_PATH = re.compile(
    rf"[|;\r\n]|,{_URL_AHEAD}|(?<=\s)(?=https?://|data:)|"
    + "|".join(rf"(?<={re.escape(ending)})\s?," for ending in IMAGE_ENDINGS),
    re.IGNORECASE,
)
_BASE64 = re.compile(r"data:[^,|\s]*;base64,[\w+/=%-]*", re.IGNORECASE | re.ASCII)
_DATA = re.compile(r"data:[^,|\s]*,[^|\s]*", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(https?|data|file|blob|cid|mailto|javascript):", re.IGNORECASE)
_PLAIN_URL = re.compile(r"https?://[a-z0-9][a-z0-9.-]*(?::[1-5]?\d{1,4})?(?:/[!-~]*)?")
"""what needs no further look: saves 4 of the 12 µs that a row would take"""
_ALONE = re.compile(r"[^|;,\s[{][^|;,\s]*")
"""a cell with one reference, that is nothing that parts two, and no list: saves 3 of the 12 µs"""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:/")
_USERINFO = re.compile(r"//[^/?#\s]*@")


def flatten(value: object, separator: str | None) -> Iterable[object]:
    """Every reference in a cell, in order, as it stands there."""
    if separator is None and isinstance(value, str) and _ALONE.fullmatch(value):
        return (value,)
    return _flatten(value, separator)


def _flatten(value: object, separator: str | None) -> Iterator[object]:
    if isinstance(value, (bytes, bytearray)):
        with suppress(UnicodeDecodeError):  # many writers of Parquet store text as bytes
            value = value.decode()
    if isinstance(value, str):
        text = value.strip()
        nested = _parse_nested(text)
        yield from _split(text, separator) if nested is None else _flatten(nested, separator)
    elif isinstance(value, dict):
        inner = next((value[key] for key in _KEYS if value.get(key)), None)
        yield value if inner is None else inner
    elif isinstance(value, (list, tuple)):
        for item in value:
            # a string in a list is one reference: the list says where it ends
            yield from filter(None, [item.strip()]) if isinstance(item, str) else _flatten(item, separator)
    elif not (value is None or value is False or (isinstance(value, float) and math.isnan(value))):
        yield value


def _parse_nested(text: str) -> object:
    """A list or object written as JSON, or as Python prints it; None for other text."""
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            nested = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(nested, (list, dict)):
            return nested
    return None


def _split(text: str, separator: str | None) -> Iterator[str]:
    start = 0
    while start < len(text):
        end, following = _piece_end(text, start, separator)
        piece = text[start:end].strip()
        if separator is None:
            piece = piece if piece[:5].lower() == "data:" else piece.rstrip(";, ")
        if piece:
            yield piece
        start = following


def _piece_end(text: str, start: int, separator: str | None) -> tuple[int, int]:
    """Where the piece that begins at `start` ends, and where the next one begins."""
    while start < len(text) and text[start].isspace():
        start += 1
    if separator is None and text[start : start + 1] in (*";,|", ""):
        return start, start + 1
    # the comma and the semicolon of a data URI are no separators
    data = _BASE64.match(text, start) or (_DATA.match(text, start) if separator is None else None)
    search_from = data.end() if data else start
    if separator is not None:
        end = text.find(separator, search_from)
        return (end, end + len(separator)) if end >= 0 else (len(text), len(text))
    is_url = _SCHEME.match(text, start) or text.startswith("//", start)
    # from start + 1: the place before a URL is a border, but not its own
    found = (_AFTER_URL if is_url else _AFTER_PATH).search(text, max(search_from, start + 1))
    return found.span() if found else (len(text), len(text))


def make_reference(raw: object, root: Path | None) -> str:
    """The reference in its one form.

    Raises RowError: unsupported_url, invalid_url, outside_root, no_image_root, bad_text.
    """
    if isinstance(raw, str) and _PLAIN_URL.fullmatch(raw):
        return raw
    reference = _make_reference(raw, root)
    # only now: a list inside a cell and a file:// URL have escapes of their own
    if BAD_TEXT.search(reference):
        raise RowError("bad_text", "the reference holds a NUL character or half a surrogate pair")
    return reference


def _make_reference(raw: object, root: Path | None) -> str:
    if not isinstance(raw, str):
        kind = type(raw).__name__
        raise RowError("unsupported_url", f"found a value of type {kind}, expected a URL, a path or a data URI")
    text = raw.strip()
    scheme = _SCHEME.match(text)
    if text.startswith("//"):
        return _http_url(f"https:{text}")
    if not scheme:
        return _relative_path(text.replace("\\", "/"), root)
    name = (scheme[1] or scheme[2]).lower()
    if name in ("http", "https"):
        return _http_url(text)
    if name == "data":
        if not _DATA.fullmatch(text):
            raise RowError("invalid_url", "data URI without a comma or with blanks inside")
        return "data" + text[4:]
    if name == "file":
        return _file_url(text, root)
    raise RowError("unsupported_url", f"scheme {name!r}, expected http, https, data or a path")


def _http_url(text: str) -> str:
    """Scheme and host in lower case, blanks as %20."""
    try:
        if _CONTROL.search(text):
            raise ValueError("control character")
        parts = urlsplit(text)
        if not parts.hostname or " " in parts.netloc:
            raise ValueError("no host")
        _ = parts.port  # raises ValueError for what is no port
    except ValueError as error:
        reason = str(error)[:1].lower() + str(error)[1:]
        raise RowError("invalid_url", f"not a URL that can be fetched: {redact(reason)}") from error
    netloc = parts.netloc if "@" in parts.netloc else parts.netloc.lower()
    rest = text[text.index("//") + 2 + len(parts.netloc) :]
    return f"{parts.scheme}://{netloc}{rest}".replace(" ", "%20")


def _file_url(text: str, root: Path | None) -> str:
    parts = urlsplit(text)
    if parts.netloc.lower() not in ("", "localhost"):
        raise RowError("outside_root", "a file on another machine")
    return _relative_path(unquote(parts.path), root)


def _relative_path(path: str, root: Path | None) -> str:
    if root is None:
        raise RowError("no_image_root", "a relative path, but nothing says where it starts; give --image-root")
    if path.startswith("/") or _DRIVE.match(path):
        path = _below(path, root)
    normal = posixpath.normpath(path)
    if normal == ".":
        raise RowError("invalid_url", "names the image root itself, not a file in it")
    if normal == ".." or normal.startswith("../"):
        raise RowError("outside_root", "a path that leaves the image root")
    return normal


def _below(path: str, root: Path) -> str:
    absolute = Path(os.path.normpath(path))
    for start in (root, root.resolve()):
        if absolute.is_relative_to(start):
            return absolute.relative_to(start).as_posix()
    raise RowError("outside_root", "an absolute path outside the image root")


def redact(url: str) -> str:
    """The URL without the user name and password that may stand before its host (law 10)."""
    return _USERINFO.sub("//***@", url)

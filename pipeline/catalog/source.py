"""Files and standard input as a stream of bytes or text, a piece at a time; gzip is unpacked on the way.

What is wrong with the stream itself (cut off, not in its encoding) is a `SourceError`, raised exactly when the
reader has had everything before it: so `open` can say after which row.
"""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from pipeline.errors import CatalogError, ConfigError
from pipeline.near import near_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from _typeshed import WriteableBuffer

    from pipeline.records import BadRow, Deletion, Product

T = TypeVar("T")
Record = TypeVar("Record", bound="Product | BadRow | Deletion")

CHUNK_BYTES = 64 * 1024
"""read at once; 1 MiB is no faster (decoding and parsing take the time) and delays the first row of a pipe"""

MAX_CHARACTERS = 16 * 1024 * 1024
"""longest line, cell or JSON value: room for images as data URIs, a bound for memory (law 8)"""

_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV in UTF-8"),
    (b"PAR1", "a Parquet file", "add --format parquet"),
    (b"SQLite format 3", "an SQLite database", "give sqlite:///FILE with --query 'SELECT …'"),
    (b"%PDF", "a PDF document", None),
    (b"\xff\xd8\xff", "a JPEG image", "give the folder that holds it"),
    (b"\x89PNG", "a PNG image", "give the folder that holds it"),
)
"""first bytes of what people hand over by mistake"""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_HEAD = 16

CUT_OFF_HINT = "fetch or export it again"


class SourceError(Exception):
    """The stream breaks here: `problem` continues a sentence that begins with the catalog's name."""

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def located(records: Iterator[Record], name: str, *, unit: str = "row") -> Iterator[Record]:
    """The same records; a source that breaks becomes a CatalogError that says after which row."""
    row = 0
    try:
        for record in records:
            row = record.row
            yield record
    except SourceError as error:
        place = f"after {unit} {row:,}" if row else f"before its first {unit} ends"
        raise CatalogError(f"{name} {error.problem} {place}", hint=error.hint) from error


def check_exists(path: Path) -> None:
    """Raises CatalogError, with the nearest names, for a path where nothing is."""
    try:
        if path.exists():
            return
        near = near_paths(path)
    except OSError as error:
        raise CatalogError(f"cannot read {str(path)!r}: {error.strerror}") from error
    hint = f"did you mean {' or '.join(repr(str(other)) for other in near)}?" if near else None
    if not near and not path.parent.is_dir():
        hint = f"there is no folder {str(path.parent)!r} either"
    raise CatalogError(f"no such file {str(path)!r}", hint=hint)


class _Replayed(io.RawIOBase):
    """A stream whose first bytes were read already. Closing it leaves the stream underneath open."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]) -> None:
        self._head = head
        self._read_rest = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._head[: len(view)] or self._read_rest(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        return len(data)


@contextmanager
def open_bytes(path: Path | None, stdin: BinaryIO | None) -> Iterator[BinaryIO]:
    """The bytes of a file, or of standard input when there is no path; `stdin` stands for it and stays open.

    Raises CatalogError when the file cannot be opened.
    """
    if path is None:
        yield stdin or sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise CatalogError(f"cannot read {str(path)!r}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def open_text(path: Path | None, stdin: BinaryIO | None, *, encoding: str, name: str) -> Iterator[Iterator[str]]:
    """The text of a file or of standard input as pieces of any length, without a byte order mark.

    `name` is the catalog's in errors.

    Raises ConfigError for an encoding that Python does not know, and CatalogError for what is no text file.
    """
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise ConfigError(
            f"unknown encoding {encoding!r}", hint="for example --encoding utf-8, cp1252, latin-1 or utf-16"
        ) from error
    with open_bytes(path, stdin) as stream:
        yield _decoded(_unpacked(stream, name, encoding), decoder, encoding)


def _unpacked(stream: BinaryIO, name: str, encoding: str) -> io.BufferedIOBase:
    head = _read(stream.read, _LONGEST_HEAD)
    whole = io.BufferedReader(_Replayed(head, stream.read), CHUNK_BYTES)
    if head.startswith(b"\x1f\x8b"):
        unpacked = gzip.GzipFile(fileobj=whole)
        head = _read(unpacked.read1, _LONGEST_HEAD)
        # read1 because read, when the data end early, drops what it had unpacked until then
        whole = io.BufferedReader(_Replayed(head, unpacked.read1), CHUNK_BYTES)
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise CatalogError(f"{name} is {what}, expected text", hint=hint)
    _check_mark(head, name, encoding)
    return whole


def _check_mark(head: bytes, name: str, encoding: str) -> None:
    """A byte order mark that contradicts the encoding says what is right."""
    family = codecs.lookup(encoding).name[:6].rstrip("-")
    shown = _shown(encoding)
    for mark, marked in _MARKS:
        if head.startswith(mark):
            if family != marked:
                raise CatalogError(
                    f"{name} begins with the byte order mark of {marked}, expected {shown}",
                    hint=f"add --encoding {marked}",
                )
            return


def _read(read: Callable[[int], bytes], size: int) -> bytes:
    try:
        return read(size)
    except EOFError as error:
        raise SourceError("is cut off (its gzip data end early)", hint=CUT_OFF_HINT) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"holds damaged gzip data ({error})", hint=CUT_OFF_HINT) from error
    except OSError as error:
        raise SourceError(f"cannot be read further ({error.strerror or error})") from error


def _decoded(stream: io.BufferedIOBase, decoder: codecs.IncrementalDecoder, encoding: str) -> Iterator[str]:
    taken = 0
    is_first = True
    while True:
        data = _read(stream.read1, CHUNK_BYTES)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            # the rows before the fault must come out, or the row that the error names would be wrong
            known = error.encoding if error.encoding.startswith("utf") else encoding
            yield error.object[: error.start].decode(known, "replace")
            pending = len(error.object) - len(data)
            raise _not_in(encoding, error, position=taken - pending + error.start) from error
        taken += len(data)
        if text:
            yield text.removeprefix("\ufeff") if is_first else text
            is_first = False
        if not data:
            return


def _not_in(encoding: str, error: UnicodeDecodeError, *, position: int) -> SourceError:
    shown = _shown(encoding)
    if error.reason in ("unexpected end of data", "truncated data"):
        return SourceError(f"is cut off in the middle of a {shown} character, at byte {position:,},")
    other = "cp1252" if shown.lower() in ("utf-8", "utf8", "ascii") else "utf-8"
    around = error.object[max(0, error.start - 20) : error.start + 20]
    if around.count(0) > len(around) // 4:
        other = "utf-16-le"
    return SourceError(
        f"is not {shown}: byte 0x{error.object[error.start]:02x} at position {position:,},",
        hint=f"try --encoding {other}",
    )


def _shown(encoding: str) -> str:
    # utf-8-sig is our default and no name that the user ever typed
    return "utf-8" if encoding == "utf-8-sig" else encoding


def look_ahead(items: Iterator[T], is_enough: Callable[[list[T]], bool]) -> tuple[list[T], Iterator[T]]:
    """The first items, and all of them again. A fault among the first comes again when its turn comes."""
    head: list[T] = []
    fault = None
    try:
        for item in items:
            head.append(item)
            if is_enough(head):
                break
    except SourceError as error:
        fault = error

    def again() -> Iterator[T]:
        yield from head
        head.clear()
        if fault is not None:
            raise fault
        yield from items

    return list(head), again()


def lines(text: Iterable[str]) -> Iterator[str]:
    """The same text in lines that keep their ends (\\n, \\r\\n or \\r; no other character ends a line)."""
    rest = ""
    for piece in text:
        split = list(io.StringIO(rest + piece, newline=""))
        # a \r at the end may be the first half of \r\n
        rest = "" if not split or split[-1].endswith("\n") else split.pop()
        if len(rest) > MAX_CHARACTERS:
            raise SourceError(f"holds a line of more than {MAX_CHARACTERS:,} characters")
        yield from split
    if rest:
        yield rest

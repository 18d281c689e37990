"""CSV and TSV: the delimiter is found, quotes may hold line ends, and a crooked row is a BadRow."""

from __future__ import annotations

import csv
from collections import Counter
from typing import TYPE_CHECKING

from pipeline.catalog.rows import Row, Table
from pipeline.catalog.source import CUT_OFF_HINT, MAX_CHARACTERS, SourceError, lines, look_ahead
from pipeline.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.records import BadRow

_DELIMITERS = ",;\t|"
"""tried in this order: the first wins when two divide the head of the file equally well"""

_HEAD_LINES = 50
_NAMED_DELIMITERS = {"\\t": "\t", "tab": "\t"}
"""what people type for a character that they cannot type"""


class _Lines:
    """Lines for csv.reader, and how they end: the reader takes whatever it has by then for a row."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._last = ""
        self.are_all_read = False

    def __iter__(self) -> Iterator[str]:
        for line in self._source:
            self._last = line
            yield line
        self.are_all_read = True

    @property
    def is_last_open(self) -> bool:
        """Whether the line that was read last has no end, which only the last line of a text can lack."""
        return not self._last.endswith(("\n", "\r"))


def check_delimiter(delimiter: str | None) -> str | None:
    """The one character that was meant. Raises ConfigError."""
    meant = _NAMED_DELIMITERS.get(delimiter, delimiter) if delimiter else delimiter
    if meant is not None and (len(meant) != 1 or meant in '"\r\n'):
        raise ConfigError(f"--delimiter is {delimiter!r}, expected one character such as ';' or '\\t'")
    return meant


def read_csv(text: Iterable[str], *, delimiter: str | None, name: str) -> Table:
    """The table in `text`; `name` is the catalog's in errors.

    Raises CatalogError for a header that is none, and SourceError from the rows.
    """
    head, source = look_ahead(lines(text), lambda taken: len(taken) == _HEAD_LINES)
    declared = _declared_delimiter(head)
    if declared:
        del head[0]
        next(source)
    _refuse_other_text(head, name)
    found = delimiter or declared or _sniff(head)
    # the limit is the process's; data URIs are longer than the default of 131,072
    csv.field_size_limit(MAX_CHARACTERS)
    source_lines = _Lines(source)
    records = _records(source_lines, found)
    header = next(records, (0, []))[1]
    names = tuple(cell.strip() or f"column_{place}" for place, cell in enumerate(header, start=1))
    return Table(names=names, rows=_rows(records, names, source_lines))


def _declared_delimiter(head: list[str]) -> str | None:
    # Excel writes sep=; as the first line when it fears for its delimiter
    first = head[0].rstrip("\r\n") if head else ""
    return first[4] if len(first) == 5 and first.lower().startswith("sep=") else None


def _refuse_other_text(head: list[str], name: str) -> None:
    first = head[0].lstrip() if head else ""
    if "\x00" in first:
        raise CatalogError(f"{name} holds NUL characters in its header", hint="try --encoding utf-16-le")
    if first.startswith("<"):
        raise CatalogError(
            f"{name} begins with {first[:20]!r}, expected CSV: this is an HTML or XML page",
            hint="look into the file: the server may have sent an error page",
        )
    if first.startswith(("[", "{")):
        raise CatalogError(
            f"{name} begins with {first[:20]!r}, expected CSV: this looks like JSON",
            hint="add --format json or --format jsonl",
        )


def _sniff(head: list[str]) -> str:
    """The delimiter that divides most rows of the head as it divides the header."""
    scores = {delimiter: _score(head, delimiter) for delimiter in _DELIMITERS}
    return max(_DELIMITERS, key=scores.__getitem__)


def _score(head: list[str], delimiter: str) -> tuple[float, int]:
    widths = [len(row) for row in csv.reader(head, delimiter=delimiter) if row]
    if not widths or widths[0] == 1:
        return 0.0, 0
    # the last row may be the first half of one that goes on behind the head
    whole = widths[:-1] if len(widths) > 2 else widths
    return Counter(whole)[widths[0]] / len(whole), widths[0]


def _records(source: _Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its first line; blank lines are no rows."""
    reader = csv.reader(source, delimiter=delimiter)
    line = 1
    try:
        for cells in reader:
            if source.are_all_read:  # there was no line left, but an open quote
                raise _unclosed(line)
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise _unclosed(line) from error


def _unclosed(line: int) -> SourceError:
    return SourceError(
        f"has a quote in the row of line {line:,} that is never closed,",
        hint='the file may be cut off there; else close the quote, or write "" for a quote inside a quoted cell',
    )


def _rows(records: Iterator[tuple[int, list[str]]], names: tuple[str, ...], source: _Lines) -> Iterator[Row | BadRow]:
    width = len(names)
    for row, (line, cells) in enumerate(records, start=1):
        if len(cells) > width and not any(cells[width:]):
            del cells[width:]  # delimiters at the end of the line, but nothing between them
        values = dict(zip(names, cells, strict=False))
        if len(cells) == width:
            if any(cells):  # spreadsheets end in rows of delimiters alone
                yield Row(row=row, values=values)
        elif len(cells) < width and source.is_last_open:
            raise SourceError("is cut off in the middle of its last line,", hint=CUT_OFF_HINT)
        else:
            yield Row(row=row, values=values, crooked=f"{len(cells)} cells, expected {width} (line {line:,})")

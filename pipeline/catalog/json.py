"""JSON arrays and JSON Lines, one product at a time.

An array is read by the standard library's decoder, element by element: ijson 3.6, the usual choice, ends the
process with a segmentation fault on a number of more than 4,300 digits, turns half a surrogate pair into a
question mark unseen, and refuses the NaN that Python's own `json.dump` writes.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from pipeline.catalog.rows import Row, Table, bad_row
from pipeline.catalog.source import CUT_OFF_HINT, MAX_CHARACTERS, SourceError, lines, look_ahead
from pipeline.errors import CatalogError, RowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.records import BadRow

_HEAD_ROWS = 100
_HEAD_CHARACTERS = 1024 * 1024
"""objects looked at for the names of columns, by count and by size: they stay in memory until used"""

_BLANKS = re.compile(r"[ \t\n\r]*")
_NUMBER_PART = re.compile(r"[-+.eE\d]*")
_MAX_DIGITS = 4000
"""int() refuses more than 4,300 digits"""


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _fraction(digits: str) -> Decimal | str:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent beyond what Decimal holds
        return digits


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_fraction, parse_constant=lambda _: None)


class _Scanner:
    """Takes values and punctuation off a text that arrives in pieces."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            match = _BLANKS.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found:
            raise SourceError("is cut off", hint=CUT_OFF_HINT)
        if found not in expected:
            raise _invalid(f"found {found!r}, expected {' or '.join(map(repr, expected))}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, read whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not _is_incomplete(error):
                    raise _invalid(error.msg) from error
                if not self._more(double=True):
                    raise SourceError("is cut off", hint=CUT_OFF_HINT) from error
                continue
            except RecursionError as error:
                raise _invalid("nested too deeply") from error
            # "12" at the end of this piece may become 12.5 or 12e+3 with the next
            if end + 2 < len(self._text) or not self._more():
                self._at = end
                return value

    def _more(self, *, double: bool = False) -> bool:
        """Read on; to twice the length for a value that must be parsed anew, which keeps the time linear."""
        pieces = [self._text[self._at :]]
        wanted = 2 * len(pieces[0]) if double else 1
        size = len(pieces[0])
        while size < wanted or len(pieces) == 1:
            piece = next(self._pieces, "")
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        if size > MAX_CHARACTERS:
            raise SourceError(f"holds a value of more than {MAX_CHARACTERS:,} characters")
        if len(pieces) == 1:
            return False
        self._text = "".join(pieces)
        self._at = 0
        return True


def _is_incomplete(error: json.JSONDecodeError) -> bool:
    """Whether what follows could still make this text valid."""
    rest = error.doc[error.pos :].rstrip()
    return (
        error.msg.startswith("Unterminated")
        or _NUMBER_PART.fullmatch(rest) is not None  # also matches nothing at all
        or any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity"))
        or (error.msg.startswith("Invalid \\") and len(rest) < 6)
    )


def _invalid(reason: str) -> SourceError:
    return SourceError(
        f"is not valid JSON ({reason[:1].lower()}{reason[1:]})",
        hint="for one object on each line, add --format jsonl",
    )


def read_json(text: Iterator[str], name: str) -> Table:
    """An array of objects, or an object with one (`{"products": […]}`); JSON Lines by that ending too.

    Raises CatalogError for any other text, and SourceError from the rows.
    """
    pieces, text = look_ahead(text, lambda taken: sum(map(len, taken)) >= _HEAD_CHARACTERS)
    head = "".join(pieces)
    if _begins_like_lines(head):
        return read_json_lines(text, name)
    scanner = _Scanner(text)
    if scanner.peek() == "{":
        _enter_array(scanner, name)
    elif scanner.peek() == "[":
        scanner.take("[")
    elif scanner.peek():
        raise CatalogError(f"{name} begins with {head.lstrip()[:20]!r}, expected a JSON array of objects")
    else:
        return Table(names=(), rows=iter(()))
    return _table(_numbered(_elements(scanner)), name)


def _begins_like_lines(head: str) -> bool:
    first, _, rest = head.lstrip().partition("\n")
    try:
        return rest.lstrip().startswith("{") and isinstance(_DECODER.decode(first), dict)
    except (ValueError, RecursionError):
        return False


def _enter_array(scanner: _Scanner, name: str) -> None:
    """Go to the first array of objects that is a value of the outermost object."""
    keys = []
    is_empty = False
    scanner.take("{")
    while scanner.peek() == '"':
        keys.append(scanner.value())
        scanner.take(":")
        if scanner.peek() == "[":
            scanner.take("[")
            if scanner.peek() == "{":
                return
            is_empty |= scanner.peek() == "]"
            for _ in _elements(scanner):
                pass
        else:
            scanner.value()
        if scanner.take(",}") == "}":
            break
    if is_empty:
        raise CatalogError(f"{name} holds no products: the array in it is empty")
    found = ", ".join(map(repr, keys[:_HEAD_ROWS])) or "nothing"
    raise CatalogError(
        f"{name} is a JSON object that holds no array of products; it holds {found}",
        hint="take the array out, for example: jq .data.products FILE | catvec run - --format json",
    )


def _elements(scanner: _Scanner) -> Iterator[Any]:
    """The elements of the array whose bracket was just taken."""
    if scanner.peek() == "]":
        scanner.take("]")
        return
    while True:
        yield scanner.value()
        if scanner.take(",]") == "]":
            return


def read_json_lines(text: Iterator[str], name: str) -> Table:
    """One object on each line; a line that is none is a BadRow. Raises CatalogError when nearly all are."""
    return _table(_numbered(_parsed(line) for line in lines(text) if not line.isspace()), name)


def _parsed(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        # only the last line of a text can have no end
        if _is_incomplete(error) and not line.endswith(("\n", "\r")):
            raise SourceError("is cut off in the middle of its last line,", hint=CUT_OFF_HINT) from error
        return RowError("invalid_json", f"{error.msg} at character {error.pos + 1}")
    except RecursionError:
        return RowError("invalid_json", "nested too deeply")


def _numbered(values: Iterable[Any]) -> Iterator[Row | BadRow]:
    for row, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield Row(row=row, values=value)
        elif isinstance(value, RowError):
            yield bad_row(row, value.code, value.message)
        else:
            yield bad_row(row, "invalid_json", f"found {str(value)[:100]!r}, expected an object")


def _table(rows: Iterator[Row | BadRow], name: str) -> Table:
    """Objects need not all have the same keys: the first ones say which columns there are."""
    head, rows = look_ahead(rows, _is_head)
    names = dict.fromkeys(key for row in head if isinstance(row, Row) for key in row.values)
    if head and not names:
        raise CatalogError(
            f"{name} holds no JSON object in its first {len(head)} rows",
            hint="--format jsonl is one object on each line, --format json is one array of objects",
        )
    return Table(names=tuple(names), rows=rows)


def _is_head(taken: list[Row | BadRow]) -> bool:
    # images as data URIs make long rows; the first is measured for all
    first = taken[0].values.values() if isinstance(taken[0], Row) else ()
    size = sum(len(value) for value in first if isinstance(value, str))
    return len(taken) >= _HEAD_ROWS or len(taken) * size > _HEAD_CHARACTERS

"""Values of any catalog (text, JSON, Arrow, database drivers) as text or as JSON that Postgres can store."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.errors import RowError

if TYPE_CHECKING:
    from collections.abc import Mapping

BAD_TEXT = re.compile("[\x00\ud800-\udfff]")
"""what Postgres' text and jsonb refuse: NUL, and surrogates, which no UTF-8 text has"""

MAX_INDEXED_CHARACTERS = 500
"""longest id, category or brand: Postgres cannot index more than 2,704 bytes, and a character may take four"""

_MAX_DEPTH = 100
"""of lists and objects: no product needs more, and Python's own limit differs between its versions"""

_MAX_DIGITS = 30
"""whole numbers up to this stay numbers: 1E+999999 in a catalog must not become a million digits"""


def check_storable(values: Mapping[str, Any]) -> None:
    """Raises RowError, bad_text or too_deep, for a row that Postgres could not store."""
    try:
        # one look at the whole row: one at each cell took a sixth of the time of reading
        is_storable = not _is_bad_text("".join([*values, *values.values()]))
    except TypeError:  # not all of them are text
        is_storable = False
    if is_storable:
        return
    for name, value in values.items():
        if _is_bad(name, 0) or _is_bad(value, 0):
            raise RowError("bad_text", f"column {name!r} holds a NUL character or half a surrogate pair")


def _is_bad(value: object, depth: int) -> bool:
    if isinstance(value, str):
        return _is_bad_text(value)
    if not isinstance(value, (dict, list, tuple)):
        return False
    if depth == _MAX_DEPTH:
        raise RowError("too_deep", f"lists or objects nested more than {_MAX_DEPTH} deep")
    items = chain.from_iterable(value.items()) if isinstance(value, dict) else value
    return any(_is_bad(item, depth + 1) for item in items)


def _is_bad_text(text: str) -> bool:
    """What searching BAD_TEXT would say, in a tenth of the time."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return "\x00" in text


def as_text(value: object) -> str | None:
    """One line of text for a person: stripped; None when there is nothing.

    Numbers are plain (123 and 123.0 both give "123"), a list is joined by commas, and an object stands for
    its name, as in {"id": 7, "name": "Shoes"}.
    """
    if isinstance(value, str):  # first, because most values are
        return value.strip() or None
    if isinstance(value, dict):
        name = next((value[key] for key in ("name", "title", "label", "value") if value.get(key)), None)
        value = json.dumps(as_json(value), ensure_ascii=False) if name is None else name
    if isinstance(value, (list, tuple)):
        return ", ".join(text for item in value if (text := as_text(item))) or None
    plain = as_json(value)
    if plain is None:
        return None
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e15:
        plain = int(plain)
    return str(plain).strip() or None


def as_json(value: object) -> Any:  # noqa: PLR0911 (one line for each kind of value)
    """The value as JSON has it: text, number, bool, list or object; NaN and infinities are None."""
    if isinstance(value, str):  # first, because most values are
        return value.strip()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _as_number(value)
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(item) for item in value]
    if isinstance(value, (dt.date, dt.time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _as_characters(bytes(value))
    return str(value)


def _as_number(value: Decimal) -> int | float | str | None:
    if not value.is_finite():
        return None
    if value == 0:
        return 0
    if abs(value.adjusted()) > _MAX_DIGITS:
        return str(value)
    if value == value.to_integral_value():
        return int(value)
    number = float(value)
    return number if Decimal(repr(number)) == value else str(value)


def _as_characters(data: bytes) -> str:
    # many writers of Parquet store text as bytes without saying that it is text
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()
    return base64.b64encode(data).decode() if BAD_TEXT.search(text) else text

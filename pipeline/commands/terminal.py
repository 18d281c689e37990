"""Writing for people and for programs: tables and JSON to standard output, talk to standard error."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.logs import is_json, json_line
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.text import Text

    from pipeline.errors import CatvecError

PIPE_WIDTH = 200
"""columns of a table that goes into a file or another program"""
COLUMN_GAP = 3
"""what rich puts between two columns"""
LONG_WIDTH = 40
"""characters in which a sentence or a URL can be read, in several lines"""


def say(text: str, *, level: str = "info", **fields: Any) -> None:
    """A line of talk, on standard error; with --log-format json an object that has these fields, too."""
    line = json_line(text, level=level, **fields) if is_json() else text
    # one write: lines of several threads must not end up in each other
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def say_error(error: CatvecError) -> None:
    """What went wrong and how to mend it: two lines, or one object."""
    if is_json():
        say(error.message, level="error", error=type(error).__name__, hint=error.hint)
        return
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def print_data(text: str) -> None:
    """A line of data, on standard output."""
    print(text, flush=True)  # noqa: T201 - this is the room for it


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output."""
    print_data(json.dumps(value, default=_plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Sequence[int] = (),
    spare: Sequence[int] = (),
    long: Sequence[int] = (),
) -> None:
    """A table on standard output; its first column is an id, there to be copied, and like numbers never cut.

    `right` numbers the columns of numbers, which stand to the right, `spare` those that a narrow terminal can do
    without, in the order of their leaving. Other columns go on in the next line; for those of `long` texts that is so
    natural that nothing leaves to give them more than 40 characters.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    cells = [[value if isinstance(value, Text) else Text(_shown(value)) for value in row] for row in rows]
    widths = [max(len(header), *(_width(row[place]) for row in cells), 0) for place, header in enumerate(headers)]
    wanted = [min(width, LONG_WIDTH) if place in long else width for place, width in enumerate(widths)]
    kept = list(range(len(headers)))
    for place in spare:
        if sum(wanted[shown] + COLUMN_GAP for shown in kept) > console.width:
            kept.remove(place)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place in kept:
        is_whole = place == 0 or place in right
        table.add_column(
            headers[place],
            justify="right" if place in right else "left",
            overflow="fold",
            no_wrap=is_whole,
            min_width=widths[place] if is_whole else None,
        )
    for row in cells:
        table.add_row(*(row[place] for place in kept))
    console.print(table)


def _width(cell: Text) -> int:
    return max(map(len, cell.plain.split("\n")))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def parse_filter(text: str) -> dict[str, Any]:
    """The JSON object of --filter. Raises ConfigError."""
    example = """write it like '{"category": "dress"}'"""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--filter {text!r} is not JSON: {error.msg.lower()}", hint=example) from error
    if not isinstance(value, dict):
        raise ConfigError(f"--filter {text!r} is no JSON object", hint=example)
    try:
        is_storable = b"\\u0000" not in json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:  # NaN, a number beyond every float, or a surrogate without its other half
        is_storable = False
    if not is_storable:
        raise ConfigError(
            f"--filter {text!r} holds what JSON in Postgres cannot: NaN, infinity, NUL or half a character"
        )
    return value

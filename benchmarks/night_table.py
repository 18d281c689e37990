"""What nights should have done beside what they did, as a table of plain text."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEADERS = ("night", "what happened", "witness", "should", "did", "ok")
HOLD = "\N{NO-BREAK SPACE}"
WIDTHS = (9, 34, 12, 56, 56, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """Where chance has a part: from `low` to `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low:,}–{self.high:,}" if self.low < self.high else f"{self.low:,}"


Expected = int | str | Between
Should = dict[str, Expected]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One witness of one night. `should` was written down first."""

    night: str
    what: str
    witness: str
    should: Mapping[str, Expected]
    did: Mapping[str, Any]

    @property
    def is_ok(self) -> bool:
        return all(_agrees(expected, self.did[name]) for name, expected in self.should.items())

    def as_json(self) -> dict[str, Any]:
        should = {name: value if isinstance(value, int) else str(value) for name, value in self.should.items()}
        return {
            "night": self.night,
            "what": self.what,
            "witness": self.witness,
            "should": should,
            "did": dict(self.did),
            "ok": self.is_ok,
        }


def table_lines(lines: Iterable[Line]) -> list[str]:
    """Aligned columns of wrapped text; a night is named once."""
    shown = [*_wrap(HEADERS), "-" * (sum(WIDTHS) + 2 * len(WIDTHS) - 2)]
    last = None
    for line in lines:
        night = (line.night, line.what)
        if last not in {None, night}:
            shown.append("")
        did = tell({name: line.did[name] for name in line.should})
        head = night if night != last else ("", "")
        shown += _wrap((*head, line.witness, tell(line.should), did, "yes" if line.is_ok else "NO"))
        last = night
    return shown


def _wrap(row: tuple[str, ...]) -> list[str]:
    cells = [textwrap.wrap(_hold_numbers(cell), width) for cell, width in zip(row, WIDTHS, strict=True)]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, WIDTHS, strict=True)).replace(HOLD, " ").rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    ]


def _hold_numbers(cell: str) -> str:
    """A number stays with the name before it."""
    return re.sub(r" (?=\d)", HOLD, cell)


def tell(facts: Mapping[str, Any]) -> str:
    """Such as: embedded 30, reused 0."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in facts.items()
    )


def _agrees(expected: Expected, found: Any) -> bool:
    if isinstance(expected, Between):
        return isinstance(found, int) and expected.low <= found <= expected.high
    return bool(expected == found)

"""A client's SQL as text: what it is, its placeholders, and how its ordering would be written well.

Only what no plan can tell is read from the text. A rewritten statement is a proposal: whoever makes one asks the
server for its plan before showing it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError

_KEYWORD = re.compile(
    r"\(*(?:select|with|table|values|explain|insert|update|delete|merge)\b(?=[^\w-])", re.IGNORECASE
)
_EXPLAIN = re.compile(r"explain\s*(?:\([^)]*\)|(?:analyze\b|verbose\b|\s)*)\s*", re.IGNORECASE)
# what is no code: strings, quoted names, dollar quotes, comments
_OPAQUE = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?P<dollar>\$(?:[A-Za-z_]\w*)?\$).*?(?P=dollar)|--[^\n]*|/\*.*?\*/",
    re.DOTALL,
)
_PLACEHOLDER = re.compile(r"%\((\w+)\)s|%s|(?<!\w)\$(\d+)")
_BOUND = re.compile(r"\b(limit|offset)(\s+)\$\d+(?:::\w+)?", re.IGNORECASE)
_DISTANCE = re.compile(
    r"((?:[A-Za-z_]\w*\.)?embedding)\s*(?:<=>|<->|<#>|<\+>|operator\([\w.\"]+<[=\-#+]>\))\s*", re.IGNORECASE
)
_CAST = re.compile(r"\s*::\s*[\w.\"]+(?:\(\d+\))?(?:\[\])?")
_WORDS = re.compile(r"\b(?:order\s+by|limit|offset|fetch|for)\b", re.IGNORECASE)
USUAL_LIMIT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement, its placeholders written as $1, $2, …; `bounds` are the LIMIT and OFFSET that were
    placeholders, and got a usual value: PostgreSQL plans such a query for its values.
    """

    text: str
    placeholders: int
    bounds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a statement orders by, in its own words."""

    embedding: str
    vector: str

    @property
    def is_column(self) -> bool:
        """Whether the vector comes from another table of the same FROM."""
        return bool(re.fullmatch(r"[A-Za-z_]\w*(?:\.\w+)?", _CAST.sub("", self.vector)))


def is_statement(text: str) -> bool:
    """Whether an argument is SQL; else it is the id of a product."""
    return bool(re.search(r"\s", text.strip()) or _KEYWORD.match(text.strip()))


def read_statement(text: str) -> Statement:
    """Raises ConfigError when there is nothing to explain."""
    body = text.strip().rstrip(";").strip()
    body = body[found.end() :] if (found := _EXPLAIN.match(body)) else body
    if not body:
        raise ConfigError("the statement is empty", hint='for example: catvec explain "SELECT …"')
    body, placeholders = _number(body)
    if not placeholders:
        return Statement(text=body, placeholders=0, bounds=())
    found_bounds = tuple(found[1].upper() for found in _BOUND.finditer(masked(body)))
    for found in reversed(list(_BOUND.finditer(masked(body)))):
        value = USUAL_LIMIT if found[1].lower() == "limit" else 0
        body = f"{body[: found.start()]}{found[1]}{found[2]}{value}{body[found.end() :]}"
    body, placeholders = _number(body)
    return Statement(text=body, placeholders=placeholders, bounds=found_bounds)


def _number(body: str) -> tuple[str, int]:
    """Every driver's placeholders as $1, $2, … without gaps, and how many there are."""
    numbers: dict[str, int] = {}
    code = masked(body)
    is_python = bool(re.search(r"%\(\w+\)s|%s", code))
    parts, end = [], 0
    for place, found in enumerate(_PLACEHOLDER.finditer(code)):
        name = found[1] or found[2] or str(place)
        parts += [body[end : found.start()], f"${numbers.setdefault(name, len(numbers) + 1)}"]
        end = found.end()
    text = "".join([*parts, body[end:]])
    # psycopg wants a percent sign doubled where there are placeholders
    return (text.replace("%%", "%") if is_python else text), len(numbers)


def masked(text: str) -> str:
    """The text with strings, quoted names and comments blotted out, every character in its place."""

    def blot(found: re.Match[str]) -> str:
        whole = found[0]
        is_comment = whole.startswith(("--", "/*"))
        return " " * len(whole) if is_comment else whole[0] + "x" * (len(whole) - 2) + whole[-1]

    return _OPAQUE.sub(blot, text)


def read_asked(text: str) -> Asked | None:
    """The first distance in a statement; None when there is none that can be copied."""
    code = masked(text)
    found = _DISTANCE.search(code)
    if found is None:
        return None
    end = _end_of_operand(code, found.end())
    vector = text[found.end() : end].strip()
    return Asked(embedding=found[1], vector=vector) if vector else None


def _end_of_operand(code: str, start: int) -> int:
    first = re.compile(r"'[^']*'|\$\d+|array\s*(?=\[)|[\w.\"]+|(?=\()", re.IGNORECASE).match(code, start)
    if first is None:
        return start
    end = first.end()
    if code[end : end + 1] in {"(", "["}:
        end = _closing(code, end) + 1
    while cast := _CAST.match(code, end):
        end = cast.end()
    return end


def _closing(code: str, start: int) -> int:
    """The place of the parenthesis or bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(code)):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(code[place], 0)
        if depth == 0:
            return place
    return len(code) - 1


def order_by_distance(text: str, asked: Asked, *, operator: str, cast: str) -> str:
    """The statement with `ORDER BY embedding <=> vector LIMIT …` as its only ordering."""
    code = masked(text)
    depth, words = 0, {}
    marks = {found.start(): found for found in _WORDS.finditer(code)}
    for place, character in enumerate(code):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and place in marks:
            words[marks[place][0].split()[0].lower()] = place
    tail = min([words[word] for word in ("limit", "offset", "fetch", "for") if word in words], default=len(text))
    head = words.get("order", tail)
    bound = text[tail:].strip() if {"limit", "fetch"} & words.keys() else f"LIMIT {USUAL_LIMIT}"
    vector = asked.vector if asked.vector.endswith(")") or not cast else f"{asked.vector}{cast}"
    return f"{text[:head].rstrip()} ORDER BY {asked.embedding} {operator} {vector} {bound}"

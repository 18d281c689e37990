"""Execution plans of PostgreSQL as records, and the distances that stand in their expressions.

`EXPLAIN (VERBOSE, FORMAT JSON)` gives expressions as deparsed SQL, in one spelling whatever the client wrote: with
all parentheses, all casts and views resolved to their tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATOR = re.compile(r"<=>|<->|<#>|<\+>|<~>|<%>")
FUNCTION = re.compile(r"\b(cosine_distance|l2_distance|l1_distance|inner_product|hamming_distance)\(")
_QUALIFIED = re.compile(r'OPERATOR\((?:\w+|"(?:[^"]|"")+")\.(<[=\-#+~%]>)\)')
_VECTOR = re.compile(r"'(\[[^\]']*\])'")
_OWN_CONDITION = re.compile(r"[\w.\"]*\bactive\b|\bAND\b|[()\s]")
_CASTS = re.compile(r'::(?:\w+|"[^"]+")(?:\.(?:\w+|"[^"]+"))?(?: precision| varying)?(?:\(\d+\))?(?:\[\])?')
_COLUMN = re.compile(r'(?<![\w.)])(?:\w+|"[^"]+")\.(?:\w+|"[^"]+")(?![\w(.])')
_CALL = re.compile(r"(\w+)\(")

CONDITIONS = ("Filter", "Join Filter", "Index Cond", "Hash Cond", "Merge Cond", "Recheck Cond", "One-Time Filter")
JOINS = {"Nested Loop", "Hash Join", "Merge Join"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """A distance in an expression: `left operator right`, or the function that makes it.

    `is_bare`: the expression is this distance and nothing around it, and not DESC.
    """

    operator: str | None
    function: str | None
    left: str
    right: str
    is_bare: bool
    is_descending: bool

    @property
    def vector(self) -> str:
        """The operand that is not the stored embedding."""
        return self.left if "embedding" in without_literals(self.right) else self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanNode:
    """One step of a plan. `role` is its place under its parent: Outer, Inner, InitPlan, SubPlan, …"""

    kind: str
    role: str
    name: str | None
    schema: str | None
    relation: str | None
    index: str | None
    function: str | None
    rows: float
    startup_cost: float
    total_cost: float
    sort_keys: tuple[str, ...]
    order_by: str | None
    conditions: dict[str, str]
    output: tuple[str, ...]
    children: tuple[PlanNode, ...]

    def walk(self) -> Iterator[PlanNode]:
        """This step and all below, also those of sub-selects."""
        yield self
        for child in self.children:
            yield from child.walk()

    def walk_main(self) -> Iterator[PlanNode]:
        """This step and those below that feed it; not the sub-selects, which only give it a value."""
        yield self
        for child in self.children:
            if child.role not in {"InitPlan", "SubPlan"}:
                yield from child.walk_main()

    def path_to(self, wanted: PlanNode) -> tuple[PlanNode, ...]:
        """The steps from this one to `wanted`, both included; none when it is not below."""
        if self is wanted:
            return (self,)
        for child in self.children:
            path = child.path_to(wanted)
            if path:
                return (self, *path)
        return ()

    @property
    def is_join(self) -> bool:
        return self.kind in JOINS

    @property
    def reads_all(self) -> bool:
        """Whether a table is read from end to end here."""
        by_index = self.kind in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
        return not by_index or not {"Index Cond", "Recheck Cond"} & self.conditions.keys()


def read_plan(document: Any) -> PlanNode:
    """The plan of `EXPLAIN (FORMAT JSON)`."""
    return _read_node(document[0]["Plan"])


def _read_node(node: dict[str, Any]) -> PlanNode:
    return PlanNode(
        kind=node["Node Type"],
        role=node.get("Parent Relationship", ""),
        name=node.get("Subplan Name") or node.get("CTE Name"),
        schema=node.get("Schema"),
        relation=node.get("Relation Name"),
        index=node.get("Index Name"),
        function=node.get("Function Name"),
        rows=node["Plan Rows"],
        startup_cost=node["Startup Cost"],
        total_cost=node["Total Cost"],
        sort_keys=tuple(_plain(key) for key in node.get("Sort Key", ())),
        order_by=_plain(node["Order By"]) if "Order By" in node else None,
        conditions={what: _plain(node[what]) for what in CONDITIONS if what in node},
        output=tuple(_plain(column) for column in node.get("Output", ())),
        children=tuple(_read_node(child) for child in node.get("Plans", ())),
    )


def _plain(expression: str) -> str:
    """Operators are named in full where their schema is not on the search path."""
    return _QUALIFIED.sub(r"\1", expression)


def read_distance(expression: str) -> Distance | None:
    """The first distance to a stored embedding in an expression, such as a sort key."""
    is_descending = bool(re.search(r" DESC(?: NULLS (?:FIRST|LAST))?$", expression))
    body = re.sub(r"(?: DESC)?(?: NULLS (?:FIRST|LAST))?$", "", expression)
    masked = without_literals(body)
    if "embedding" not in masked:
        return None
    found = OPERATOR.search(masked)
    if found is None:
        called = FUNCTION.search(masked)
        return called and _distance_of_call(body, called, is_descending=is_descending)
    start, end = _enclosing(masked, found.start())
    left, right = body[start : found.start()].strip(), body[found.end() : end].strip()
    return Distance(
        operator=found[0],
        function=None,
        left=left,
        right=right,
        is_bare=not is_descending and not masked[:start].strip("( ") and not masked[end:].strip(") "),
        is_descending=is_descending,
    )


def _distance_of_call(body: str, called: re.Match[str], *, is_descending: bool) -> Distance:
    left, _, right = body[called.end() : _enclosing(without_literals(body), called.end())[1]].partition(", ")
    return Distance(
        operator=None, function=called[1], left=left, right=right, is_bare=False, is_descending=is_descending
    )


def _enclosing(text: str, place: int) -> tuple[int, int]:
    """From where to where the innermost parentheses around a place reach."""
    depth, start = 0, place
    while start > 0 and depth >= 0:
        start -= 1
        depth += {")": 1, "(": -1}.get(text[start], 0)
    start = start + 1 if depth < 0 else 0
    depth, end = 0, place
    while end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth < 0:
            break
        end += 1
    return start, end


def without_literals(text: str) -> str:
    """The text with its string literals blotted out, every character in its place."""
    return re.sub(r"'(?:[^']|'')*'", lambda found: "'" + "x" * (len(found[0]) - 2) + "'", text)


def dimensions(operand: str) -> int | None:
    """How many numbers a vector literal has; None when the operand is none."""
    found = _VECTOR.search(operand)
    return found[1].count(",") + 1 if found else None


def columns(operand: str) -> list[str]:
    """The columns `table.column` that an operand reads; values of sub-selects are none."""
    bare = re.sub(r"\((?:InitPlan|SubPlan) \d+\)\.\w+", "", _CASTS.sub("", without_literals(operand)))
    return _COLUMN.findall(bare)


def calls(operand: str) -> list[str]:
    """The names of the functions that an operand calls."""
    return _CALL.findall(_CASTS.sub("", without_literals(operand)))


def is_own_condition(condition: str) -> bool:
    """Whether a condition says no more than the public view itself does."""
    return not _OWN_CONDITION.sub("", condition)


def shorten(text: str) -> str:
    """SQL or a plan with its long vectors cut to their first numbers."""
    return re.sub(r"'(\[[^\]',]*,[^\]',]*,)[^\]']{40,}\]'", r"'\1…]'", text)

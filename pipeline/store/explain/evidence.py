"""What is known about a query before it is judged, and the verdict: records, and what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.store.explain.plans import columns, is_own_condition, read_distance

if TYPE_CHECKING:
    from pipeline.store.explain.plans import Distance, PlanNode

GROUPING = {"Aggregate", "Group", "Unique", "WindowAgg"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """`key` is stable, and stands in docs/explain.md. No `cure`: nothing is wrong. `sql` is what to write instead;
    `is_checked`: the server was asked, and answers it from the index.
    """

    key: str
    why: str
    cure: str | None = None
    sql: str | None = None
    is_checked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorIndex:
    """An index for nearest neighbours; `operator` is the one it answers."""

    name: str
    oid: int
    is_valid: bool
    is_being_built: bool
    operator: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorTable:
    """The vectors of one model, as the catalog describes them to every role. `vectors` is an estimate, `asked` the
    operator that the functions order by.
    """

    model: str
    name: str
    oid: int
    dims: int
    storage: str
    asked: str
    is_active: bool
    vectors: int
    is_analyzed: bool
    indexes: tuple[VectorIndex, ...]

    @property
    def index(self) -> VectorIndex | None:
        """The valid one, else the one that was to be it."""
        return max(self.indexes, key=lambda index: (index.is_valid, index.operator == "<=>"), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One place where a plan compares vectors without the index; `order` is the step that sorts them, if any."""

    plan: PlanNode
    order: PlanNode | None
    scan: PlanNode
    distance: Distance
    is_first_key: bool

    @property
    def path(self) -> tuple[PlanNode, ...]:
        return self.plan.path_to(self.scan)

    @property
    def limit(self) -> PlanNode | None:
        """The LIMIT that ends the ordering."""
        above = self.plan.path_to(self.order or self.scan)
        return next((node for node in reversed(above) if node.kind == "Limit"), None)

    @property
    def compared(self) -> int:
        """About how many vectors are compared, by the planner's guess."""
        return int((self.order or self.scan).rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known about one reading.

    `can_use`: with every other way of reading forbidden, the index is used, so that only costs speak against it.
    `by_setting` names the settings without which it would be used. `volatile` and `barriers` are the functions and
    views of these kinds that the query calls and reads.
    """

    reading: Reading
    table: VectorTable
    can_use: bool
    by_setting: tuple[str, ...]
    volatile: tuple[str, ...]
    barriers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is found about a query.

    `verdict`: index (used) · exact (not used, and rightly so) · scan (not used, and it should be) · nothing (asks for
    no neighbours) · unknown (a function whose arguments are not given) · refused (PostgreSQL does not run it).
    `reasons` are why not; with verdict index, what to beware of.
    """

    verdict: str
    summary: str
    model: str | None = None
    index: str | None = None
    vectors: int | None = None
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    cost: float | None = None
    milliseconds: float | None = None
    rows: int | None = None
    plan: str | None = None

    @property
    def is_bad(self) -> bool:
        return self.verdict in {"scan", "refused"}


def filters(node: PlanNode) -> tuple[str, ...]:
    """The conditions below a step that the public views do not have themselves, and joins do not need."""
    found = [
        condition
        for step in node.walk_main()
        for condition in step.conditions.values()
        if not is_own_condition(condition) and not _is_join_condition(condition)
    ]
    return tuple(condition for condition in found if read_distance(condition) is None)


def _is_join_condition(condition: str) -> bool:
    return "'" not in condition and "$" not in condition and len(columns(condition)) == 2 * condition.count(" = ")


def offset_of(limit: PlanNode) -> int:
    """How many rows an OFFSET skips: what the step before the first row costs says it; 0 when there is none."""
    below = next((child for child in limit.children if child.role == "Outer"), None)
    run = below.total_cost - below.startup_cost if below else 0
    if below is None or run <= 0:
        return 0
    # the values of sub-selects are computed first
    values = sum(child.total_cost for child in limit.children if child.role == "InitPlan")
    rows = (limit.startup_cost - values - below.startup_cost) / run * below.rows
    # costs are rounded to a hundredth
    return round(rows) if rows > 0.02 / run * below.rows else 0

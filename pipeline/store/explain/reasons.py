"""Why a query does not use the vector index, and the cure: what is known, in the order in which it is looked for.

Pure judgement: `sql.py` gathers the evidence. docs/explain.md is the same table for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.store.explain.evidence import GROUPING, Reason, filters, offset_of
from pipeline.store.explain.plans import columns, read_distance, without_literals

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.explain.evidence import Evidence, Reading, VectorTable
    from pipeline.store.explain.plans import Distance

ANALYZE_CURE = "an owner of the tables runs: ANALYZE catvec_store.{table}, catvec_store.images, catvec_store.products"
FUNCTION = "catvec.search_by_vector"


def _function_sql(evidence: Evidence) -> str:
    vector = "'[…]'"
    model = "" if evidence.table.is_active else f", model => '{evidence.table.model}'"
    limit = evidence.reading.limit
    return (
        f"SELECT product_id, title, similarity FROM {FUNCTION}({vector}, {int(limit.rows) if limit else 10}{model})"
    )


def no_index(evidence: Evidence) -> Reason | None:
    return no_index_of(evidence.table)


def no_index_of(table: VectorTable) -> Reason | None:
    """Why a table has no index that could be used; None when it has one."""
    index = table.index
    if index is None:
        return Reason(key="no_index", why=f"model {table.model!r} has no index", cure="run: catvec index build")
    if index.is_valid:
        return None
    if index.is_being_built:
        return Reason(
            key="index_being_built",
            why=f"{index.name} is still being built",
            cure="wait for it; queries planned afterwards use it",
        )
    return Reason(
        key="invalid_index",
        why=f"{index.name} is not valid: its build broke off, so that it is written to but never read",
        cure="run: catvec index build",
    )


def binary_index(evidence: Evidence) -> Reason | None:
    if evidence.table.index is None or evidence.table.index.operator != "<~>":
        return None
    return Reason(
        key="binary_index",
        why=f"the index of model {evidence.table.model!r} is binary (one bit a dimension), which no ORDER BY on the "
        "view reads by itself",
        cure="call the functions, which read it and compare what they find by the embeddings",
        sql=_function_sql(evidence),
    )


def settings(evidence: Evidence) -> Reason | None:
    if not evidence.by_setting:
        return None
    names = [name.partition(" ")[0] for name in evidence.by_setting]
    return Reason(
        key="settings",
        why=f"the planner is told to: with {', '.join(evidence.by_setting)} it leaves the index alone",
        cure="; ".join(f"RESET {name}" for name in names)
        + " (or ALTER ROLE or DATABASE … RESET, where it was set for one of these)",
    )


def other_operator(evidence: Evidence) -> Reason | None:
    distance, index = evidence.reading.distance, evidence.table.index
    wanted = index.operator if index else "<=>"
    if distance.operator == wanted or (distance.operator is None and distance.function == "cosine_distance"):
        return None
    found = distance.operator or f"{distance.function}()"
    return Reason(
        key="other_operator",
        why=f"it orders by {found}, the index answers {wanted} only",
        cure=f"order by embedding {wanted} …: all vectors have length 1, so <->, <#> and <=> rank alike",
    )


def function_of_distance(evidence: Evidence) -> Reason | None:
    distance = evidence.reading.distance
    if distance.function is None:
        return None
    return Reason(
        key="distance_function",
        why=f"it calls {distance.function}(), an index answers operators only",
        cure="write embedding <=> …, which is the same number",
    )


def descending(evidence: Evidence) -> Reason | None:
    distance = evidence.reading.distance
    if evidence.reading.order is None or not distance.is_descending or _is_wrapped(distance, evidence.reading):
        return None
    return Reason(
        key="descending",
        why="ORDER BY … DESC on a distance asks for the farthest first, an index gives the nearest first",
        cure="leave out DESC",
    )


def expression(evidence: Evidence) -> Reason | None:
    reading = evidence.reading
    if reading.order is None or not _is_wrapped(reading.distance, reading):
        return None
    return Reason(
        key="expression",
        why="it orders by an expression around the distance (such as 1 - (a <=> b) DESC), and an index answers the "
        "bare distance only",
        cure="order by embedding <=> … ascending, and compute the similarity in the SELECT list",
    )


def _is_wrapped(distance: Distance, reading: Reading) -> bool:
    key = next((key for key in (reading.order.sort_keys if reading.order else ()) if read_distance(key)), "")
    body = key.removesuffix(" DESC")
    found = read_distance(body)
    return distance.function is None and found is not None and not found.is_bare


def cast(evidence: Evidence) -> Reason | None:
    """The embedding as another type than the index has."""
    distance = evidence.reading.distance
    own = distance.left if "embedding" in without_literals(distance.left) else distance.right
    if "::vector" not in own.replace("::vector(", ""):
        return None
    is_fp32 = evidence.table.storage == "vector"
    return Reason(
        key="cast",
        why="it compares the embedding as vector, the index is made of halfvec",
        cure="order by the column embedding, not by embedding_fp32" if is_fp32 else "leave the embedding as it is",
    )


def volatile_vector(evidence: Evidence) -> Reason | None:
    if not evidence.volatile:
        return None
    name = evidence.volatile[0]
    return Reason(
        key="volatile",
        why=f"{name}() is VOLATILE: it must be called for every row, and may say something else each time",
        cure=f"call it once, in a sub-select: embedding <=> (SELECT {name}(…)); or declare it STABLE",
    )


def cross_join(evidence: Evidence) -> Reason | None:
    distance = evidence.reading.distance
    if not (columns(distance.left) and columns(distance.right)):
        return None
    return Reason(
        key="cross_join",
        why="the query vector is a column of a table joined beside the vectors, and an index is searched with one "
        "vector at a time",
        cure="take the vector from a sub-select, or search for each one in a LATERAL",
        sql="SELECT q.product_id, near.product_id\n"
        "  FROM catvec.image_embeddings q\n"
        " CROSS JOIN LATERAL (\n"
        "   SELECT e.product_id FROM catvec.image_embeddings e ORDER BY e.embedding <=> q.embedding LIMIT 10) near\n"
        " WHERE q.product_id = '…'",
    )


def grouped(evidence: Evidence) -> Reason | None:
    reading = evidence.reading
    above = reading.path[reading.path.index(reading.limit) :] if reading.limit in reading.path else reading.path
    if not any(node.kind in GROUPING for node in above):
        return None
    return Reason(
        key="grouped",
        why="rows are grouped, made distinct or numbered before the LIMIT, so that every distance is needed",
        cure="call the function, which gives each product once; or group what an inner ORDER BY … LIMIT leaves",
        sql=_function_sql(evidence),
    )


def distance_filter(evidence: Evidence) -> Reason | None:
    reading = evidence.reading
    if reading.order is not None:
        return None
    conditions = [condition for node in reading.path for condition in node.conditions.values()]
    if not any(read_distance(condition) for condition in conditions):
        return None
    return Reason(
        key="distance_filter",
        why="WHERE distance < … by itself compares every vector: an index knows the nearest, not the near ones",
        cure="add ORDER BY embedding <=> … LIMIT; or call the function with min_similarity",
        sql=_function_sql(evidence).removesuffix(")") + ", min_similarity => 0.8)",
    )


def security_barrier(evidence: Evidence) -> Reason | None:
    if not evidence.barriers:
        return None
    return Reason(
        key="security_barrier",
        why=f"the view {evidence.barriers[0]} is a security_barrier: it is read whole before anything is ordered",
        cure=f"ALTER VIEW {evidence.barriers[0]} RESET (security_barrier); row level security on the tables "
        "keeps the index",
    )


def materialized(evidence: Evidence) -> Reason | None:
    plan, reading = evidence.reading.plan, evidence.reading
    apart = {"CTE Scan", "Subquery Scan", "Materialize", "Append"}
    if reading.order is not None or not any(node.kind in apart for node in plan.walk()):
        return None
    return Reason(
        key="materialized",
        why="the distances are computed in a WITH or sub-select of their own, and ordered when it is complete",
        cure="put ORDER BY embedding <=> … LIMIT into the WITH or sub-select itself",
    )


def no_order(evidence: Evidence) -> Reason | None:
    if evidence.reading.order is not None:
        return None
    return Reason(
        key="no_order",
        why="it computes the distance of every vector and asks for no nearest ones",
        cure="add ORDER BY embedding <=> … LIMIT",
    )


def not_first(evidence: Evidence) -> Reason | None:
    if evidence.reading.is_first_key:
        return None
    return Reason(
        key="not_first",
        why="it orders by something else first, and by the distance among equals only",
        cure="order by the distance first; filter by the rest, or sort what an inner ORDER BY … LIMIT leaves",
    )


def no_limit(evidence: Evidence) -> Reason | None:
    if evidence.reading.limit is not None:
        return None
    return Reason(
        key="no_limit",
        why="there is no LIMIT, so that every vector is in the result anyway",
        cure="add LIMIT: the index is for the nearest few",
    )


def no_statistics(evidence: Evidence) -> Reason | None:
    if evidence.table.is_analyzed:
        return None
    return Reason(
        key="no_statistics",
        why="the planner has no statistics of these tables, or old ones, and guesses",
        cure=ANALYZE_CURE.format(table=evidence.table.name),
    )


def large_limit(evidence: Evidence) -> Reason | None:
    limit = evidence.reading.limit
    if limit is None or filters(evidence.reading.order or limit):
        return None
    offset = offset_of(limit)
    if offset > limit.rows:
        return Reason(
            key="large_offset",
            why=f"OFFSET skips about {offset:,} rows, which an index must find first: PostgreSQL sorts all",
            cure="ask once for all that a user will page through (at most 1,000, by a function), and page in the app",
            sql=FUNCTION + "('[…]', 1000)",
        )
    return Reason(
        key="large_limit",
        why=f"LIMIT {int(limit.rows):,} is so much of {evidence.table.vectors:,} vectors that PostgreSQL thinks "
        "comparing all is cheaper",
        cure="ask for fewer; the index is for the nearest few",
    )


def costly_filter(evidence: Evidence) -> Reason | None:
    reading = evidence.reading
    if not filters(reading.order or reading.plan):
        return None
    return Reason(
        key="filter",
        why=f"PostgreSQL thinks that comparing the about {reading.compared:,} vectors which its conditions leave is "
        "cheaper than leaving out most of what the index finds",
        cure="hand the filter to the function, which tries both ways",
        sql=_function_sql(evidence).removesuffix(")") + ', filter => \'{"category": "…"}\')',
    )


STRUCTURAL: tuple[Callable[[Evidence], Reason | None], ...] = (
    no_index,
    binary_index,
    security_barrier,
    function_of_distance,
    other_operator,
    cast,
    cross_join,
    volatile_vector,
    distance_filter,
    grouped,
    expression,
    descending,
    materialized,
    no_order,
    not_first,
)
"""why the index cannot be used at all"""

COSTS: tuple[Callable[[Evidence], Reason | None], ...] = (
    settings,
    no_limit,
    no_statistics,
    costly_filter,
    large_limit,
)
"""why PostgreSQL thinks another way is cheaper"""


def find_reason(evidence: Evidence) -> Reason | None:
    """The first reason that applies; None when none of the known does."""
    rules = COSTS if evidence.can_use else (settings, *STRUCTURAL) if evidence.by_setting else STRUCTURAL
    return next((reason for rule in rules if (reason := rule(evidence))), None)

"""What catvec's own functions did when they were called: no plan shows the inside of a function.

The server counts the scans of each index and table within a transaction; the counts before and after a call say which
way the function went.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pipeline.records import EXACT_ROWS
from pipeline.store.connect import translated
from pipeline.store.explain import planner
from pipeline.store.explain.evidence import Explanation, Reason
from pipeline.store.explain.plans import calls
from pipeline.store.explain.reasons import no_index_of
from pipeline.store.models import choose_model
from pipeline.store.search import similar_products

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.store.connect import Connection
    from pipeline.store.explain.evidence import VectorTable
    from pipeline.store.explain.planner import Database, Ran
    from pipeline.store.explain.plans import PlanNode

FUNCTIONS = ("similar_products", "similar_products_batch", "search_by_vector", "search_by_array", "search_by_query")
"""of the public functions those that take milliseconds"""
OUTSIDE = {"pg_catalog", "information_schema"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function that a plan calls and shows nothing of. `is_quick`: one of catvec's, which may be run unasked.
    `is_filtered`: a condition stands around its rows.
    """

    name: str
    is_quick: bool
    is_filtered: bool


def find_call(plan: PlanNode) -> Call | None:
    """The first function of the plan that may look for neighbours."""
    for node in plan.walk():
        if node.function and node.schema not in OUTSIDE:
            is_own = node.schema == "catvec"
            return Call(
                name=f"{node.schema}.{node.function}",
                is_quick=is_own and node.function in FUNCTIONS,
                is_filtered=is_own and "Filter" in node.conditions,
            )
    listed = [name for node in plan.walk() for column in node.output for name in calls(column)]
    name = next((name for name in listed if name in FUNCTIONS), None)
    return Call(name=f"catvec.{name}", is_quick=True, is_filtered=False) if name else None


def judge_call(database: Database, call: Call, ran: Ran) -> Explanation:
    """Which way a function went, from what was read while it ran."""
    name = call.name
    beware = Reason(
        key="filter_outside",
        why="the WHERE around the function is applied to the rows it has found: fewer than k remain",
        cure='hand it to the function: filter => \'{"category": "…"}\', or min_similarity',
    )
    reasons = (beware,) if call.is_filtered else ()
    common: dict[str, Any] = {"milliseconds": ran.milliseconds, "rows": ran.rows}
    if ran.scans:
        index = max(ran.scans, key=lambda name: ran.scans[name])
        table = next(table for table in database.tables if index in {found.name for found in table.indexes})
        times = sum(ran.scans.values())
        summary = f"{name} uses the index {index} ({times} scan{'s' if times > 1 else ''} when run)"
        return Explanation(
            verdict="index",
            summary=summary,
            model=table.model,
            index=index,
            vectors=table.vectors,
            reasons=reasons,
            **common,
        )
    if not ran.compared:
        return Explanation(
            verdict="nothing", summary=f"{name} compared no vectors: there is none to look for", **common
        )
    return _judge_exact(database, name, ran, reasons)


def _judge_exact(database: Database, name: str, ran: Ran, reasons: tuple[Reason, ...]) -> Explanation:
    """A function that did not touch the index."""
    table = max(database.tables, key=lambda table: table.is_active)
    common: dict[str, Any] = {
        "model": table.model,
        "vectors": table.vectors,
        "milliseconds": ran.milliseconds,
        "rows": ran.rows,
    }
    compared = f"{name} read about {ran.compared:,} vector{'' if ran.compared == 1 else 's'} when run"
    missing = no_index_of(table) or _not_asked(table)
    if table.vectors > EXACT_ROWS and missing:
        return Explanation(
            verdict="scan", summary=f"does NOT use an index: {compared}", reasons=(missing, *reasons), **common
        )
    few = Reason(
        key="few",
        why="the table is small"
        if table.vectors <= EXACT_ROWS
        else "its filter leaves few, or leaves out what is near: it compares exactly on purpose",
    )
    return Explanation(
        verdict="exact",
        summary=f"does not use the index, and need not: {compared}",
        reasons=(few, *reasons),
        **common,
    )


def _not_asked(table: VectorTable) -> Reason | None:
    """Why no valid index of the table is one that a function can use; None when one is."""
    valid = [index for index in table.indexes if index.is_valid]
    if any(index.operator == table.asked for index in valid):
        return None
    others = ", ".join(f"{index.name} answers {index.operator}" for index in valid)
    return Reason(
        key="no_index",
        why=f"the functions order by {table.asked}, and model {table.model!r} has no index for that: {others}",
        cure="run: catvec index build",
    )


SIMILAR = Call(name="catvec.similar_products", is_quick=True, is_filtered=False)


def explain_product(
    connection: Connection, product_id: str, *, k: int, conditions: Mapping[str, Any], model: str | None
) -> Explanation:
    """Call catvec.similar_products as apps do, and see what it reads. Raises ConfigError, ModelError, StoreError."""
    with translated(), planner.looking(connection):
        chosen = choose_model(connection, model)
        database = planner.see_database(connection)
        tables = [table for table in database.tables if table.model == chosen.name]
        database = replace(database, tables=tuple(tables))

        def call() -> int:
            return len(similar_products(connection, product_id, k=k, conditions=conditions, model=model))

        call()  # the first call of a session compiles the functions
        with planner.counting(connection, tables) as count:
            began = time.perf_counter()
            rows = call()
            milliseconds = 1000 * (time.perf_counter() - began)
            scans, compared = count()
        ran = planner.Ran(milliseconds=milliseconds, rows=rows, scans=scans, compared=compared)
        images = connection.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE product_id = %s").format(
                sql.Identifier("catvec", f"image_embeddings_{chosen.name}")
            ),
            (product_id,),
        ).fetchone()
        return _judge_product(database, product_id, images[0] if images else 0, ran)


def _judge_product(database: Database, product_id: str, images: int, ran: Ran) -> Explanation:
    if not images:
        missing = Reason(
            key="no_vector",
            why="none of its images has a vector under this model",
            cure="see why: catvec failures; then: catvec run CATALOG",
        )
        return Explanation(
            verdict="nothing",
            summary=f"product {product_id!r} has nothing to compare: no rows",
            model=database.tables[0].model,
            reasons=(missing,),
            rows=ran.rows,
        )
    explanation = judge_call(database, SIMILAR, ran)
    note = f"product {product_id!r} has {images} image{'s' if images > 1 else ''} with a vector"
    return replace(explanation, notes=(note, *explanation.notes))

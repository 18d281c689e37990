"""Whether a query uses the vector index, and if not, why: for SQL as an app sends it, or for a product.

The judgement stands on the server's own plan and on experiments (the plan under other settings), not on the words
of the query. It needs a reader's rights only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg

from pipeline.errors import ConfigError
from pipeline.records import EXACT_ROWS
from pipeline.store.connect import translated
from pipeline.store.explain import planner
from pipeline.store.explain.calls import Call, find_call, judge_call
from pipeline.store.explain.evidence import Evidence, Explanation, Reading, Reason, filters, offset_of
from pipeline.store.explain.plans import calls, dimensions, read_distance
from pipeline.store.explain.reasons import find_reason
from pipeline.store.explain.refusals import find_refusal
from pipeline.store.explain.statement import Statement, order_by_distance, read_asked, read_statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.store.connect import Connection
    from pipeline.store.explain.evidence import VectorTable
    from pipeline.store.explain.planner import Database
    from pipeline.store.explain.plans import PlanNode

DEFAULT_EF_SEARCH = 40
REWRITABLE = {
    *("expression", "descending", "other_operator", "distance_function", "no_limit", "no_order"),
    *("volatile", "missing_cast", "search_path"),
}


def explain_sql(connection: Connection, text: str, *, analyze: bool = False) -> Explanation:
    """Explain one statement; `analyze` runs it. Raises ConfigError for what cannot be explained, or StoreError."""
    statement = read_statement(text)
    if analyze and statement.placeholders:
        raise ConfigError(
            "a statement with placeholders cannot be run", hint="write values in their place, or leave out --analyze"
        )
    with translated(), planner.looking(connection):
        database = planner.see_database(connection)
        try:
            return _explain(connection, database, statement, analyze=analyze)
        except psycopg.Error as error:
            if connection.closed or isinstance(error, psycopg.errors.QueryCanceled):
                raise
            refusal = find_refusal(error, database)
            refusal = _rewrite(connection, database, statement, refusal)
            return Explanation(
                verdict="refused",
                summary=f"is refused by PostgreSQL: {error.diag.message_primary}",
                reasons=(refusal,),
            )


def _explain(connection: Connection, database: Database, statement: Statement, *, analyze: bool) -> Explanation:
    plan = planner.plan(connection, statement)
    found = _judge(connection, database, statement, plan)
    call = find_call(plan) if found.verdict == "nothing" else None
    if call and not analyze and (statement.placeholders or not call.is_quick):
        found = _unknown(call, statement)
    elif call or analyze:
        ran = planner.run(connection, statement, database.tables)
        found = judge_call(database, call, ran) if call else found
        found = replace(found, milliseconds=ran.milliseconds, rows=ran.rows)
    if statement.bounds:
        note = f"explained with LIMIT 10, OFFSET 0 in place of the placeholders of {' and '.join(statement.bounds)}"
        found = replace(found, notes=(*found.notes, note))
    return replace(found, cost=plan.total_cost, plan=planner.plan_text(connection, statement))


def _unknown(call: Call, statement: Statement) -> Explanation:
    if call.is_quick:
        summary = f"calls {call.name}, which uses the index by itself"
    else:
        summary = f"calls {call.name}, and no plan shows what a function does"
    how = "give values in place of the placeholders" if statement.placeholders else "run it, with --analyze"
    return Explanation(verdict="unknown", summary=summary, notes=(f"to see what it reads, {how}",))


def find_reading(plan: PlanNode, database: Database) -> Reading | None:
    """The first place where a plan compares vectors without a vector index."""
    tables = {table.name for table in database.tables}
    for node in plan.walk():
        distances = [read_distance(key) for key in node.sort_keys]
        scans = [step for step in node.walk_main() if step.relation in tables]
        if any(distances) and scans and not any(step.index in database.index_names for step in scans):
            first = next(distance for distance in distances if distance)
            is_first_key = distances[0] is not None
            # the one that is read whole; another may look up the query's own vector
            scan = max(scans, key=lambda step: (step.reads_all, step.rows))
            return Reading(plan=plan, order=node, scan=scan, distance=first, is_first_key=is_first_key)
    if any(node.index in database.index_names for node in plan.walk()):
        return None
    for scan in plan.walk():
        if scan.relation in tables and scan.reads_all:
            path = plan.path_to(scan)
            texts = [text for step in path for text in (*step.conditions.values(), *step.output)]
            found = next((distance for text in texts if (distance := read_distance(text))), None)
            if found:
                return Reading(plan=plan, order=None, scan=scan, distance=found, is_first_key=True)
    return None


def _uses_index(plan: PlanNode, database: Database) -> bool:
    return find_reading(plan, database) is None and any(node.index in database.index_names for node in plan.walk())


def _judge(connection: Connection, database: Database, statement: Statement, plan: PlanNode) -> Explanation:
    wrong = _wrong_dimensions(plan, database)
    if wrong:
        return Explanation(verdict="refused", summary="is refused by PostgreSQL when it runs", reasons=(wrong,))
    reading = find_reading(plan, database)
    if reading:
        return _judge_reading(connection, database, statement, reading)
    scan = next((node for node in plan.walk() if node.index in database.index_names), None)
    if scan is None:
        return Explanation(verdict="nothing", summary="asks for no nearest neighbours: there is nothing to explain")
    table = _table_of(scan, database)
    return Explanation(
        verdict="index",
        summary=f"uses the index {scan.index}",
        model=table.model,
        index=scan.index,
        vectors=table.vectors,
        reasons=_beware(connection, plan, scan),
    )


def _table_of(scan: PlanNode, database: Database) -> VectorTable:
    return next(table for table in database.tables if table.name == scan.relation)


def _judge_reading(connection: Connection, database: Database, statement: Statement, reading: Reading) -> Explanation:
    table = _table_of(reading.scan, database)
    evidence = _gather(connection, database, statement, reading, table)
    reason = find_reason(evidence)
    if reason:
        reason = _rewrite(connection, database, statement, reason)
    name = table.index.name if table.index and table.index.is_valid else None
    which = f"the index {name}" if name else "an index"
    count = table.vectors if reading.scan.reads_all else reading.compared
    compared = f"{count:,} vector{'' if count == 1 else 's'}"
    how = f"reads all {compared}" if reading.scan.reads_all else f"compares about {compared}"
    common: dict[str, Any] = {"model": table.model, "index": name, "vectors": table.vectors}
    if table.vectors <= EXACT_ROWS:
        small = Reason(key="small", why=f"up to {EXACT_ROWS:,} vectors comparing all is as quick, and exact")
        # what only costs speak against will change by itself when the table grows
        later = (reason,) if reason and not evidence.can_use and reason.key != "no_index" else ()
        return Explanation(
            verdict="exact",
            summary=f"does not use {which}, and need not: {how}",
            reasons=(small, *later),
            notes=("in a larger table the second reason would matter",) if later else (),
            **common,
        )
    # without statistics the planner's few may be many
    is_few = table.is_analyzed and not reading.scan.reads_all and reading.compared <= EXACT_ROWS
    if is_few and filters(reading.order or reading.scan):
        few = Reason(key="few", why="its conditions leave so few that comparing these is right, and exact")
        return Explanation(
            verdict="exact", summary=f"does not use {which}, and need not: {how}", reasons=(few,), **common
        )
    unknown = Reason(key="unknown", why="no known reason applies", cure="look at the plan, and tell us")
    return Explanation(verdict="scan", summary=f"does NOT use {which}: {how}", reasons=(reason or unknown,), **common)


def _gather(
    connection: Connection, database: Database, statement: Statement, reading: Reading, table: VectorTable
) -> Evidence:
    def uses(settings: Mapping[str, str]) -> bool:
        return _uses_index(planner.plan(connection, statement, settings), database)

    guilty = planner.settings_off(connection)
    if guilty and not uses(dict.fromkeys(guilty, "on")):
        guilty = []
    for name in tuple(guilty):
        others = [other for other in guilty if other != name]
        if others and uses(dict.fromkeys(others, "on")):
            guilty = others
    _, ef_search = planner.index_settings(connection)
    by_setting = [f"{name} = off" for name in guilty]
    if not by_setting and ef_search > DEFAULT_EF_SEARCH and uses({"hnsw.ef_search": str(DEFAULT_EF_SEARCH)}):
        by_setting = [f"hnsw.ef_search = {ef_search}"]
    called = [*calls(reading.distance.left), *calls(reading.distance.right)]
    is_apart = any(node.kind == "Subquery Scan" for node in reading.plan.walk())
    return Evidence(
        reading=reading,
        table=table,
        can_use=uses(planner.INDEX_ONLY),
        by_setting=tuple(by_setting),
        volatile=planner.find_volatile(connection, called),
        barriers=planner.find_barriers(connection, statement.text) if is_apart else (),
    )


def _rewrite(connection: Connection, database: Database, statement: Statement, reason: Reason) -> Reason:
    """The reason with the statement as it should be, if that can be said; the server is asked for its plan."""
    asked = read_asked(statement.text)
    if asked is None or asked.is_column or reason.key not in REWRITABLE:
        return reason
    schema = "" if database.is_on_path else f"{database.vector_schema}."
    if reason.key == "volatile":
        asked = replace(asked, vector=f"(SELECT {asked.vector})")
    better = order_by_distance(
        statement.text,
        asked,
        operator=f"OPERATOR({schema}<=>)" if schema else "<=>",
        cast=f"::{schema}halfvec" if reason.key in {"missing_cast", "search_path"} else "",
    )
    rewritten = replace(statement, text=better)
    try:
        uses = _uses_index(planner.plan(connection, rewritten), database)
        # in a small table it will once that is large
        can_use = uses or _uses_index(planner.plan(connection, rewritten, planner.INDEX_ONLY), database)
    except psycopg.Error:
        return reason
    return replace(reason, sql=better, is_checked=uses) if can_use else reason


def _wrong_dimensions(plan: PlanNode, database: Database) -> Reason | None:
    for node in plan.walk():
        scans = [step for step in node.walk_main() if step.relation in {table.name for table in database.tables}]
        for text in (*node.sort_keys, *([node.order_by] if node.order_by else ())):
            distance = read_distance(text)
            found = dimensions(distance.vector) if distance else None
            if found and scans and found != (table := _table_of(scans[0], database)).dims:
                return Reason(
                    key="wrong_dimensions",
                    why=f"the query vector has {found} dimensions, model {table.model!r} has {table.dims}",
                    cure="encode the query with that model, or read the view of the other: "
                    "catvec.image_embeddings_<model>",
                )
    return None


def _beware(connection: Connection, plan: PlanNode, scan: PlanNode) -> tuple[Reason, ...]:
    """What makes a query that uses the index return fewer rows than its LIMIT."""
    iterative, ef_search = planner.index_settings(connection)
    limit = next((node for node in reversed(plan.path_to(scan)) if node.kind == "Limit"), None)
    if iterative != "off" or limit is None:
        return ()
    found = []
    conditions = filters(limit)
    cure = "hand the filter to the function: catvec.search_by_vector(…, filter => …)"
    inside = "or, inside a transaction: SET LOCAL hnsw.iterative_scan = strict_order"
    if conditions:
        found.append(
            Reason(
                key="few_rows",
                why=f"the index gives {ef_search} candidates (hnsw.ef_search) and stops, the conditions are applied "
                "to these: fewer rows than the LIMIT may come, without a word",
                cure=f"{cure}; {inside}",
            )
        )
    wanted, offset = int(limit.rows), offset_of(limit)
    if wanted + offset > ef_search:
        asked = f"LIMIT {wanted:,} after OFFSET {offset:,}" if offset else f"LIMIT {wanted:,}"
        found.append(
            Reason(
                key="ef_search",
                why=f"{asked} is more than the {ef_search} candidates (hnsw.ef_search) that the index gives",
                cure=f"call the function, which gives up to 1,000; {inside}",
            )
        )
    return tuple(found)

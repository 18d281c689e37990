"""catvec explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import Conditions, Count, Database, Home, Json, ModelName, open_database
from pipeline.commands.terminal import parse_filter, print_data, print_json
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.store.explain.evidence import Explanation, Reason

Asked = Annotated[str, typer.Argument(metavar="SQL|PRODUCT_ID", help="a query as an app sends it, or a product")]
IsSql = Annotated[
    bool | None,
    typer.Option("--sql/--product", help="what the argument is; else seen from its first word and spaces"),
]
Analyze = Annotated[bool, typer.Option("--analyze", help="really run the query, read-only and for at most 60 s")]
FailOnScan = Annotated[
    bool, typer.Option("--fail-on-scan", help="exit with 1 when the index should be used and is not")
]


def explain(
    query: Asked,
    is_sql: IsSql = None,
    analyze: Analyze = False,
    fail_on_scan: FailOnScan = False,
    k: Count = 10,
    filter: Conditions = "{}",  # noqa: A002 - the option's name
    model: ModelName = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Show whether a query uses the vector index and, if not, why and the cure. -k, --filter: for a product."""
    from pipeline.explain import explain_query

    if not query.strip():
        raise ConfigError("the query is empty", hint='for example: catvec explain "SELECT …", or a product id')
    with open_database(db, home) as url:
        found = explain_query(
            url, query, is_sql=is_sql, analyze=analyze, k=k, conditions=parse_filter(filter), model=model
        )
    if json:
        print_json(found)
    else:
        _print(found)
    if fail_on_scan and found.is_bad:
        raise typer.Exit(1)


def _print(found: Explanation) -> None:
    print_data(found.summary)
    for reason in found.reasons:
        _print_reason(reason, "but: " if found.verdict == "index" else "why: ")
    for note in found.notes:
        print_data(f"note: {note}")
    print_data(_costs(found))
    if found.plan:
        print_data("plan:\n" + _indented(found.plan))


def _print_reason(reason: Reason, word: str) -> None:
    from pipeline.store.explain.plans import shorten

    print_data(f"{word} {reason.why}")
    if reason.cure:
        print_data(f"cure: {reason.cure}")
    if reason.sql:
        print_data(_indented(shorten(reason.sql)))
        if reason.is_checked:
            print_data("      (checked: this uses the index)")


def _costs(found: Explanation) -> str:
    if found.milliseconds is not None:
        return f"time: {found.milliseconds:,.1f} ms measured; rows: {found.rows or 0:,}"
    return f"cost: {found.cost or 0:,.0f} estimated, not run"


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())

"""What `catvec explain` does: a query or a product becomes a verdict about the vector index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.store.explain.evidence import Explanation


def explain_query(
    url: str,
    query: str,
    *,
    is_sql: bool | None,
    analyze: bool,
    k: int,
    conditions: Mapping[str, Any],
    model: str | None,
) -> Explanation:
    """Explain SQL, or what `k`, `conditions` and `model` ask about a product; None for `is_sql` sees which it is.

    Raises CatvecError.
    """
    from pipeline.store.connect import require_vector, translated
    from pipeline.store.explain.calls import explain_product
    from pipeline.store.explain.sql import explain_sql
    from pipeline.store.explain.statement import is_statement
    from pipeline.store.health import connect_to_read
    from pipeline.store.migrate import require_current

    if "\0" in query or any("\ud800" <= character <= "\udfff" for character in query):
        # a byte of the command line that is no UTF-8 arrives as half a character
        raise ConfigError("the query holds a NUL or bytes that are no UTF-8, which PostgreSQL does not take")
    # as an app has it: with the search path and the settings of its role
    with connect_to_read(url) as connection, translated():
        require_vector(connection)
        require_current(connection)
        if is_statement(query) if is_sql is None else is_sql:
            return explain_sql(connection, query, analyze=analyze)
        return explain_product(connection, query, k=k, conditions=conditions, model=model)

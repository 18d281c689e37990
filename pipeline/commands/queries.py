"""catvec embed-text and catvec queries: searching by words for apps that speak SQL only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import (
    Conditions,
    Count,
    Database,
    Device,
    Home,
    Json,
    ModelName,
    Precision,
    Weights,
    open_database,
    place_of,
)
from pipeline.commands.terminal import parse_filter, print_data, print_json, print_table, say
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.queries import AddedQuery, QueryList
    from pipeline.store.models import StoredModel

queries_app = typer.Typer(help="Stored texts, which plain SQL searches by.")

QueryName = Annotated[str, typer.Argument(help="what SQL calls the text")]


def embed_text(
    text: Annotated[str, typer.Argument(help="what to encode, in words")],
    sql: Annotated[bool, typer.Option("--sql", help="print a statement for psql that searches with it")] = False,
    k: Count = 10,
    filter: Conditions = "{}",  # noqa: A002 - the option's name
    model: ModelName = None,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Print the vector of a text as pgvector reads it, or with --sql a statement that searches with it."""
    from pipeline.queries import embed_text as embed
    from pipeline.search import Query

    if sql and json:
        raise ConfigError("--sql and --json contradict each other", hint="leave one of them out")
    conditions = parse_filter(filter)
    if conditions and not sql:
        raise ConfigError("--filter is a part of the statement that --sql prints", hint="add --sql, or leave it out")
    query = Query(k=k, conditions=conditions, model=model, weights=weights, device=device, precision=precision)
    with open_database(db, home) as url:
        found = embed(url, text, query)
    _say_cut(found.tokens_kept, found.model)
    if json:
        vector = [float(value) for value in found.literal.strip("[]").split(",")]
        print_json({"model": found.model, "dims": len(vector), "text": text, "vector": vector})
    else:
        print_data(found.statement if sql else found.literal)


def _say_cut(tokens_kept: int | None, model: str) -> None:
    if tokens_kept is not None:
        say(f"the text is longer than model {model} reads: only its first {tokens_kept} tokens count")


@queries_app.callback(invoke_without_command=True)
def queries(context: typer.Context, json: Json = False, db: Database = None, home: Home = None) -> None:
    """List the stored texts."""
    if context.invoked_subcommand is None:
        list_queries(json=json, db=db, home=home)


@queries_app.command("list")
def list_queries(json: Json = False, db: Database = None, home: Home = None) -> None:
    """List the stored texts, and the models that have encoded them."""
    from pipeline.queries import list_queries as read_queries

    with open_database(db, home) as url:
        found = read_queries(url)
    if json:
        active = found.active.name if found.active else None
        print_json({"active_model": active, "queries": found.queries, "missing": found.missing})
    elif not found.queries:
        say('no stored text yet; begin with: catvec queries add NAME "TEXT"')
    else:
        _print_queries(found, place_of(db, home))


def _print_queries(found: QueryList, place: str) -> None:
    rows = [
        (
            query.name,
            query.text[:80],
            ", ".join(query.models) or None,
            found.active and query.name not in found.missing,
        )
        for query in found.queries
    ]
    print_table(("query", "text", "encoded by", "ready for apps"), rows)
    if found.missing and found.active:
        say(f"{len(found.missing):,} of {len(rows):,} cannot be asked: {_why_missing(found.active, place)}")


def _why_missing(active: StoredModel, place: str) -> str:
    if not active.has_text:
        return f"the active model {active.name} has no text side"
    return f"no vector under the active model {active.name}; next: catvec queries refresh{place}"


@queries_app.command()
def add(
    name: QueryName,
    text: Annotated[str, typer.Argument(help="what to look for, in words")],
    replace: Annotated[
        bool, typer.Option("--replace", help="let the name stand for another text from now on")
    ] = False,
    model: ModelName = None,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    db: Database = None,
    home: Home = None,
) -> None:
    """Store a text and its vector under a name, for: SELECT * FROM catvec.search_by_query('NAME', 20)."""
    from pipeline.queries import add_query
    from pipeline.search import EncoderChoice

    choice = EncoderChoice(model=model, weights=weights, device=device, precision=precision)
    with open_database(db, home) as url:
        added = add_query(url, name, text, choice, replace=replace)
    _say_added(name, added, place_of(db, home))


def _say_added(name: str, added: AddedQuery, place: str) -> None:
    _say_cut(added.tokens_kept, added.model)
    what = "is stored, with its vector" if added.was_encoded else "was stored already, with its vector"
    say(f"query {name!r} {what} under model {added.model}")
    for other in added.lacking:
        say(f"model {other} has no vector of it yet: catvec queries refresh --model {other}{place}")
    say(f"next, in SQL: {added.statement}")


@queries_app.command()
def remove(name: QueryName, db: Database = None, home: Home = None) -> None:
    """Forget a stored text and its vectors."""
    from pipeline.queries import remove_query

    with open_database(db, home) as url:
        remove_query(url, name)
    say(f"query {name!r} is removed; apps that ask for it get an error from now on")


@queries_app.command()
def refresh(
    model: ModelName = None,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    db: Database = None,
    home: Home = None,
) -> None:
    """Encode stored texts that lack a vector; runs do it too."""
    from pipeline.queries import refresh_queries
    from pipeline.search import EncoderChoice

    choice = EncoderChoice(model=model, weights=weights, device=device, precision=precision)
    with open_database(db, home) as url:
        model_name, encoded = refresh_queries(url, choice)
    done = f"{encoded:,} {'text' if encoded == 1 else 'texts'} encoded" if encoded else "nothing to do"
    say(f"{done}: every stored text has its vector under model {model_name}")

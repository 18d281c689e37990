"""catvec models: list them, switch between them, drop them."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import Database, Home, Json, Wait, Yes, open_database, place_of
from pipeline.commands.terminal import print_json, print_table, say
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store.models import StoredModel
    from pipeline.switch import Switch, Vectors

models_app = typer.Typer(help="Models in the database: list them, switch between them.", no_args_is_help=False)

Name = Annotated[str, typer.Argument(help="name of the model in the database")]


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json: Json = False, db: Database = None, home: Home = None) -> None:
    """List the models in the database."""
    from pipeline.status import read_models

    if context.invoked_subcommand is not None:
        return
    with open_database(db, home) as url:
        found = read_models(url)
    if json:
        print_json({"models": found})
    elif not found:
        say("no model yet; begin with: catvec run CATALOG")
    else:
        _print_models(found)


def _print_models(found: Sequence[StoredModel]) -> None:
    rows = [
        (
            *(model.name, model.state, model.activated_at if model.is_active else model.retired_at),
            *(model.dims, model.storage, model.has_text, model.source, model.revision[:19]),
        )
        for model in found
    ]
    headers = ("model", "state", "since", "dims", "storage", "text", "source", "revision")
    print_table(headers, rows, right=(3,), spare=(7, 5))


@models_app.command()
def activate(name: Name, wait: Wait = 60.0, db: Database = None, home: Home = None) -> None:
    """Let apps read another model from now on; they need not stop for it."""
    from pipeline.switch import activate

    with open_database(db, home) as url:
        switch = activate(url, name, wait_s=wait)
    for line in switch_lines(switch, place=place_of(db, home)):
        say(line)


@models_app.command()
def rollback(wait: Wait = 60.0, db: Database = None, home: Home = None) -> None:
    """Let apps read the model again that they read before."""
    from pipeline.switch import roll_back

    with open_database(db, home) as url:
        switch = roll_back(url, wait_s=wait)
    for line in switch_lines(switch, place=place_of(db, home)):
        say(line)


@models_app.command()
def drop(
    name: Name,
    yes: Yes = False,
    wait: Wait = 60.0,
    db: Database = None,
    home: Home = None,
) -> None:
    """Take a model's vectors away. Its name stays, and apps that ask for it are told."""
    from pipeline.switch import drop

    with open_database(db, home) as url:
        gone = drop(url, name, wait_s=wait, is_sure=partial(_is_sure, is_told=yes))
    if gone is None:
        say("nothing was dropped")
        raise typer.Exit(1)
    say(f"model {name} is retired: {_size(gone)} are gone; a run with it begins anew")


def _is_sure(vectors: Vectors, *, is_told: bool) -> bool:
    name = vectors.model.name
    if is_told:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            f"dropping model {name!r} takes {_size(vectors)} away, and there is no terminal to ask on",
            hint=f"say so beforehand: catvec models drop {name} --yes",
        )
    return typer.confirm(f"take {_size(vectors)} of model {name} away for good?", err=True)


def _size(vectors: Vectors) -> str:
    return f"{vectors.vectors:,} vectors ({vectors.size_bytes / 2**20:,.1f} MB with index)"


def switch_lines(switch: Switch, *, place: str) -> Iterator[str]:
    """What a switch did and what apps will miss, in words; the last line says how to go back."""
    entered, left = switch.entered, switch.left
    name = entered.model.name
    yield f"model {name} is active: apps read its {entered.images:,} images ({entered.model.dims} dimensions)"
    if not entered.has_index:
        yield f"warning: it has no index, so searches are exact and slow; run: catvec index build {name}{place}"
    if entered.missing_queries and entered.model.has_text:
        refresh = f"catvec queries refresh --model {name}{place}"
        yield f"warning: {entered.missing_queries:,} stored queries have no vector under it; run: {refresh}"
    elif entered.missing_queries:
        yield f"warning: it has no text side, so {entered.missing_queries:,} stored queries find nothing"
    if left is None:
        return
    if entered.images < left.images:
        fewer = f"{left.images - entered.images:,} fewer than the {left.images:,} of {left.model.name}"
        yield f"warning: these are {fewer}; a run with it may not be complete"
    if left.has_neighbours and not entered.has_neighbours:
        build = f"catvec neighbours build --model {name}{place}"
        yield f"warning: catvec.neighbours is empty under it; run: {build}"
    if untagged := [attribute for attribute in left.tagged if attribute not in entered.tagged]:
        yield (
            f"warning: catvec.product_tags has no {', '.join(untagged)} under it; run with the labels or the head of "
            f"each: catvec tag LABELS --model {name}{place}"
        )
    yield f"before, apps read model {left.model.name}; to go back: catvec models rollback{place}"

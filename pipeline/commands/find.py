"""catvec search and catvec similar."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotations
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
    path,
)
from pipeline.commands.terminal import parse_filter, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.records import Hit


def search(
    text: Annotated[str | None, typer.Argument(help="what to look for, in words")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", parser=path, help="a picture to look for instead of words")
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option("--like", metavar="PRODUCT_ID", help="a product to be like; may be given several times"),
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option("--minus", metavar="TEXT", help="words to lead away from; several times")
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(
            "--weight",
            help="how much each counts, in this order: words or picture, each --like, each --minus; else 1 each",
        ),
    ] = None,
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
    """Find products by words, by a picture, by products that they are like, or by all of these together."""
    from pipeline.search import Query, Wanted
    from pipeline.search import search as find

    wanted = Wanted(
        text=text, image=image, like=tuple(like or ()), minus=tuple(minus or ()), weights=tuple(weight or ())
    )
    query = Query(
        k=k, conditions=parse_filter(filter), model=model, weights=weights, device=device, precision=precision
    )
    with open_database(db, home) as url:
        hits = find(url, wanted, query)
    show_hits(hits, wanted.name, as_json=json)


def similar(
    product_id: Annotated[str, typer.Argument(help="the product whose like is wanted")],
    k: Count = 10,
    filter: Conditions = "{}",  # noqa: A002 - the option's name
    model: ModelName = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Find the products that look most like one product."""
    from pipeline.search import Query
    from pipeline.search import similar as find_similar

    with open_database(db, home) as url:
        hits = find_similar(url, product_id, Query(k=k, conditions=parse_filter(filter), model=model))
    show_hits(hits, product_id, as_json=json)


def show_hits(hits: Sequence[Hit], query: str, *, as_json: bool) -> None:
    """The hits as a table, or as one JSON object."""
    if as_json:
        print_json({"query": query, "hits": [asdict(hit) for hit in hits]})
    elif not hits:
        say("nothing found: the product has no vector under this model or has left, or the filter leaves none")
    else:
        headers = ("product", "similarity", "title", "category", "brand", "price", "image")
        rows = [
            (hit.product_id, hit.similarity, hit.title, hit.category, hit.brand, hit.price, hit.image[:120])
            for hit in hits
        ]
        print_table(headers, rows, right=(1, 5), spare=(6, 4, 3, 5))

"""catvec neighbours."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.commands.options import Database, Home, Json, ModelName, open_database
from pipeline.commands.terminal import print_json, say

neighbours_app = typer.Typer(help="Neighbours found beforehand, for apps that want one lookup.", no_args_is_help=True)


@neighbours_app.command()
def build(
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, max=1000, help="neighbours of each product; else as last time, 20 at first"),
    ] = None,
    model: ModelName = None,
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Bring the view catvec.neighbours up to date; only what may have changed is found again."""
    from tqdm import tqdm

    from pipeline.neighbours import refresh_neighbours

    with (
        open_database(db, home) as url,
        tqdm(unit=" products", dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty()) as bar,
    ):

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        refresh = refresh_neighbours(url, model=model, k=k, report=report)
    if json:
        print_json(refresh)
    say(
        f"{refresh.products:,} products have neighbours; found anew for {refresh.found:,}, "
        f"removed with {refresh.removed:,} that left; read them in the view catvec.neighbours"
    )

"""catvec neighbours."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import Database, Home, Json, ModelName, open_database
from pipeline.commands.terminal import print_json, say
from pipeline.progress import Progress

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
    from pipeline.neighbours import refresh_neighbours

    progress = Progress(phase="finding neighbours")
    report = partial(progress.step, unit="products")
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        refresh = refresh_neighbours(url, model=model, k=k, report=report)
    if json:
        print_json(refresh)
    say(
        f"{refresh.products:,} products have neighbours; found anew for {refresh.found:,}, "
        f"removed with {refresh.removed:,} that left; read them in the view catvec.neighbours"
    )

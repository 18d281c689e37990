"""catvec demo: the whole way of a catalog, without network, weights or a database of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.find import show_hits
from pipeline.commands.options import Database, Home, home_of, open_database
from pipeline.commands.run import run_catalog
from pipeline.commands.terminal import say
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings

SHOWN = ("demo-0001", "demo-0011")
"""products whose neighbours are printed"""

Folder = Annotated[Path, typer.Option("--folder", help="where the drawn catalog and the model are put")]
Products = Annotated[int, typer.Option("--products", min=20, max=100_000, help="products to draw")]


def demo(
    folder: Folder = Path("catvec-demo"), products: Products = 300, db: Database = None, home: Home = None
) -> None:
    """Draw a catalog of products, run the pipeline on it, and show similar products.

    It has a PostgreSQL of its own, beside the one of other commands, unless --db or --home is given.
    """
    from pipeline.demo.catalog import write_demo_catalog
    from pipeline.models.demo import write_demo_model
    from pipeline.search import Query, similar

    home = home or home_of(None) / "demo"
    say(f"drawing {products:,} products, and 6 broken entries, into {folder} …")
    catalog = write_demo_catalog(folder, products=products)
    say("making a small model of random weights: untrained, it knows colours and outlines, and no words …")
    model = write_demo_model(folder / "model")
    settings = RunSettings(
        catalog=CatalogSettings(uri=str(catalog)),
        model=ModelSettings(model=str(model), model_name="demo"),
        max_remove_rate=1.0,  # the catalog is ours to redraw
    )
    _, exit_code = run_catalog(settings, db=db, home=home)
    if exit_code:
        raise typer.Exit(exit_code)
    where = f"--db {db}" if db else f"--home {shlex.quote(str(home))}"
    with open_database(db, home) as url:
        for product_id in SHOWN:
            say(f"\ncatvec similar {product_id} -k 5 {where}")
            show_hits(similar(url, product_id, Query(k=5)), product_id, as_json=False)
    say(f"the 6 broken entries:     catvec failures {where}")
    say(f"the same in SQL:          catvec db psql {where} -c \"SELECT * FROM catvec.similar_products('demo-0001')\"")
    say("your own catalog:         catvec run CATALOG")

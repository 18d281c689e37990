"""catvec demo: the whole way of a catalog, without network, weights or a database of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.find import show_hits
from pipeline.commands.options import home_of, open_database, path, place_of
from pipeline.commands.run import Limits, run_catalog
from pipeline.commands.terminal import say
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings

SHOWN = ("demo-0001", "demo-0011")
"""products whose neighbours are printed"""
TEXT = "navy striped t-shirt"
"""what is searched for; among few products the hits have two of the three words"""
NAME = "demo"
"""of the catalog and of the model: beside a shop's own they take nothing away"""

Folder = Annotated[Path, typer.Option("--folder", parser=path, help="where the drawn catalog is put")]
Products = Annotated[int, typer.Option("--products", min=20, max=100_000, help="products to draw")]
# without the environment variables of the other commands: what is drawn goes to a shop's data only when asked
DemoDatabase = Annotated[
    str | None, typer.Option("--db", metavar="URL", help="database for the demo; else a PostgreSQL of its own")
]
DemoHome = Annotated[
    Path | None,
    typer.Option("--home", parser=path, help="folder of that PostgreSQL; else demo in the folder of catvec's own"),
]


def demo(
    folder: Folder = Path("catvec-demo"), products: Products = 300, db: DemoDatabase = None, home: DemoHome = None
) -> None:
    """Draw a catalog of products, run the pipeline on it, and find products by words and by likeness.

    Nothing of a shop is touched: the demo has a PostgreSQL of its own.
    """
    from pipeline.demo import MODEL
    from pipeline.demo.catalog import write_demo_catalog
    from pipeline.search import Query, Wanted, search, similar

    home = home or home_of(None) / "demo"
    say(f"drawing {products:,} products, and 6 broken entries, into {folder} …")
    catalog = write_demo_catalog(folder, products=products)
    say("its model was trained on other such drawings: it knows their kinds, colours and patterns, and nothing else")
    settings = RunSettings(
        catalog=CatalogSettings(uri=str(catalog)),
        model=ModelSettings(model=str(MODEL), model_name=NAME),
        catalog_name=NAME,
        max_remove_rate=1.0,  # the catalog is ours to redraw
    )
    outcome = run_catalog(settings, Limits(tolerated=1.0), db=db, home=home)
    if outcome.breaker is not None:
        raise outcome.breaker
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    place = place_of(db, home)
    # in a database of somebody's own another model is, or will be, the active one
    option, argument = (f" --model {NAME}", f", model => '{NAME}'") if db else ("", "")
    query = Query(k=5, model=NAME)
    with open_database(db, home) as url:
        say(f'\nby words: catvec search "{TEXT}" -k 5{option}{place}')
        show_hits(search(url, Wanted(text=TEXT), query), TEXT, as_json=False)
        for product_id in SHOWN:
            say(f"\nlike the {_title(catalog, product_id)}: catvec similar {product_id} -k 5{option}{place}")
            show_hits(similar(url, product_id, query), product_id, as_json=False)
    say(f"the 6 broken entries:     catvec failures{place}")
    statement = f"SELECT * FROM catvec.similar_products('{SHOWN[0]}'{argument})"
    say(f'the same in SQL:          catvec db psql{place} -c "{statement}"')
    say("your own catalog:         catvec run CATALOG")


def _title(catalog: Path, product_id: str) -> str | None:
    from pipeline.catalog import read_catalog
    from pipeline.records import Product

    rows = read_catalog(CatalogSettings(uri=str(catalog)))
    return next((row.title for row in rows if isinstance(row, Product) and row.product_id == product_id), None)

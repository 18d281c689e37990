"""catvec demo: the whole way of a catalog, without network, weights or a database of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.find import show_hits
from pipeline.commands.options import home_of, open_database, path, place_of
from pipeline.commands.run import Limits, run_catalog
from pipeline.commands.terminal import print_table, say
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.demo.tour import Tour

NAME = "demo"
"""of the catalog and of the model: beside a shop's own they take nothing away"""
FREQUENT = 6
"""labels of an attribute that are printed; the page has all"""

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
    """Draw a catalog of products, run the pipeline on it, find products by words and by likeness, and tag them.

    Nothing of a shop is touched: the demo has a PostgreSQL of its own.
    """
    from pipeline.demo import MODEL
    from pipeline.demo.catalog import write_demo_catalog

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
    with open_database(db, home) as url:
        page = _show(url, catalog, f"{option}{place}")
    statement = f"SELECT * FROM catvec.similar_products('demo-0001'{argument})"
    say(f"\nall this in pictures:     {page}")
    say(f"the 6 broken entries:     catvec failures{place}")
    say(f'the same in SQL:          catvec db psql{place} -c "{statement}"')
    say("your own catalog:         catvec run CATALOG")


def _show(url: str, catalog: Path, options: str) -> Path:
    """Print what there is to be found, and write it as a page."""
    from pipeline.demo.page import write_demo_page
    from pipeline.demo.tour import walk, write_labels

    labels = write_labels(catalog.parent)
    tour = walk(url, catalog, labels, model=NAME, options=options)
    for found in tour.found:
        say(f"\n{found.name}: {found.command}")
        show_hits(found.hits, found.text, as_json=False)
    say(f"\ntags, and how many are what the catalog says: {tour.tag_command}")
    print_table(("attribute", "right", "most frequent labels"), _tag_rows(tour), spare=(2,))
    return write_demo_page(catalog, tour)


def _tag_rows(tour: Tour) -> Iterator[tuple[str, str, str]]:
    for tagged in tour.tagging.attributes:
        frequent = [f"{label} {products:,}" for label, products in tagged.products_by_label.items()]
        right = tour.say_right(tagged.attribute)
        yield tagged.attribute, right, ", ".join(frequent[:FREQUENT]) + (", …" if len(frequent) > FREQUENT else "")

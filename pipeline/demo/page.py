"""The page of `catvec demo`: what was asked of the catalog, and what was found, in pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline import __version__
from pipeline.files import write_atomically
from pipeline.report.data import Card
from pipeline.report.page import render
from pipeline.report.pictures import fetch_pictures
from pipeline.settings import CatalogSettings, RunSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.demo.tour import Found, Tagged, Tour
    from pipeline.report.pictures import Picture

PICTURES_S: Final = 30.0
"""seconds for all pictures of the page"""
TAGGED: Final = 12
WRONGLY_TAGGED: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownHit:
    """A hit; `is_asked` when its title has all that the words say."""

    card: Card
    is_asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSearch:
    """A search with the product that the hits are to be like, if any."""

    name: str
    command: str
    like: Card | None
    hits: tuple[ShownHit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTags:
    """A product with its tags; each with the catalog's word for it where that is another, else an empty one."""

    card: Card
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many tags of an attribute are what the catalog says, and how many products have each label."""

    attribute: str
    right: str
    labels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPage:
    """What the template turns into HTML."""

    products: int
    searches: tuple[ShownSearch, ...]
    shares: tuple[Share, ...]
    tagged: tuple[ShownTags, ...]
    wrong: tuple[ShownTags, ...]
    tag_command: str
    version: str


def write_demo_page(catalog: Path, tour: Tour) -> Path:
    """Show a tour in `index.html`, beside the catalog; it holds its pictures. Raises CatvecError."""
    tagged, wrong = _choose(tour)
    by_id = {one.product.product_id: one for one in tour.tagged}
    shown = [*tagged, *wrong, *(by_id[found.like] for found in tour.found if found.like is not None)]
    locations = [one.product.images[0] for one in shown]
    locations += [hit.image for found in tour.found for hit in found.hits]
    settings = RunSettings(catalog=CatalogSettings(uri=str(catalog)))
    pictures = fetch_pictures(locations, settings, within_s=PICTURES_S)
    page = DemoPage(
        products=len(tour.tagged),
        searches=tuple(_show_search(found, by_id, pictures) for found in tour.found),
        shares=_shares(tour),
        tagged=tuple(_show_tags(one, pictures) for one in tagged),
        wrong=tuple(_show_tags(one, pictures) for one in wrong),
        tag_command=tour.tag_command,
        version=__version__,
    )
    path = catalog.with_name("index.html")
    write_atomically(path, render(page, "demo.html.j2").encode())
    return path


def _choose(tour: Tour) -> tuple[Sequence[Tagged], Sequence[Tagged]]:
    """The first products of which every tag is right, and the first of which one is not."""
    right = [one for one in tour.tagged if one.is_all_right]
    wrong = [one for one in tour.tagged if not one.is_all_right]
    return right[:TAGGED], wrong[:WRONGLY_TAGGED]


def _show_search(found: Found, products: Mapping[str, Tagged], pictures: Mapping[str, Picture]) -> ShownSearch:
    return ShownSearch(
        name=found.name,
        command=found.command,
        like=None if found.like is None else _card(products[found.like], pictures),
        hits=tuple(
            ShownHit(
                card=Card(
                    product_id=hit.product_id,
                    title=hit.title or "",
                    picture=pictures[hit.image],
                    link=None,
                    note=f"{hit.similarity:.2f}",
                ),
                is_asked=found.is_asked(hit),
            )
            for hit in found.hits
        ),
    )


def _show_tags(one: Tagged, pictures: Mapping[str, Picture]) -> ShownTags:
    truth = one.product.attrs
    return ShownTags(
        card=_card(one, pictures),
        tags=tuple((label, "" if one.is_right(name) else str(truth[name])) for name, label in one.tags.items()),
    )


def _card(one: Tagged, pictures: Mapping[str, Picture]) -> Card:
    product = one.product
    return Card(
        product_id=product.product_id,
        title=product.title or "",
        picture=pictures[product.images[0]],
        link=None,
    )


def _shares(tour: Tour) -> tuple[Share, ...]:
    return tuple(
        Share(
            attribute=tagged.attribute,
            right=tour.say_right(tagged.attribute),
            labels=", ".join(f"{label} {products:,}" for label, products in tagged.products_by_label.items()),
        )
        for tagged in tour.tagging.attributes
    )

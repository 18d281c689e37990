"""What `catvec demo` shows of the catalog that it has run: searches by words, by likeness and by both, and tags."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.catalog import read_catalog
from pipeline.demo.catalog import SHOWCASE, SHOWCASE_TITLE
from pipeline.demo.drawing import COLOURS
from pipeline.demo.patterns import PATTERNS
from pipeline.demo.shapes import KINDS
from pipeline.files import write_atomically
from pipeline.records import Product
from pipeline.search import EncoderChoice, Query, Wanted, search, similar
from pipeline.settings import CatalogSettings
from pipeline.tag import tag

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from pipeline.records import Hit
    from pipeline.tag import Tagging

HITS: Final = 5
ASKED: Final = (
    Wanted(text=SHOWCASE_TITLE),
    Wanted(text="a photo of a red dress"),
    Wanted(text="red", like=(SHOWCASE,), minus=("navy",)),
)
LIKE: Final = "demo-0001"
LABELS: Final[Mapping[str, Collection[str]]] = {"kind": KINDS, "colour": COLOURS, "pattern": PATTERNS}
"""attributes to tag by, their labels the words of the titles; the catalog has the truth under the same names"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A search, as it is typed, and its hits. `like` is the product that they are to be like, if any."""

    name: str
    command: str
    text: str
    like: str | None
    hits: tuple[Hit, ...]

    def is_asked(self, hit: Hit) -> bool:
        """Whether the title has every kind, colour and pattern of the words, and there is one."""
        words = {word for labels in LABELS.values() for word in labels if word in self.text.split()}
        return bool(words) and words <= set((hit.title or "").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A product of the catalog, and its tags by attribute."""

    product: Product
    tags: Mapping[str, str]

    def is_right(self, attribute: str) -> bool:
        return bool(self.tags[attribute] == self.product.attrs[attribute])

    @property
    def is_all_right(self) -> bool:
        return all(map(self.is_right, self.tags))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tour:
    """Everything there is to show. `tagged` has the products in the catalog's order."""

    found: tuple[Found, ...]
    tag_command: str
    tagging: Tagging
    tagged: tuple[Tagged, ...]

    def say_right(self, attribute: str) -> str:
        """How many products of how many were tagged as what the catalog says they are."""
        return f"{sum(one.is_right(attribute) for one in self.tagged):,} of {len(self.tagged):,}"


def walk(url: str, catalog: Path, labels: Path, *, model: str, options: str) -> Tour:
    """Search the catalog, and tag it.

    `model` is the model's name in the database, `options` end the commands that do the same. Raises CatvecError.
    """
    query = Query(k=HITS, model=model)
    found = (*(_search(url, wanted, query, options) for wanted in ASKED), _similar(url, LIKE, query, options))
    return Tour(
        found=found,
        tag_command=f"catvec tag {shlex.quote(str(labels))}{options}",
        tagging=tag(url, labels, EncoderChoice(model=model), calibrate={}),
        tagged=_read_tagged(url, catalog, model),
    )


def write_labels(folder: Path) -> Path:
    """Write `labels.yaml`, for `catvec tag`, beside the catalog. Raises CatvecError."""
    lines = ["# what catvec tag asks of the pictures; docs/tags.md has the whole format"]
    for attribute, labels in LABELS.items():
        lines += [f"{attribute}:", f"  labels: [{', '.join(labels)}]", '  templates: ["{}", "a photo of a {}"]']
    path = folder / "labels.yaml"
    write_atomically(path, "\n".join([*lines, ""]))
    return path


def _search(url: str, wanted: Wanted, query: Query, options: str) -> Found:
    combined = [*(part for one in wanted.like for part in ("--like", one))]
    combined += [part for words in wanted.minus for part in ("--minus", words)]
    text = wanted.text or ""
    return Found(
        name="by words and likeness" if combined else "by words",
        command=shlex.join(["catvec", "search", text, *combined, "-k", str(query.k)]) + options,
        text=text,
        like=next(iter(wanted.like), None),
        hits=tuple(search(url, wanted, query)),
    )


def _similar(url: str, product_id: str, query: Query, options: str) -> Found:
    return Found(
        name="by likeness",
        command=shlex.join(["catvec", "similar", product_id, "-k", str(query.k)]) + options,
        text="",
        like=product_id,
        hits=tuple(similar(url, product_id, query)),
    )


def _read_tagged(url: str, catalog: Path, model: str) -> tuple[Tagged, ...]:
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.tags import read_tags

    with open_current(url) as session:
        tags = read_tags(session.connection(), choose_model(session.connection(), model))
    products = (one for one in read_catalog(CatalogSettings(uri=str(catalog))) if isinstance(one, Product))
    return tuple(
        # the reader may have tagged by other attributes since
        Tagged(product=one, tags={name: tags[one.product_id][name][0] for name in LABELS})
        for one in products
        if one.product_id in tags
    )

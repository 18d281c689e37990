"""Which column is what: by the user's word, or else by the names that catalogs usually give.

Names are compared without case, blanks, underscores, hyphens, points and Google's `g:` before them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.settings import CatalogSettings

# the first name that a catalog has is taken: an `id` says more of a row than its `sku`
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "id": (
        "product_id", "id", "item_id", "article_id", "sku", "sku_id", "handle", "article", "article_number",
        "article_no", "item_number", "item_no", "product_number", "product_code", "item_code", "style_code",
        "asin", "uniq_id", "unique_id", "uuid", "code",
    ),
    "title": (
        "title", "name", "product_name", "product_title", "item_name", "item_title", "prod_name",
        "product_display_name", "display_name",
    ),
    "category": (
        "category", "categories", "category_name", "product_category", "product_type", "product_type_name",
        "google_product_category", "category_path", "article_type", "type",
    ),
    "brand": ("brand", "brand_name", "vendor", "manufacturer", "maker"),
    "price": (
        "price", "regular_price", "variant_price", "current_price", "selling_price", "list_price",
        "retail_price", "unit_price",
    ),
}  # fmt: skip

_IMAGE = re.compile(
    r"(?P<further>additional|further|extra|other|more|gallery)?"
    r"(?:main|primary|featured|default|cover|product|item)?"
    r"(?:images?|imgs?|pictures?|pics?|photos?)"
    r"(?P<before>\d{1,3})?"
    r"(?:urls?|uris?|links?|src|srcs|href|paths?|files?|filename)?"
    r"(?P<after>\d{1,3})?"
)
_NOISE = re.compile(r"[\s_.-]+")
_SHOWN_NAMES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The other columns of a row: `images` in the order in which they count, and what is left for the attributes."""

    images: tuple[str, ...]
    attrs: tuple[str, ...]


# compared by identity: hashing the fields would take longer than what the cache below saves
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """The columns with a meaning. `images` is empty when they are to be found row by row."""

    id: str
    title: str | None
    category: str | None
    brand: str | None
    price: str | None
    deleted: str | None
    images: tuple[str, ...]

    # a table has one set of names; JSON objects may each have their own
    @lru_cache(maxsize=1024)  # noqa: B019 (there is one of these in a run)
    def layout_of(self, names: tuple[str, ...]) -> Layout:
        """Where a row with these columns has its images and attributes."""
        images = self.images or usual_image_columns(names)
        used = {self.id, self.title, self.category, self.brand, self.price, self.deleted, *images}
        return Layout(images=images, attrs=tuple(name for name in names if name not in used))


def find_columns(names: Sequence[str], settings: CatalogSettings) -> Columns:
    """Raises ConfigError for a column that was named but is not there, and without any id or image column."""
    found = {
        role: _find(role, getattr(settings, f"{role}_column"), names)
        for role in ("id", "title", "category", "brand", "price")
    }
    # only when named: a column that happens to be called so must delete nothing
    deleted = None if settings.deleted_column is None else _named("deleted", settings.deleted_column, names)
    images = tuple(_named("image", name, names) for name in settings.image_columns)
    if found["id"] is None:
        raise _missing("id", names)
    if not images and not usual_image_columns(tuple(names)):
        raise _missing("image", names)
    return Columns(
        id=found["id"],
        title=found["title"],
        category=found["category"],
        brand=found["brand"],
        price=found["price"],
        deleted=deleted,
        images=images,
    )


@lru_cache(maxsize=1024)
def usual_image_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that hold images by their name: the main ones, then the numbered, then the additional ones."""
    ranked = []
    for position, name in enumerate(names):
        match = _IMAGE.fullmatch(normalised(name))
        if match:
            number = int(match["before"] or match["after"] or 0)
            ranked.append((match["further"] is not None, number, position, name))
    return tuple(name for *_, name in sorted(ranked))


def normalised(name: str) -> str:
    return _NOISE.sub("", name.casefold().removeprefix("g:"))


def _find(role: str, wanted: str | None, names: Sequence[str]) -> str | None:
    if wanted is not None:
        return _named(role, wanted, names)
    by_name = {normalised(name): name for name in reversed(names)}
    return next((by_name[usual] for name in USUAL_NAMES[role] if (usual := normalised(name)) in by_name), None)


def _named(role: str, wanted: str, names: Sequence[str]) -> str:
    if wanted in names:
        return wanted
    by_name = {normalised(name): name for name in reversed(names)}
    if normalised(wanted) in by_name:
        return by_name[normalised(wanted)]
    near = difflib.get_close_matches(normalised(wanted), by_name, n=1)
    raise ConfigError(
        f"--{role}-column names {wanted!r}, which the catalog does not have; it has {_listed(names)}",
        hint=f"did you mean {by_name[near[0]]!r}?" if near else None,
    )


def _missing(role: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"none of the catalog's columns is known to hold the {role}; it has {_listed(names)}",
        hint=f"name it with --{role}-column",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown or "none"

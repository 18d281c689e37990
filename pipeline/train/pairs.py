"""Catalog → image-title pairs, some products of them kept apart to be judged on."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.errors import CatalogError, ConfigError
from pipeline.records import BadRow, ImageRef, Product

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.records import Deletion
    from pipeline.settings import TrainSettings

TRAIN, VALIDATION = "train", "validation"
_PARTS = {"train": TRAIN, "training": TRAIN} | dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An image and the title of its product."""

    image: ImageRef
    title: str

    @property
    def product_id(self) -> str:
        return self.image.product_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What the catalog gives to learn from and to judge on, and what it does not.

    `untitled` products have images and no title; `other_parts` counts the products of --split-column that belong to
    neither part, by what stands there.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    untitled: tuple[str, ...]
    other_parts: Mapping[str, int]
    bad_rows: Mapping[str, int]

    def digest(self) -> str:
        """What is learned from and judged on, in 16 hex digits."""
        total = hashlib.sha256()
        for pair in (*self.train, None, *self.validation):
            words = (pair.product_id, pair.image.url, pair.title) if pair else ("",)
            total.update("\0".join((*words, "")).encode())
        return total.hexdigest()[:16]


@dataclass(slots=True)
class _Seen:
    """A product as the rows so far state it."""

    title: str | None
    part: str
    images: list[str] = field(default_factory=list)


def collect_pairs(rows: Iterable[Product | BadRow | Deletion], settings: TrainSettings) -> Pairs:
    """The pairs of a catalog; a product's images all fall into one part.

    Raises ConfigError when --split-column is no column or names no part, CatalogError when nothing has a title.
    """
    seen: dict[str, _Seen] = {}
    bad_rows: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows[row.code] += 1
        elif isinstance(row, Product):
            # exports with a row for each image have the title in the first only
            product = seen.setdefault(row.product_id, _Seen(title=None, part=_part(row, settings)))
            product.title = product.title or row.title
            product.images.extend(url for url in row.images if url not in product.images)
    parts: dict[str, list[Pair]] = {TRAIN: [], VALIDATION: []}
    for product_id, product in seen.items():
        if product.title and product.part in parts:
            parts[product.part].extend(_pairs(product_id, product))
    found = Pairs(
        train=_numbered(parts[TRAIN]),
        validation=_numbered(parts[VALIDATION]),
        untitled=tuple(product_id for product_id, product in seen.items() if product.images and not product.title),
        other_parts=Counter(product.part for product in seen.values() if product.part not in parts),
        bad_rows=bad_rows,
    )
    _check(found, settings)
    return found


def _part(row: Product, settings: TrainSettings) -> str:
    if settings.split_column is None:
        return _share(row.product_id, settings)
    value = row.attrs.get(settings.split_column)
    said = "" if value is None else str(value).strip()
    return _PARTS.get(said.lower(), said)


def _share(product_id: str, settings: TrainSettings) -> str:
    """By a hash, so that a product stays in its part whatever comes and goes in the catalog."""
    digest = hashlib.sha256(f"{settings.seed}\0{product_id}".encode()).digest()
    is_apart = int.from_bytes(digest[:8]) < settings.validation_share * 2**64
    return VALIDATION if is_apart else TRAIN


def _pairs(product_id: str, product: _Seen) -> list[Pair]:
    title = " ".join((product.title or "").split())
    return [Pair(image=ImageRef(image_id=0, product_id=product_id, url=url), title=title) for url in product.images]


def _numbered(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """With the row in the pixel cache as the image's id."""
    return tuple(replace(pair, image=replace(pair.image, image_id=row)) for row, pair in enumerate(pairs))


def _check(pairs: Pairs, settings: TrainSettings) -> None:
    if pairs.train:
        return
    if settings.split_column is not None and (pairs.validation or pairs.other_parts):
        found = [*pairs.other_parts, *([VALIDATION] if pairs.validation else [])][:5]
        says = "which says " + ", ".join(map(repr, found)) if any(found) else "which no product has"
        raise ConfigError(
            f"--split-column is {settings.split_column!r}, {says}, expected 'train' for some",
            hint="products are learned from where it says train, and judged on where it says validation",
        )
    raise CatalogError(
        f"there is nothing to learn from: {len(pairs.untitled):,} products have images and no title",
        hint="--title-column names the column to learn from, such as a category",
    )

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
    from pathlib import Path

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

    `untitled` products have images and no title, `without_images` counts those without images, each of which has its
    reason in `bad_rows`; `other_parts` counts the products of --split-column that belong to neither part, by what
    stands there. `sharing` is how many products have an image that others have too, `astride` how many images stand
    in both parts, which only --split-column brings about.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    untitled: tuple[str, ...]
    without_images: int
    other_parts: Mapping[str, int]
    bad_rows: tuple[BadRow, ...]
    sharing: int
    astride: int

    @property
    def bad_codes(self) -> Counter[str]:
        return Counter(row.code for row in self.bad_rows)

    def digest(self) -> str:
        """What is learned from and judged on, in 16 hex digits."""
        total = hashlib.sha256()
        for pair in (*self.train, None, *self.validation):
            words = (pair.product_id, pair.image.url, pair.title) if pair else ("",)
            total.update("\0".join((*words, "")).encode())
        return total.hexdigest()[:16]


def digest_images(pairs: Iterable[Pair], root: Path | None) -> str:
    """Which images these are, in 16 hex digits: whose and where, when relative paths start at `root`."""
    total = hashlib.sha256(f"{root}\0".encode())
    for pair in pairs:
        total.update(f"{pair.product_id}\0{pair.image.url}\0".encode())
    return total.hexdigest()[:16]


@dataclass(slots=True)
class _Seen:
    """A product as the rows so far state it; `part` is what --split-column says, None without one."""

    title: str | None
    part: str | None
    images: list[str] = field(default_factory=list)


def collect_pairs(rows: Iterable[Product | BadRow | Deletion], settings: TrainSettings) -> Pairs:
    """The pairs of a catalog; a product's images all fall into one part, with the products that share one of them.

    Raises ConfigError when --split-column is no column or names no part, CatalogError when nothing has a title.
    """
    seen: dict[str, _Seen] = {}
    bad_rows: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows.append(row)
        elif isinstance(row, Product):
            # exports with a row for each image have the title in the first only
            product = seen.setdefault(row.product_id, _Seen(title=None, part=_part(row, settings)))
            product.title = product.title or row.title
            product.images.extend(url for url in row.images if url not in product.images)
    heads = _heads(seen)
    sizes = Counter(heads.values())
    _divide(seen, heads, sizes, settings)
    parts: dict[str, list[Pair]] = {TRAIN: [], VALIDATION: []}
    for product_id, product in seen.items():
        if product.title and product.part in parts:
            parts[product.part].extend(_pairs(product_id, product))
    train, validation = ({pair.image.url for pair in parts[part]} for part in (TRAIN, VALIDATION))
    found = Pairs(
        train=_numbered(parts[TRAIN]),
        validation=_numbered(parts[VALIDATION]),
        untitled=tuple(product_id for product_id, product in seen.items() if product.images and not product.title),
        without_images=sum(not product.images for product in seen.values()),
        other_parts=Counter(product.part or "" for product in seen.values() if product.part not in parts),
        bad_rows=tuple(row for row in bad_rows if not _is_made_up_for(row, seen)),
        sharing=sum(size for size in sizes.values() if size > 1),
        astride=len(train & validation),
    )
    _check(found, settings)
    return found


def _is_made_up_for(row: BadRow, seen: Mapping[str, _Seen]) -> bool:
    """A row without an image is no loss where another row of the product has one."""
    product = seen.get(row.product_id or "")
    return row.code == "no_image" and product is not None and bool(product.images)


def _heads(seen: Mapping[str, _Seen]) -> dict[str, str]:
    """The first id, by the alphabet, of all products that hang together with a product by the images they share.

    Sizes and colours of a thing often have its photo in common: one that was learned from would be no test.
    """
    heads = {product_id: product_id for product_id in seen}

    def head_of(product_id: str) -> str:
        while heads[product_id] != product_id:
            heads[product_id] = heads[heads[product_id]]
            product_id = heads[product_id]
        return product_id

    first: dict[str, str] = {}
    for product_id, product in seen.items():
        for url in product.images:
            one, other = sorted((head_of(product_id), head_of(first.setdefault(url, product_id))))
            heads[other] = one
    return {product_id: head_of(product_id) for product_id in seen}


def _divide(
    seen: Mapping[str, _Seen], heads: Mapping[str, str], sizes: Mapping[str, int], settings: TrainSettings
) -> None:
    """Give each product its part. Those that share images stay together, unless a column says otherwise."""
    # most of a catalog may have the picture that stands for a missing one: that is no part to judge on
    most = 2 * settings.validation_share * len(seen)
    for product_id, product in seen.items():
        head = heads[product_id]
        if product.part is None:
            product.part = TRAIN if 1 < most < sizes[head] else _share(head, settings)


def _part(row: Product, settings: TrainSettings) -> str | None:
    if settings.split_column is None:
        return None
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
    reason, hint = _why_nothing(pairs)
    raise CatalogError(f"there is nothing to learn from: {reason}", hint=hint)


def _why_nothing(pairs: Pairs) -> tuple[str, str | None]:
    """What became of all the products, and the cure."""
    if pairs.validation:
        apart = len({pair.product_id for pair in pairs.validation})
        return (
            f"all {apart:,} products with an image and a title are kept apart to be judged on",
            "--validation-share 0 keeps none apart, --seed chooses others",
        )
    if pairs.untitled:
        return (
            f"{len(pairs.untitled):,} products have images and no title",
            "--title-column names the column to learn from, such as a category",
        )
    if pairs.without_images:
        return f"none of {pairs.without_images:,} products has an image", "--image-column names the column of images"
    bad_rows = "".join(f", {count:,} rows are {code}" for code, count in pairs.bad_codes.items())
    return f"the catalog has no products{bad_rows}", None

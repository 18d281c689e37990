"""Products whose label is known: what the catalog says of them, beside their vectors. To fit on, and to judge by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from pipeline.names import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.learned import Learned
    from pipeline.store.connect import Session
    from pipeline.store.models import StoredModel

PAGE = 2_000
"""products whose vectors are read at once"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """Products in the order of their ids: unit vectors float32 [P, D], and the numbers int64 [P] of their labels.

    `urls` are those of their images. Of products that show the same images, one is here. `is_learned` [P] says which
    of them the model, or what stands on it, has learned from. `left_out` have a value that is none of the labels, or
    several in a list.
    """

    product_ids: tuple[str, ...]
    urls: tuple[tuple[str, ...], ...] = field(repr=False)  # may hold a password
    vectors: NDArray[np.float32]
    truth: NDArray[np.int64]
    is_learned: NDArray[np.bool_]
    labels: tuple[str, ...]
    left_out: int

    def __len__(self) -> int:
        return len(self.truth)

    def keep(self, wanted: NDArray[np.bool_]) -> Known:
        """The products of `wanted` [P] alone."""
        return replace(
            self,
            product_ids=tuple(compress(self.product_ids, wanted)),
            urls=tuple(compress(self.urls, wanted)),
            vectors=self.vectors[wanted],
            truth=self.truth[wanted],
            is_learned=self.is_learned[wanted],
        )

    def with_labels_of(self, fewest: int) -> Known:
        """Without the labels that fewer products have."""
        counts = np.bincount(self.truth, minlength=len(self.labels))
        kept = np.flatnonzero(counts >= fewest)
        known = self.keep(np.isin(self.truth, kept))
        return replace(
            known,
            truth=np.searchsorted(kept, known.truth),
            labels=tuple(self.labels[label] for label in kept),
            left_out=self.left_out + len(self) - len(known),
        )


def read_known(
    session: Session, model: StoredModel, attribute: str, labels: Sequence[str] | None = None, *, learned: Learned
) -> Known:
    """The products with a vector under the model and a value of the attribute: category, brand, or one of attrs.

    With `labels`, those whose value is one of them; else every value is a label. `names.plain` says what is the same.
    """
    from pipeline.store.tags import read_truth, read_urls, read_vectors

    values = dict(session.run(partial(read_truth, attribute=attribute)))
    names = tuple(labels) if labels is not None else _name_labels(filter(None, values.values()))
    numbers = {plain(name): number for number, name in enumerate(names)}
    wanted = {
        product: numbers[key]
        for product, value in values.items()
        if value is not None and (key := plain(value)) in numbers
    }
    ids = list(wanted)
    pieces = [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]
    pages = [session.run(partial(read_vectors, model=model, product_ids=piece)) for piece in pieces]
    places: dict[str, list[str]] = {}
    for piece in pieces:
        places |= session.run(partial(read_urls, model=model, product_ids=piece))
    products = [product for page in pages for product in page.product_ids]
    shown = [contents for page in pages for contents in page.contents]
    rows = sorted({contents: row for row, contents in reversed(list(enumerate(shown)))}.values())
    # what was learned from is known under every product that shows it
    urls = [tuple(places.get(product, ())) for product in products]
    seen = set(compress(shown, learned.hold(products, urls)))
    vectors = np.concatenate([np.empty((0, model.dims), dtype=np.float32), *(page.vectors for page in pages)])
    return Known(
        product_ids=tuple(products[row] for row in rows),
        urls=tuple(urls[row] for row in rows),
        vectors=vectors[rows],
        truth=np.array([wanted[products[row]] for row in rows], dtype=np.int64),
        is_learned=np.array([shown[row] in seen for row in rows], dtype=bool),
        labels=names,
        left_out=len(values) - len(wanted),
    )


def _name_labels(values: Iterable[str]) -> tuple[str, ...]:
    """Those that are the same under their most frequent spelling; of equally frequent ones, the first in order."""
    counts = Counter(" ".join(value.split()) for value in values)
    names: dict[str, str] = {}
    for spelling in sorted(counts, key=lambda spelling: (-counts[spelling], spelling)):
        names.setdefault(plain(spelling), spelling)
    return tuple(sorted(names.values()))

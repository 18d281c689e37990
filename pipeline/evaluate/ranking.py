"""Ranks by similarity, of products for a text and of texts for a product, in blocks of bounded memory.

A product is as similar to a text as the most similar of its images, as in the search functions. What is as similar as
the right answer stands before it: a model that gives all the same vector shall find nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.records import SAME_SIMILARITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.evaluate.gallery import Gallery
    from pipeline.progress import Progress

BLOCK_BYTES: Final = 64 * 2**20
"""of similarities at once, float32: 160 texts beside 100,000 images. Four times as much was not faster"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """Ranks from 1 on: `products` [P] of each product's own text among all texts, `texts` [T] of the first right
    product of each text among all products; right is every product that has the text.

    `next_texts` [P] is the text most similar to each product but for its own; -1 when there is no other.
    """

    products: NDArray[np.int64]
    texts: NDArray[np.int64]
    next_texts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranked:
    """Products, the texts [T] they are told apart by with their vectors [T, D], and their ranks.

    `text_of` int64 [P] is the text of each product.
    """

    gallery: Gallery
    texts: Sequence[str]
    text_vectors: NDArray[np.float32]
    text_of: NDArray[np.int64]
    ranks: Ranks


def rank(
    gallery: Gallery, text_vectors: NDArray[np.float32], text_of: NDArray[np.int64], progress: Progress
) -> Ranks:
    """Compare every text with every image; the rank of a text that no product has means nothing."""
    own = _own_similarities(gallery, text_vectors, text_of) - SAME_SIMILARITY
    products = np.ones(len(gallery), dtype=np.int64)
    texts = np.empty(len(text_vectors), dtype=np.int64)
    nearest = np.full(len(gallery), -np.inf, dtype=np.float32)
    next_texts = np.full(len(gallery), -1, dtype=np.int64)
    width = max(1, BLOCK_BYTES // (4 * len(gallery.vectors)))
    for start in range(0, len(text_vectors), width):
        end = min(start + width, len(text_vectors))
        similarities = product_similarities(gallery, text_vectors[start:end])
        right = np.flatnonzero((text_of >= start) & (text_of < end))
        columns = text_of[right] - start
        best = np.full(end - start, -np.inf, dtype=np.float32)
        np.maximum.at(best, columns, similarities[right, columns])
        # what is right stands in nobody's way
        similarities[right, columns] = -np.inf
        texts[start:end] = 1 + np.count_nonzero(similarities >= best - SAME_SIMILARITY, axis=0)
        products += np.count_nonzero(similarities >= own[:, None], axis=1)
        _keep_nearest(similarities, start, nearest, next_texts)
        progress.step(end, len(text_vectors), unit="texts")
    return Ranks(products=products, texts=texts, next_texts=next_texts)


def _keep_nearest(
    similarities: NDArray[np.float32], start: int, nearest: NDArray[np.float32], places: NDArray[np.int64]
) -> None:
    """Note in both arrays [P] what of this block of texts is nearer than what was noted before."""
    columns = similarities.argmax(axis=1)
    values = similarities[np.arange(len(columns)), columns]
    is_nearer = values > nearest
    nearest[is_nearer] = values[is_nearer]
    places[is_nearer] = start + columns[is_nearer]


def product_similarities(gallery: Gallery, text_vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each product's most similar image with each text, float32 [P, texts]."""
    similarities: NDArray[np.float32] = gallery.vectors @ text_vectors.T
    if len(gallery) == len(similarities):
        return similarities
    return np.maximum.reduceat(similarities, gallery.starts, axis=0)


def _own_similarities(
    gallery: Gallery, text_vectors: NDArray[np.float32], text_of: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Of each product's most similar image with its own text, float32 [P]."""
    images, dims = gallery.vectors.shape
    of_images = np.repeat(text_of, gallery.image_counts)
    own = np.empty(images, dtype=np.float32)
    rows = max(1, BLOCK_BYTES // (4 * dims))
    for start in range(0, images, rows):
        part = slice(start, start + rows)
        own[part] = np.einsum("nd,nd->n", gallery.vectors[part], text_vectors[of_images[part]])
    best: NDArray[np.float32] = np.maximum.reduceat(own, gallery.starts)
    return best

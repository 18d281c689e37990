"""Unit vectors that are spread as CLIP's image vectors of a product catalog are: a narrow cone, in it clusters.

Measured on CLIP ViT-B/32 of photos, two random images have a cosine of about 0.6 (all vectors share a direction),
kinds of products form clusters, and within them most of the variance lies in few directions. Uniform random vectors
would be easier in one way (no clusters that a filter can leave out) and far harder in another (all distances nearly
equal), and say nothing about either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARED, BETWEEN, WITHIN = 0.6, 0.2, 0.2
"""parts of the squared length: the direction all share (the mean cosine), the cluster's, the image's own"""
SHARED_BY_TEXTS, MEANT = 0.55, 0.1
"""the same for words: the direction all words share, the image they speak of; the rest is nobody's"""
DECAY = 0.5
"""standard deviation of the image's own part along its i-th direction: i ** -DECAY"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cloud:
    """`vectors` float32 [N, D] of unit length, `clusters` int64 [N], the cluster of each."""

    vectors: NDArray[np.float32]
    clusters: NDArray[np.int64]


def draw_cloud(count: int, *, dims: int = 512, clusters: int = 200, seed: int = 0) -> Cloud:
    """Draw `count` vectors around `clusters` centres; some clusters are 20 times larger than others."""
    generator = np.random.default_rng(seed)
    shared = _unit(generator.standard_normal((1, dims)))
    centres = _unit(generator.standard_normal((clusters, dims)))
    sizes = 1.0 / np.arange(1, clusters + 1) ** 0.6
    member = generator.choice(clusters, size=count, p=sizes / sizes.sum())
    scales = np.arange(1, dims + 1) ** -DECAY
    rotation = np.linalg.qr(generator.standard_normal((dims, dims)))[0]
    own = _unit((generator.standard_normal((count, dims)) * scales) @ rotation)
    vectors = np.sqrt(SHARED) * shared + np.sqrt(BETWEEN) * centres[member] + np.sqrt(WITHIN) * own
    return Cloud(vectors=_unit(vectors).astype(np.float32), clusters=member)


def draw_texts(cloud: Cloud, count: int, *, seed: int = 2) -> NDArray[np.float32]:
    """Vectors that are to the images as CLIP's of words are: [count, D], unit length, in a cone of their own.

    Each has a cosine of about 0.3 with the image it speaks of, and of 0.2 with the others.
    """
    generator = np.random.default_rng(seed)
    dims = cloud.vectors.shape[1]
    shared = _unit(generator.standard_normal((1, dims)))
    own = _unit(generator.standard_normal((count, dims)))
    meant = cloud.vectors[generator.choice(len(cloud.vectors), count, replace=False)]
    texts = np.sqrt(SHARED_BY_TEXTS) * shared + np.sqrt(MEANT) * meant + np.sqrt(1 - SHARED_BY_TEXTS - MEANT) * own
    return _unit(texts).astype(np.float32)


def mean_cosine(vectors: NDArray[np.float32], *, pairs: int = 10_000, seed: int = 0) -> float:
    """The mean cosine of random pairs."""
    first, second = np.random.default_rng(seed).integers(0, len(vectors), (2, pairs))
    return float(np.sum(vectors[first] * vectors[second], axis=1).mean())


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit

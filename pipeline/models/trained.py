"""Which products a model has learned from, kept beside its weights, so that it is not judged on them.

Digests instead of ids: 8 bytes a product, and the folder tells nobody what the shop sells. The URLs of its images are
noted in the same way: a size that comes into the catalog later has the photo of the others. Paths are not, as they
mean something else in another folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILE_NAME = "trained_products.npy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedProducts:
    """The digests uint64 [N] of the products that a model was trained on, and of their images' URLs, ascending."""

    digests: NDArray[np.uint64]

    def hold(self, product_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the products the model was trained on, bool [N]; 8 bytes tell a billion apart."""
        return np.isin(_digests(product_ids), self.digests)

    def hold_images(self, urls: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the images the model was trained on, bool [N], as far as they stand at URLs."""
        known = np.isin(_digests(map(_image, urls)), self.digests)
        return known & np.array([_is_url(url) for url in urls], dtype=np.bool_)

    def hold_any(self, product_ids: Sequence[str], urls: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """Which of the products were learned from, bool [N], by themselves or by one of their images' `urls` [N]."""
        found = self.hold(product_ids)
        rows = np.repeat(np.arange(len(urls)), np.array([len(images) for images in urls], dtype=np.int64))
        found[rows[self.hold_images(list(chain.from_iterable(urls)))]] = True
        return found


def digest_products(product_ids: Iterable[str], urls: Iterable[str] = ()) -> TrainedProducts:
    """What is to be remembered of products and of the URLs of their images."""
    names = (*product_ids, *(_image(url) for url in urls if _is_url(url)))
    return TrainedProducts(digests=np.unique(_digests(names)))


def write_trained_products(
    folder: Path, product_ids: Iterable[str], urls: Iterable[str] = (), *, before: TrainedProducts | None = None
) -> None:
    """Note in a model's folder what it was trained on, and the model it was made from `before`. Raises OSError."""
    digests = digest_products(product_ids, urls).digests
    np.save(folder / FILE_NAME, digests if before is None else np.union1d(digests, before.digests))


def read_trained_products(folder: Path) -> TrainedProducts | None:
    """What a model's folder says it was trained on; None when it says nothing.

    Raises ModelError when the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        digests = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"cannot read {str(path)!r}: {error}", hint="take the model's folder anew") from error
    if digests.dtype != np.uint64 or digests.ndim != 1:
        raise ModelError(
            f"{str(path)!r} holds {digests.dtype} of {digests.ndim} dimensions, expected uint64 of 1",
            hint="take the model's folder anew",
        )
    return TrainedProducts(digests=digests)


def _is_url(location: str) -> bool:
    return "://" in location


def _image(url: str) -> str:
    """What no product has for its id."""
    return f"image\0{url}"


def _digests(names: Iterable[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

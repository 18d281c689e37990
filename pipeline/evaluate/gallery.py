"""What is judged: the stored vectors of a model, product by product, without those that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import ConfigError, ModelError
from pipeline.means import unit_means
from pipeline.search import EncoderChoice, load_stored_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.models.trained import TrainedProducts
    from pipeline.progress import Progress
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

TEXTS_AT_ONCE: Final = 1_000
"""texts between two words of progress"""
IMAGES_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(EncoderChoice):
    """Which model is judged, by which products, and whether by those that it was trained on, too."""

    conditions: Mapping[str, Any] = field(default_factory=dict)
    include_trained: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gallery:
    """Products [P] with their images [I], those of one product beside each other, in the order of product ids.

    `vectors` are float32 [I, D], `starts` int64 [P] the place of each product's first image. Titles have no white
    space at their ends and one space within; None for none. `values` are those of the attribute that was asked for.
    """

    product_ids: Sequence[str]
    titles: Sequence[str | None]
    values: Sequence[str | None]
    urls: Sequence[str] = field(repr=False)  # may hold a password
    vectors: NDArray[np.float32] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.product_ids)

    @property
    def image_counts(self) -> NDArray[np.int64]:
        """How many images each product has, int64 [P]."""
        return np.diff(self.starts, append=len(self.urls))

    def keep(self, wanted: NDArray[np.bool_]) -> Gallery:
        """The products of `wanted` [P] alone."""
        if wanted.all():
            return self
        counts = self.image_counts
        images = np.repeat(wanted, counts)
        return Gallery(
            product_ids=list(compress(self.product_ids, wanted)),
            titles=list(compress(self.titles, wanted)),
            values=list(compress(self.values, wanted)),
            urls=list(compress(self.urls, images)),
            vectors=self.vectors[images],
            starts=_starts(counts[wanted]),
        )

    def average(self) -> Gallery:
        """The same products with one vector each: the mean of their images', made a unit vector again, as tags are
        judged. Images that cancel each other out count as the first of them.
        """
        return replace(
            self,
            urls=[self.urls[place] for place in self.starts],
            vectors=unit_means(self.vectors, self.starts),
            starts=np.arange(len(self)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which products were judged, and how many were left out of those with a vector.

    They were trained on, or have no right answer: no title, or nothing that is a label.
    `trained` of `products` were trained on; None when the model's folder does not say what it was trained on.
    """

    products: int
    images: int
    trained: int | None
    left_out_trained: int
    left_out_unanswered: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """A model ready to be judged by its gallery; `trained` [P] says which of the products it was trained on."""

    model: StoredModel
    encoder: Encoder
    gallery: Gallery
    trained: NDArray[np.bool_] | None

    def keep(self, wanted: NDArray[np.bool_]) -> Judged:
        """The products of `wanted` [P] alone."""
        trained = None if self.trained is None else self.trained[wanted]
        return replace(self, gallery=self.gallery.keep(wanted), trained=trained)


def open_judged(session: Session, question: Question, attribute: str | None, progress: Progress) -> Judged:
    """The model of the question with all its products that pass the conditions, and that attribute of theirs.

    Raises ModelError without a text side or without vectors, ConfigError, StoreError.
    """
    from pipeline.models.trained import read_trained_products
    from pipeline.queries import choose_text_model

    connection = session.connection()
    model = choose_text_model(connection, question.model)
    progress.begin(f"loading model {model.name}")
    encoder = load_stored_encoder(model, question)
    gallery = session.run_once(
        partial(read_gallery, model=model, question=question, attribute=attribute, progress=progress)
    )
    trained = read_trained_products(encoder.folder)
    return Judged(
        model=model,
        encoder=encoder,
        gallery=gallery,
        trained=None if trained is None else find_learned(gallery, trained),
    )


def find_learned(gallery: Gallery, trained: TrainedProducts) -> NDArray[np.bool_]:
    """Which products, bool [P], by themselves or by an image that they share with one of them."""
    bounds = pairwise([*gallery.starts.tolist(), len(gallery.urls)])
    return trained.hold_any(gallery.product_ids, [gallery.urls[start:end] for start, end in bounds])


def read_gallery(
    connection: Connection, model: StoredModel, question: Question, attribute: str | None, progress: Progress
) -> Gallery:
    """What apps find under the model, in the caller's transaction. Raises as `open_judged`."""
    from pipeline.store.evaluation import count_shown, list_attributes, read_shown

    total = count_shown(connection, model, question.conditions)
    if not total:
        raise _nothing(model, question.conditions)
    progress.begin(f"reading the vectors of model {model.name}")
    vectors = np.empty((total, model.dims), dtype=np.float16)
    products: dict[str, tuple[str | None, str | None]] = {}
    urls, counts = [], []
    images = read_shown(connection, model, conditions=question.conditions, attribute=attribute)
    # another run may have added some since they were counted
    for place, image in zip(range(total), images, strict=False):
        if image.product_id not in products:
            products[image.product_id] = (_tidy(image.title), _tidy(image.value))
            counts.append(0)
        counts[-1] += 1
        vectors[place] = image.vector
        urls.append(image.url)
        if not place % IMAGES_AT_ONCE:
            progress.step(place, total, unit="images")
    values = [value for _, value in products.values()]
    if attribute is not None and not any(values):
        raise ConfigError(
            f"none of the {len(products):,} products has the attribute {attribute!r}, "
            f"there are: {', '.join(list_attributes(connection))}"
        )
    return Gallery(
        product_ids=list(products),
        titles=[title for title, _ in products.values()],
        values=values,
        urls=urls,
        vectors=vectors[: len(urls)].astype(np.float32),
        starts=_starts(np.array(counts)),
    )


def _nothing(model: StoredModel, conditions: Mapping[str, Any]) -> ModelError | ConfigError:
    if conditions:
        return ConfigError(f"no product with a vector under model {model.name!r} passes --filter")
    return ModelError(
        f"model {model.name!r} has no vector that apps can find", hint="run the catalog with it first: catvec run"
    )


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def _tidy(text: str | None) -> str | None:
    return " ".join((text or "").split()) or None


def leave_out_trained(judged: Judged, *, include: bool) -> tuple[Judged, int]:
    """The products that the model was not trained on, and how many it was; all of them and 0 with `include`.

    Raises ModelError when none is left.
    """
    if include or judged.trained is None or not judged.trained.any():
        return judged, 0
    if judged.trained.all():
        raise ModelError(
            f"model {judged.model.name!r} was trained on all {len(judged.gallery):,} products, "
            "so none is left to judge it by",
            hint="run it on products that it has not seen; --include-trained measures all the same, "
            "and says little about new ones",
        )
    return judged.keep(~judged.trained), int(judged.trained.sum())


def cover(judged: Judged, *, left_out_trained: int, left_out_unanswered: int) -> Coverage:
    """What was judged, when all that is left out is."""
    return Coverage(
        products=len(judged.gallery),
        images=len(judged.gallery.urls),
        trained=None if judged.trained is None else int(judged.trained.sum()),
        left_out_trained=left_out_trained,
        left_out_unanswered=left_out_unanswered,
    )


def encode_texts(encoder: Encoder, texts: Sequence[str], progress: Progress) -> NDArray[np.float32]:
    """Unit vectors float32 [T, D] of the texts. Raises ModelError for one that has none."""
    progress.begin("encoding texts")
    pages = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        pages.append(encoder.encode_texts(texts[start : start + TEXTS_AT_ONCE]))
        progress.step(min(start + TEXTS_AT_ONCE, len(texts)), len(texts), unit="texts")
    vectors = np.concatenate(pages)
    unusable = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(unusable):
        raise ModelError(
            f"model {encoder.spec.name!r} gives no usable vector for {len(unusable):,} of {len(texts):,} texts, "
            f"such as {texts[unusable[0]]!r}",
            hint="try --precision fp32; if that does not help, the weights are damaged",
        )
    return vectors

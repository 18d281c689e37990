"""What `catvec search` and `catvec similar` do: a text, a picture or a product becomes a list of hits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError, DecodeError, ModelError
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.records import Hit
    from pipeline.store.models import StoredModel


LIGHTEST, HEAVIEST = 1e-6, 1e6
"""what a weight may be, as in catvec.combine_vectors; only how they compare with each other matters"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderChoice:
    """The stored model that encodes, and how. `model` is its name in the database, None the active one; `weights` is
    where it is found now, None where it was last.
    """

    model: str | None = None
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(EncoderChoice):
    """What every question shares: the model that it is put to, how many products are wanted, and which."""

    k: int = 10
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked for: words or a picture, products to be like, and words to lead away from.

    `weights` has one for each of these in this order, or none: then each counts 1. They lie between `LIGHTEST`
    and `HEAVIEST`; what is in `minus` is subtracted.
    """

    text: str | None = None
    image: Path | None = None
    like: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.text is not None and self.image is not None:
            raise ConfigError("give either words or --image FILE", hint='for example: catvec search "red dress"')
        if self.text is None and self.image is None and not self.like:
            raise ConfigError(
                "nothing to look for: give words, --image FILE or --like PRODUCT_ID",
                hint='for example: catvec search "red dress" --minus striped',
            )
        for words in (*([] if self.text is None else [self.text]), *self.minus):
            check_words(words, "the text to search for")
        for product_id in self.like:
            check_words(product_id, "--like")
        if self.weights and len(self.weights) != len(self.names):
            raise ConfigError(
                f"--weight is given {len(self.weights)} times, expected one for each of: {', '.join(self.names)}"
            )
        for weight in self.weights:
            if not LIGHTEST <= weight <= HEAVIEST:
                raise ConfigError(
                    f"--weight is {weight!r}, expected {LIGHTEST:f} to {HEAVIEST:,.0f}",
                    hint="only how weights compare with each other matters; what leads away is named with --minus",
                )

    @property
    def names(self) -> list[str]:
        """What is combined, in the order of the weights, for messages."""
        first = [] if self.text is None else [repr(self.text)]
        first += [] if self.image is None else [str(self.image)]
        return [*first, *(f"--like {name}" for name in self.like), *(f"--minus {words!r}" for words in self.minus)]

    @property
    def name(self) -> str:
        """What `search --json` calls the query: the words or the file alone, or everything that is combined."""
        if len(self.names) == 1:
            return self.text or str(self.image or self.like[0])
        return " ".join(self.names)


def search(url: str, wanted: Wanted, query: Query) -> list[Hit]:
    """The products nearest to what is wanted: the weighted sum of its unit vectors, made a unit vector.

    Raises CatvecError.
    """
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.search import search_by_vector, search_combined

    data = _read(wanted.image) if wanted.image is not None else None
    with open_current(url) as session:
        stored = choose_model(session.connection(), query.model)
        texts = [*([] if wanted.text is None else [wanted.text]), *wanted.minus]
        if texts and not stored.has_text:
            raise ModelError(
                f"model {stored.name!r} has no text side, so it cannot search by words",
                hint="search with --image FILE, or run the catalog through a model of images and text",
            )
        vectors = np.empty((0, stored.dims), dtype=np.float32)
        if texts or data is not None:
            vectors = _encode(load_stored_encoder(stored, query), wanted, texts, data)
        if len(wanted.names) == 1 and not wanted.like:
            return search_by_vector(
                session.connection(), vectors[0], k=query.k, conditions=query.conditions, model=stored.name
            )
        return search_combined(
            session.connection(),
            vectors,
            wanted.like,
            _signed_weights(wanted),
            k=query.k,
            conditions=query.conditions,
            model=stored.name,
        )


def similar(url: str, product_id: str, query: Query) -> list[Hit]:
    """The products nearest to a product. Raises CatvecError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.search import similar_products

    check_words(product_id, "the product id")
    with open_current(url) as session:
        return similar_products(
            session.connection(), product_id, k=query.k, conditions=query.conditions, model=query.model
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _encode(encoder: Encoder, wanted: Wanted, texts: list[str], data: bytes | None) -> NDArray[np.float32]:
    """Unit vectors [N, D] of the picture, if any, and the texts."""
    from pipeline.images.decode import decode_pixels

    vectors = [encoder.encode_texts(texts)] if texts else []
    if data is not None:
        try:
            pixels = decode_pixels(data, encoder.spec.preprocess, DecodeSettings())
        except DecodeError as error:
            raise ConfigError(f"cannot search with {str(wanted.image)!r}: {error.message}") from error
        vectors.insert(0, encoder.encode_images(pixels[None]))
    return np.concatenate(vectors)


def _signed_weights(wanted: Wanted) -> list[float]:
    """In the order of the database's function: words or picture, what leads away, then products."""
    weights = list(wanted.weights or [1.0] * len(wanted.names))
    liked = len(wanted.names) - len(wanted.like) - len(wanted.minus)
    away = liked + len(wanted.like)
    return [*weights[:liked], *(-weight for weight in weights[away:]), *weights[liked:away]]


def check_words(words: str, what: str) -> None:
    """Raise ConfigError for words without a character, or with bytes that are no UTF-8, which neither tokenizers
    nor databases take.
    """
    if not words.strip():
        raise ConfigError(f"{what} is empty")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is not UTF-8: {words!r}", hint="set the terminal or the file to UTF-8") from error


def load_stored_encoder(stored: StoredModel, choice: EncoderChoice) -> Encoder:
    """The encoder of a stored model, checked to be the very one that its vectors come from (law 6).

    Raises ModelError, and ConfigError for weights that are not where the choice says.
    """
    from pipeline.models.encoder import load_encoder
    from pipeline.models.preprocess import fingerprint
    from pipeline.store.models import check_same

    if choice.weights is None and stored.source == "folder" and not Path(stored.location).is_dir():
        raise ModelError(
            f"the weights of model {stored.name!r} are no longer in {stored.location!r}",
            hint="say where they are now with --weights FOLDER",
        )
    settings = ModelSettings(
        model=choice.weights or stored.location,
        model_name=stored.name,
        device=choice.device,
        precision=choice.precision,
    )
    encoder = load_encoder(settings, registered_revision=stored.revision)
    try:
        check_same(stored, encoder.spec, fingerprint(encoder.spec.preprocess))
    except ModelError as error:
        raise ModelError(
            error.message, hint="name the folder of the very weights that made its vectors with --weights"
        ) from error
    return encoder

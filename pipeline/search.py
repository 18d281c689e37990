"""What `catvec search` and `catvec similar` do: a text, a picture or a product becomes a list of hits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DecodeError, ModelError
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.records import Hit
    from pipeline.store.models import StoredModel


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


def search_text(url: str, text: str, query: Query) -> list[Hit]:
    """The products that look like the text says. Raises CatvecError."""
    check_words(text, "the text to search for")
    return _search(url, query, lambda encoder: encoder.encode_texts([text])[0], needs_text=True)


def search_image(url: str, path: Path, query: Query) -> list[Hit]:
    """The products that look like the picture in the file. Raises CatvecError."""
    from pipeline.images.decode import decode_pixels

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error

    def embed(encoder: Encoder) -> NDArray[np.float32]:
        try:
            pixels = decode_pixels(data, encoder.spec.preprocess, DecodeSettings())
        except DecodeError as error:
            raise ConfigError(f"cannot search with {str(path)!r}: {error.message}") from error
        vector: NDArray[np.float32] = encoder.encode_images(pixels[None])[0]
        return vector

    return _search(url, query, embed, needs_text=False)


def similar(url: str, product_id: str, query: Query) -> list[Hit]:
    """The products nearest to a product. Raises CatvecError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.search import similar_products

    with open_current(url) as session:
        return similar_products(
            session.connection(), product_id, k=query.k, conditions=query.conditions, model=query.model
        )


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

    Raises ModelError.
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


def _search(
    url: str, query: Query, embed: Callable[[Encoder], NDArray[np.float32]], *, needs_text: bool
) -> list[Hit]:
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.search import search_by_vector

    with open_current(url) as session:
        stored = choose_model(session.connection(), query.model)
        if needs_text and not stored.has_text:
            raise ModelError(
                f"model {stored.name!r} has no text side, so it cannot search by words",
                hint="search with --image FILE, or run the catalog through a model of images and text",
            )
        vector = embed(load_stored_encoder(stored, query))
        return search_by_vector(
            session.connection(), vector, k=query.k, conditions=query.conditions, model=stored.name
        )

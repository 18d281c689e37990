"""What `catvec search` and `catvec similar` do: a text, a picture or a product becomes a list of hits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DecodeError, ModelError
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.records import Hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What every question shares. `model` is a name in the database, None the active one; `weights` is where that
    model is found now, None where it was last.
    """

    k: int = 10
    conditions: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"


def search_text(url: str, text: str, query: Query) -> list[Hit]:
    """The products that look like the text says. Raises CatvecError."""
    if not text.strip():
        raise ConfigError("the text to search for is empty")
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


def _search(
    url: str, query: Query, embed: Callable[[Encoder], NDArray[np.float32]], *, needs_text: bool
) -> list[Hit]:
    from pipeline.models.encoder import load_encoder
    from pipeline.models.preprocess import fingerprint
    from pipeline.store.migrate import open_current
    from pipeline.store.models import check_same, choose_model
    from pipeline.store.search import search_by_vector

    with open_current(url) as session:
        stored = choose_model(session.connection(), query.model)
        if needs_text and not stored.has_text:
            raise ModelError(
                f"model {stored.name!r} has no text side, so it cannot search by words",
                hint="search with --image FILE, or run the catalog through a model of images and text",
            )
        settings = ModelSettings(
            model=query.weights or stored.location,
            model_name=stored.name,
            device=query.device,
            precision=query.precision,
        )
        encoder = load_encoder(settings, registered_revision=stored.revision)
        check_same(stored, encoder.spec, fingerprint(encoder.spec.preprocess))
        vector = embed(encoder)
        return search_by_vector(
            session.connection(), vector, k=query.k, conditions=query.conditions, model=stored.name
        )

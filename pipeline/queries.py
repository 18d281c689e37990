"""What `catvec embed-text` and `catvec queries` do: texts become vectors that apps without Python can search with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError, ModelError
from pipeline.search import check_words, load_stored_encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.search import EncoderChoice, Query
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel
    from pipeline.store.queries import StoredQuery

TEXTS_AT_ONCE = 100
"""encoded and committed together, so that little is lost when it is interrupted"""
LONGEST_NAME = 500
"""characters of up to 4 bytes; an index entry holds 2,704 bytes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedText:
    """A text's unit vector under a model, as a pgvector literal, and in a statement that searches with it.

    `tokens_kept` is how many tokens of a text too long were read, None when it was read whole.
    """

    model: str
    literal: str = field(repr=False)
    statement: str = field(repr=False)
    tokens_kept: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedQuery:
    """A stored text. `lacking` names the other models, ready for apps, that have no vector of it."""

    model: str
    was_encoded: bool
    lacking: tuple[str, ...]
    tokens_kept: int | None
    statement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryList:
    """All stored texts, and the model under which apps ask for them."""

    active: StoredModel | None
    queries: list[StoredQuery]

    @property
    def missing(self) -> list[str]:
        """The names that have no vector under the active model."""
        active = self.active
        return [query.name for query in self.queries if active is not None and active.name not in query.models]


def embed_text(url: str, text: str, query: Query) -> EmbeddedText:
    """The vector of a text under a stored model. Raises CatvecError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.queries import vector_literal, vector_statement

    check_words(text, "the text to encode")
    with open_current(url) as session:
        model = choose_text_model(session.connection(), query.model)
        encoder = load_stored_encoder(model, query)
        vector = _encode(encoder, text)
        return EmbeddedText(
            model=model.name,
            literal=vector_literal(vector),
            statement=vector_statement(
                session.connection(), vector, k=query.k, conditions=query.conditions, model=model.name
            ),
            tokens_kept=encoder.tokens_kept(text),
        )


def add_query(url: str, name: str, text: str, choice: EncoderChoice, *, replace: bool) -> AddedQuery:
    """Store a text under a name, with its vector. What is there already is left alone, and no model is loaded.

    Raises ConfigError when the name stands for another text and is not to be replaced, or another CatvecError.
    """
    from pipeline.store.migrate import open_current
    from pipeline.store.queries import find_query, refuse_other_text

    check_words(text, "the text to encode")
    _check_name(name)
    with open_current(url) as session:
        model = choose_text_model(session.connection(), choice.model)
        stored = find_query(session.connection(), name)
        if stored is not None and stored.text != text and not replace:
            refuse_other_text(name, stored.text)
        if stored is not None and stored.text == text and model.name in stored.models:
            return _added(session.connection(), stored, model, was_encoded=False, tokens_kept=None)
        encoder = load_stored_encoder(model, choice)
        stored = _store(session, name, text, model, _encode(encoder, text), replace=replace)
        tokens_kept = encoder.tokens_kept(text)
        return _added(session.connection(), stored, model, was_encoded=True, tokens_kept=tokens_kept)


def list_queries(url: str) -> QueryList:
    """All stored texts, by name. Raises StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import list_models
    from pipeline.store.queries import list_queries as read_queries

    with open_current(url) as session:
        models = list_models(session.connection())
        return QueryList(
            active=next((model for model in models if model.is_active), None),
            queries=read_queries(session.connection()),
        )


def remove_query(url: str, name: str) -> None:
    """Forget a stored text and its vectors. Raises ConfigError when there is none of that name, or StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.queries import list_queries as read_queries
    from pipeline.store.queries import remove_query as delete_query

    check_words(name, "the name of the query")
    with open_current(url) as session:
        if not session.run(lambda connection: delete_query(connection, name)):
            names = [query.name for query in read_queries(session.connection())]
            known = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
            raise ConfigError(f"no stored query {name!r}, there are: {known or 'none'}", hint="see: catvec queries")


def refresh_queries(url: str, choice: EncoderChoice) -> tuple[str, int]:
    """Encode the stored texts that have no vector under the model; returns its name and their number.

    Raises ModelError when the model gives a text no usable vector; the others have theirs. Raises StoreError.
    """
    from pipeline.store.migrate import open_current
    from pipeline.store.queries import find_missing

    with open_current(url) as session:
        model = choose_text_model(session.connection(), choice.model)
        missing = find_missing(session.connection(), model)
        if missing:
            encode_queries(session, missing, model, load_stored_encoder(model, choice))
        return model.name, len(missing)


def encode_queries(session: Session, queries: list[StoredQuery], model: StoredModel, encoder: Encoder) -> None:
    """Give these stored texts their vectors under the model, which is the encoder's.

    Raises ModelError when a text has no usable vector; the others have theirs. Raises StoreError.
    """
    from pipeline.store.queries import put_vectors

    unusable: list[str] = []
    for start in range(0, len(queries), TEXTS_AT_ONCE):
        page = queries[start : start + TEXTS_AT_ONCE]
        vectors = encoder.encode_texts([query.text for query in page])
        usable = [place for place, vector in enumerate(vectors) if np.isfinite(vector).all()]
        session.run(
            partial(put_vectors, model=model, queries=[page[place] for place in usable], vectors=vectors[usable])
        )
        unusable += [repr(query.name) for place, query in enumerate(page) if place not in usable]
    if unusable:
        raise ModelError(f"model {model.name!r} gives no usable vector for the stored texts {', '.join(unusable)}")


def _check_name(name: str) -> None:
    check_words(name, "the name of the query")
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"the name of the query has {len(name):,} characters, expected at most {LONGEST_NAME}")


def choose_text_model(connection: Connection, name: str | None) -> StoredModel:
    """The named model, or the active one, that encodes words. Raises ConfigError for an unknown name, ModelError."""
    from pipeline.store.models import choose_model

    model = choose_model(connection, name)
    if not model.has_text:
        raise ModelError(
            f"model {model.name!r} has no text side, so it cannot encode words",
            hint="run the catalog through a model of images and text, or name one with --model",
        )
    return model


def _encode(encoder: Encoder, text: str) -> NDArray[np.float32]:
    vector: NDArray[np.float32] = encoder.encode_texts([text])[0]
    if not np.isfinite(vector).all():
        raise ModelError(
            f"model {encoder.spec.name!r} gives no usable vector for the text {text!r}",
            hint="try --precision fp32; if that does not help, the weights are damaged",
        )
    return vector


def _store(
    session: Session, name: str, text: str, model: StoredModel, vector: NDArray[np.float32], *, replace: bool
) -> StoredQuery:
    """Keep text and vector, in one transaction."""
    from pipeline.store.queries import put_query, put_vectors

    def write(connection: Connection) -> StoredQuery:
        stored = put_query(connection, name, text, replace=replace)
        put_vectors(connection, model=model, queries=[stored], vectors=vector[None])
        return stored

    return session.run(write)


def _added(
    connection: Connection, stored: StoredQuery, model: StoredModel, *, was_encoded: bool, tokens_kept: int | None
) -> AddedQuery:
    from pipeline.store.models import list_models
    from pipeline.store.queries import query_statement

    others = [
        other.name
        for other in list_models(connection)
        if other.state in {"ready", "active"} and other.has_text and other.name not in {model.name, *stored.models}
    ]
    return AddedQuery(
        model=model.name,
        was_encoded=was_encoded,
        lacking=tuple(others),
        tokens_kept=tokens_kept,
        statement=query_statement(connection, stored.name, model=None if model.is_active else model.name),
    )

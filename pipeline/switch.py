"""What `catvec models activate`, `rollback` and `drop` do: which model apps read, changed while they read.

A run fills a new model's table beside the active one; these make the switch, tell what it means for apps, and take
away what is no longer wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipeline.errors import LockedError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

PUBLIC_VIEW = "catvec.image_embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a model gives the apps that read it. `missing_queries`: stored texts that it has not encoded.
    `tagged`: attributes that products are tagged with under it.
    """

    model: StoredModel
    images: int
    has_index: bool
    missing_queries: int
    has_neighbours: bool
    tagged: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A switch that was made. `left` is the model before, None when there was none or it was this one already."""

    entered: Offer
    left: Offer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What goes when a model is dropped."""

    model: StoredModel
    vectors: int
    size_bytes: int


def activate(url: str, name: str, *, wait_s: float) -> Switch:
    """Let apps read this model. Raises ConfigError when it is unknown, ModelError when not ready, StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import require_model

    with open_current(url) as session:
        connection = session.connection()
        return _activate(connection, require_model(connection, name), wait_s=wait_s)


def roll_back(url: str, *, wait_s: float) -> Switch:
    """Let apps read the model again that they read before. Raises ModelError when there is none, StoreError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import find_previous

    with open_current(url) as session:
        connection = session.connection()
        previous = find_previous(connection)
        if previous is None:
            raise ModelError(
                "there is no model to go back to: none but the active one has been active and still has its vectors",
                hint="see: catvec models",
            )
        return _activate(connection, previous, wait_s=wait_s)


def _activate(connection: Connection, model: StoredModel, *, wait_s: float) -> Switch:
    from pipeline.store.locks import keep_trying
    from pipeline.store.models import activate_model, check_table, find_previous, is_shown
    from pipeline.store.roles import require_owner

    require_owner(connection, "switch models")
    if not model.is_retired:
        check_table(connection, model)
    if model.is_active and is_shown(connection, model):
        return Switch(entered=_offer(connection, model), left=None)
    keep_trying(connection, partial(activate_model, name=model.name), relations=[PUBLIC_VIEW], wait_s=wait_s)
    left = None if model.is_active else find_previous(connection)
    return Switch(entered=_offer(connection, model), left=_offer(connection, left) if left else None)


def _offer(connection: Connection, model: StoredModel) -> Offer:
    from pipeline.store.index import find_index
    from pipeline.store.models import count_shown, has_neighbours
    from pipeline.store.queries import find_missing
    from pipeline.store.tags import list_tagged

    return Offer(
        model=model,
        images=count_shown(connection, model),
        has_index=find_index(connection, model).is_valid,
        missing_queries=len(find_missing(connection, model)),
        has_neighbours=has_neighbours(connection, model),
        tagged=tuple(list_tagged(connection).get(model.name, ())),
    )


def drop(url: str, name: str, *, wait_s: float, is_sure: Callable[[Vectors], bool]) -> Vectors | None:
    """Take a model's vectors away if `is_sure` of what it is shown; None when not. Apps that ask for it are told.

    Raises ModelError when it is active or retired, ConfigError when it is unknown, LockedError while a run, a build
    of its neighbours or a tagging goes on, StoreError.
    """
    from pipeline.store.locks import keep_trying
    from pipeline.store.migrate import open_current
    from pipeline.store.models import measure_vectors, require_model, retire_model
    from pipeline.store.neighbours import take_lock as take_neighbours_lock
    from pipeline.store.pooler import require_session
    from pipeline.store.roles import require_owner
    from pipeline.store.runs import take_lock
    from pipeline.store.tags import take_lock as take_tags_lock

    with open_current(url) as session:
        connection = session.connection()
        require_owner(connection, "drop models")
        model = require_model(connection, name)
        if model.is_retired:
            raise ModelError(
                f"model {name!r} was retired on {model.retired_at:%Y-%m-%d}, its vectors are gone already"
            )
        if model.is_active:
            raise ModelError(
                f"model {name!r} is active: apps read it",
                hint="let them read another one first, with catvec models activate NAME",
            )
        vectors, size_bytes = measure_vectors(connection, model)
        going = Vectors(model=model, vectors=vectors, size_bytes=size_bytes)
        if not is_sure(going):
            return None
        require_session(connection, url)
        # until the connection ends
        try:
            take_lock(connection, name)
        except LockedError as error:
            raise LockedError(error.message, hint="wait until it is done, or stop it") from error
        take_neighbours_lock(connection, model)
        take_tags_lock(connection, model)
        relations = [f"catvec.{model.view}", f"catvec_store.{model.table}"]
        keep_trying(connection, partial(retire_model, name=name), relations=relations, wait_s=wait_s)
        return going

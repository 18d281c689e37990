"""The models that this database knows: registering one, checking that it is still the same, switching to it."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pipeline.errors import ConfigError, ModelError
from pipeline.records import ModelSpec, PreprocessSpec
from pipeline.store.roles import require_owner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.store.connect import Connection

SELECT_MODELS = """
SELECT m.model_id, m.name, m.source, m.revision, m.location, m.fingerprint, m.dims, m.has_text, m.state,
       m.activated_at, m.storage, m.index_kind, m.index_m, m.index_ef_construction, m.ef_search, m.tuned_at,
       m.retired_at, m.vectors
  FROM catvec.models m
"""

INSERT_MODEL = """
INSERT INTO catvec_store.models
       (name, source, revision, location, preprocess, fingerprint, dims, has_text, storage)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

# activated_at goes, because no app has ever read the table that is made now: rollback must not choose it
REVIVE_MODEL = """
UPDATE catvec_store.models
   SET state = 'loading', storage = %s, location = %s, activated_at = NULL, retired_at = NULL
 WHERE model_id = %s
"""

SELECT_PREVIOUS = (
    SELECT_MODELS
    + """
 WHERE m.state = 'ready'
   AND m.activated_at IS NOT NULL
 ORDER BY m.activated_at DESC, m.model_id DESC
 LIMIT 1
"""
)

# whether the public view reads from the model's own view, whatever the column state says
IS_SHOWN = """
SELECT EXISTS (
  SELECT
    FROM pg_depend d
    JOIN pg_rewrite r ON r.oid = d.objid
   WHERE d.classid = 'pg_rewrite'::regclass
     AND d.refclassid = 'pg_class'::regclass
     AND d.refobjid = to_regclass(%s)
     AND r.ev_class = to_regclass('catvec.image_embeddings'))
"""

SELECT_PREPROCESS = "SELECT preprocess FROM catvec_store.models WHERE model_id = %s"

HAS_NEIGHBOURS = "SELECT EXISTS (SELECT FROM catvec_store.neighbours WHERE model_id = %s)"

LOCK_TIMEOUT = "SET LOCAL lock_timeout = '300ms'"
"""Readers that come while a switch waits for those before them stand in line behind it, and no read may take longer
than a second. So a switch waits a third of that, lets the line pass, and tries again."""

DEFAULT_STORAGE = "halfvec"
"""half the size of vector"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A row of catvec.models: `location` is where it was loaded from last, `table` its vector table.

    `storage` is the type of the stored vectors, halfvec or vector. `vectors` is the server's estimate of their
    number, as of the last ANALYZE or VACUUM. A retired model has no table any more.
    """

    model_id: int
    name: str
    source: str
    revision: str
    location: str
    fingerprint: str
    dims: int
    has_text: bool
    state: str
    activated_at: datetime | None
    storage: str
    index_kind: str
    index_m: int
    index_ef_construction: int
    ef_search: int
    tuned_at: datetime | None
    retired_at: datetime | None
    vectors: int

    @property
    def table(self) -> str:
        return f"emb_{self.name}"

    @property
    def view(self) -> str:
        return f"image_embeddings_{self.name}"

    @property
    def is_active(self) -> bool:
        return self.state == "active"

    @property
    def is_retired(self) -> bool:
        return self.state == "retired"


def list_models(connection: Connection) -> list[StoredModel]:
    """All models, in the order they came."""
    with connection.cursor(row_factory=class_row(StoredModel)) as cursor:
        return cursor.execute(SELECT_MODELS + " ORDER BY m.model_id").fetchall()


def find_model(connection: Connection, name: str) -> StoredModel | None:
    with connection.cursor(row_factory=class_row(StoredModel)) as cursor:
        return cursor.execute(SELECT_MODELS + " WHERE m.name = %s", (name,)).fetchone()


def find_twin(connection: Connection, spec: ModelSpec, fingerprint: str) -> StoredModel | None:
    """The model of this very identity, whatever its name."""
    identity = (spec.source, spec.revision, fingerprint)
    models = list_models(connection)
    return next((model for model in models if (model.source, model.revision, model.fingerprint) == identity), None)


def require_model(connection: Connection, name: str) -> StoredModel:
    """The named model, whatever its state. Raises ConfigError when there is none."""
    models = list_models(connection)
    for model in models:
        if model.name == name:
            return model
    kept = [model for model in models if not model.is_retired]
    known = ", ".join(model.name for model in kept) or "none"
    near = _guess_meant(kept, name)
    hint = f"did you mean {near!r}? see: catvec models" if near else "see: catvec models"
    raise ConfigError(f"no model {name!r} in this database, there are: {known}", hint=hint)


def _guess_meant(models: Sequence[StoredModel], text: str) -> str | None:
    """The name of the model that is loaded from what was given in place of a name, or whose name is spelled alike."""
    places = {text, str(Path(text).expanduser().resolve())}
    loaded = [model.name for model in models if places & {model.location, model.source}]
    return next(iter(loaded or difflib.get_close_matches(text, [model.name for model in models], n=1)), None)


def choose_model(connection: Connection, name: str | None) -> StoredModel:
    """The named model, or the active one, to work with its vectors.

    Raises ConfigError for a name that is unknown, or whose vectors are gone; ModelError when no model is active.
    """
    if name is not None:
        model = require_model(connection, name)
        if model.is_retired:
            raise ConfigError(
                f"model {name!r} was retired on {model.retired_at:%Y-%m-%d}, its vectors are gone",
                hint="name another model, or none for the active one; see: catvec models",
            )
        return model
    models = [model for model in list_models(connection) if not model.is_retired]
    active = next((model for model in models if model.is_active), None)
    if active is None:
        known = ", ".join(model.name for model in models) or "none"
        raise ModelError(f"no model is active yet, there are: {known}", hint="finish a first catvec run")
    return active


def register_model(
    connection: Connection, spec: ModelSpec, fingerprint: str, *, location: str, storage: str | None = None
) -> StoredModel:
    """The stored model of this spec, with its table and view made on first sight; in the caller's transaction.

    `storage` is the type to store new vectors in, halfvec or vector; None takes what is there, else halfvec. A
    retired model that comes back begins anew with an empty table. A known model is only read here, so a role that
    may write vectors and nothing else can run every night.

    Raises ModelError when the name stands for other weights, another preprocessing, other dimensions or another
    storage, or when the same model stands under another name: vectors of two models never meet in one table (law 6).
    Raises StoreError when a model is to be made by somebody who is not the owner.
    """
    stored = find_model(connection, spec.name)
    if stored is None or stored.is_retired:
        require_owner(connection, f"add model {spec.name!r}")
        # two first runs at once: the second waits here, and finds the row
        connection.execute("LOCK TABLE catvec_store.models IN SHARE ROW EXCLUSIVE MODE")
        stored = _make_model(connection, spec, fingerprint, location=location, storage=storage)
    check_same(stored, spec, fingerprint)
    check_storage(stored, storage)
    check_table(connection, stored)
    if stored.location != location:
        _move(connection, stored, location)
    return stored


def _make_model(
    connection: Connection, spec: ModelSpec, fingerprint: str, *, location: str, storage: str | None
) -> StoredModel:
    """The row, table and view of a model that is unknown or retired; the caller holds the lock on the models."""
    stored = find_model(connection, spec.name)
    if stored is None:
        _refuse_twin(connection, spec, fingerprint)
        preprocess = Jsonb(asdict(spec.preprocess))
        connection.execute(
            INSERT_MODEL,
            (
                *(spec.name, spec.source, spec.revision, location, preprocess, fingerprint, spec.dims, spec.has_text),
                storage or DEFAULT_STORAGE,
            ),
        )
    elif stored.is_retired:
        check_same(stored, spec, fingerprint)
        connection.execute(REVIVE_MODEL, (storage or stored.storage, location, stored.model_id))
    else:
        return stored  # another first run was quicker
    connection.execute("SELECT catvec_store.create_model_table(%s)", (spec.name,))
    made = find_model(connection, spec.name)
    assert made is not None  # noqa: S101 - inserted above
    return made


def _refuse_twin(connection: Connection, spec: ModelSpec, fingerprint: str) -> None:
    twin = find_twin(connection, spec, fingerprint)
    if twin is not None:
        raise ModelError(
            f"this model is stored already, as {twin.name!r}", hint=f"use it with --model-name {twin.name}"
        )


def _move(connection: Connection, model: StoredModel, location: str) -> None:
    """Remember where a model was loaded from last, if this role may; searches then look there first."""
    may = connection.execute("SELECT has_column_privilege('catvec_store.models', 'location', 'UPDATE')").fetchone()
    if may == (True,):
        connection.execute(
            "UPDATE catvec_store.models SET location = %s WHERE model_id = %s", (location, model.model_id)
        )


def check_same(stored: StoredModel, spec: ModelSpec, fingerprint: str) -> None:
    """Raise ModelError unless the loaded model is the very one that the stored vectors come from."""
    differences = [
        f"{what} {found} instead of {expected}"
        for what, found, expected in (
            ("dimensions", spec.dims, stored.dims),
            ("source", spec.source, stored.source),
            ("weights", spec.revision[:19], stored.revision[:19]),
            ("preprocessing", fingerprint, stored.fingerprint),
        )
        if found != expected
    ]
    if differences:
        raise ModelError(
            f"model {stored.name!r} in this database was made by another model: {', '.join(differences)}",
            hint="give the new model a name of its own with --model-name NAME, so that its vectors stand beside "
            "the old ones",
        )


def check_storage(stored: StoredModel, storage: str | None) -> None:
    """Raise ModelError when another storage is asked for than the vectors have."""
    if storage not in {None, stored.storage}:
        raise ModelError(
            f"model {stored.name!r} stores its vectors as {stored.storage}, --storage is {storage!r}",
            hint=f"leave --storage out to go on with {stored.storage}; to change it, take the vectors away with "
            f"catvec models drop {stored.name}, and run again",
        )


def check_table(connection: Connection, model: StoredModel) -> None:
    """Raise ModelError when the vector table was made for another dimension or storage, or is gone."""
    row = connection.execute(
        "SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a"
        " WHERE a.attrelid = to_regclass(%s) AND a.attname = 'embedding'",
        (f"catvec_store.{model.table}",),
    ).fetchone()
    if row is None:
        raise ModelError(
            f"the table catvec_store.{model.table} of model {model.name!r} is gone",
            hint=_anew(model, "restore it from a backup"),
        )
    if not row[0].endswith(f"{model.storage}({model.dims})"):
        raise ModelError(
            f"table catvec_store.{model.table} holds {row[0]}, model {model.name!r} gives {model.dims} dimensions "
            f"to store as {model.storage}",
            hint=_anew(model, "somebody altered the table: restore it from a backup"),
        )


def _anew(model: StoredModel, cure: str) -> str:
    """How to go on without the table; the active model is not given up."""
    return cure if model.is_active else f"{cure}; or begin anew: catvec models drop {model.name}, and the same again"


def read_spec(connection: Connection, model: StoredModel) -> ModelSpec:
    """The vector space of a stored model."""
    [(stored,)] = connection.execute(SELECT_PREPROCESS, (model.model_id,)).fetchall()
    triples = {name: tuple(stored[name]) for name in ("mean", "std")}
    return ModelSpec(
        name=model.name,
        source=model.source,
        revision=model.revision,
        dims=model.dims,
        preprocess=PreprocessSpec(**{**stored, **triples}),
        has_text=model.has_text,
    )


def has_vectors(connection: Connection, model: StoredModel) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM catvec_store.{})").format(sql.Identifier(model.table))
    return connection.execute(query).fetchone() == (True,)


def mark_ready(connection: Connection, model: StoredModel) -> None:
    """A finished load makes a model ready to be activated."""
    if model.state == "loading":
        connection.execute("SELECT catvec_store.mark_ready(%s::smallint)", (model.model_id,))


def find_previous(connection: Connection) -> StoredModel | None:
    """The model that was active before the present one, as far as its vectors are still there."""
    with connection.cursor(row_factory=class_row(StoredModel)) as cursor:
        return cursor.execute(SELECT_PREVIOUS).fetchone()


def is_shown(connection: Connection, model: StoredModel) -> bool:
    """Whether the public view reads this model's vectors."""
    return connection.execute(IS_SHOWN, (f"catvec.{model.view}",)).fetchone() == (True,)


def count_shown(connection: Connection, model: StoredModel) -> int:
    """The images that apps find under this model; reads its whole table (0.1 s per 100,000)."""
    query = sql.SQL("SELECT count(*) FROM catvec.{}").format(sql.Identifier(model.view))
    [images] = connection.execute(query).fetchone() or (0,)
    return int(images)


def has_neighbours(connection: Connection, model: StoredModel) -> bool:
    """Whether neighbours were found beforehand under this model."""
    return connection.execute(HAS_NEIGHBOURS, (model.model_id,)).fetchone() == (True,)


def measure_vectors(connection: Connection, model: StoredModel) -> tuple[int, int]:
    """How many vectors the table of a model holds, and its bytes with its indexes; 0 and 0 if somebody removed it."""
    if connection.execute("SELECT to_regclass(%s)", (f"catvec_store.{model.table}",)).fetchone() == (None,):
        return 0, 0
    query = sql.SQL("SELECT count(*), pg_total_relation_size({}) FROM catvec_store.{}").format(
        sql.Literal(f"catvec_store.{model.table}"), sql.Identifier(model.table)
    )
    vectors, size_bytes = connection.execute(query).fetchone() or (0, 0)
    return int(vectors), int(size_bytes)


def activate_model(connection: Connection, name: str) -> None:
    """Let the public view and functions read this model, in the caller's transaction.

    Raises ModelError; psycopg's LockNotAvailable while others hold the view, after which the caller tries again.
    """
    connection.execute(LOCK_TIMEOUT)
    try:
        connection.execute("SELECT catvec_store.activate_model(%s)", (name,))
    except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState) as error:
        raise ModelError(str(error.diag.message_primary), hint=error.diag.message_hint) from error


def retire_model(connection: Connection, name: str) -> None:
    """Take a model's vectors away and keep its name, in the caller's transaction.

    Raises ModelError when it is active or somebody's own view stands on it; LockNotAvailable as `activate_model`.
    """
    connection.execute(LOCK_TIMEOUT)
    try:
        connection.execute("SELECT catvec_store.retire_model(%s)", (name,))
    except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState) as error:
        raise ModelError(str(error.diag.message_primary), hint=error.diag.message_hint) from error
    except psycopg.errors.DependentObjectsStillExist as error:
        depending = (error.diag.message_detail or "").splitlines()
        raise ModelError(
            f"model {name!r} cannot be dropped: {'; '.join(depending) or error.diag.message_primary}",
            hint="drop what stands on it first, or let it read catvec.image_embeddings",
        ) from error

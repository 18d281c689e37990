"""The models that this database knows: registering one, checking that it is still the same, switching to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.records import ModelSpec
    from pipeline.store.connect import Connection

SELECT_MODELS = """
SELECT m.model_id, m.name, m.source, m.revision, m.location, m.fingerprint, m.dims, m.has_text, m.state,
       m.activated_at
  FROM catvec.models m
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A row of catvec_store.models: `location` is where it was loaded from last, `table` its vector table."""

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

    @property
    def table(self) -> str:
        return f"emb_{self.name}"

    @property
    def is_active(self) -> bool:
        return self.state == "active"


def list_models(connection: Connection) -> list[StoredModel]:
    """All models, in the order they came."""
    with connection.cursor(row_factory=class_row(StoredModel)) as cursor:
        return cursor.execute(SELECT_MODELS + " ORDER BY m.model_id").fetchall()


def find_model(connection: Connection, name: str) -> StoredModel | None:
    with connection.cursor(row_factory=class_row(StoredModel)) as cursor:
        return cursor.execute(SELECT_MODELS + " WHERE m.name = %s", (name,)).fetchone()


def choose_model(connection: Connection, name: str | None) -> StoredModel:
    """The named model, or the active one. Raises ModelError."""
    models = list_models(connection)
    for model in models:
        if model.name == name or (name is None and model.is_active):
            return model
    known = ", ".join(model.name for model in models) or "none"
    if name is None:
        raise ModelError(f"no model is active yet, there are: {known}", hint="finish a first catvec run")
    raise ModelError(f"no model {name!r} in this database, there are: {known}", hint="see: catvec models")


def register_model(connection: Connection, spec: ModelSpec, fingerprint: str, *, location: str) -> StoredModel:
    """The stored model of this spec, with its table and view made on first sight; in the caller's transaction.

    Raises ModelError when the name stands for other weights, another preprocessing or other dimensions, or when
    the same model stands under another name: vectors of two models never meet in one table (law 6).
    """
    # two first runs at once: the second waits here, and finds the row
    connection.execute("LOCK TABLE catvec_store.models IN SHARE ROW EXCLUSIVE MODE")
    stored = find_model(connection, spec.name)
    if stored is not None:
        check_same(stored, spec, fingerprint)
        check_table(connection, stored)
        connection.execute(
            "UPDATE catvec_store.models SET location = %s WHERE model_id = %s AND location <> %s",
            (location, stored.model_id, location),
        )
        return stored
    twin = connection.execute(
        "SELECT name FROM catvec_store.models WHERE (source, revision, fingerprint) = (%s, %s, %s)",
        (spec.source, spec.revision, fingerprint),
    ).fetchone()
    if twin is not None:
        raise ModelError(f"this model is stored already, as {twin[0]!r}", hint=f"use it with --model-name {twin[0]}")
    connection.execute(
        "INSERT INTO catvec_store.models (name, source, revision, location, preprocess, fingerprint, dims, has_text)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            spec.name,
            spec.source,
            spec.revision,
            location,
            Jsonb(asdict(spec.preprocess)),
            fingerprint,
            spec.dims,
            spec.has_text,
        ),
    )
    connection.execute("SELECT catvec_store.create_model_table(%s)", (spec.name,))
    made = find_model(connection, spec.name)
    assert made is not None  # noqa: S101 - inserted two statements ago
    return made


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


def check_table(connection: Connection, model: StoredModel) -> None:
    """Raise ModelError when the vector table was made for another dimension, or is gone."""
    row = connection.execute(
        "SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a"
        " WHERE a.attrelid = to_regclass(%s) AND a.attname = 'embedding'",
        (f"catvec_store.{model.table}",),
    ).fetchone()
    if row is None:
        raise ModelError(
            f"the table catvec_store.{model.table} of model {model.name!r} is gone",
            hint="restore it from a backup, or run with --model-name NAME to make a new one",
        )
    if not row[0].endswith(f"({model.dims})"):
        raise ModelError(
            f"table catvec_store.{model.table} holds {row[0]}, model {model.name!r} gives {model.dims} dimensions",
            hint="somebody altered the table; run with --model-name NAME to make a new one",
        )


def has_vectors(connection: Connection, model: StoredModel) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM catvec_store.{})").format(sql.Identifier(model.table))
    return connection.execute(query).fetchone() == (True,)


def mark_ready(connection: Connection, model: StoredModel) -> None:
    """A finished load makes a model ready to be activated."""
    connection.execute(
        "UPDATE catvec_store.models SET state = 'ready' WHERE model_id = %s AND state = 'loading'",
        (model.model_id,),
    )


def activate_model(connection: Connection, name: str) -> None:
    """Let the public view and functions read this model, in the caller's transaction. Raises ModelError."""
    # readers queue behind a waiting switch, so it does not wait long; the caller tries again
    connection.execute("SET LOCAL lock_timeout = '2s'")
    try:
        connection.execute("SELECT catvec_store.activate_model(%s)", (name,))
    except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState) as error:
        raise ModelError(str(error.diag.message_primary), hint=error.diag.message_hint) from error

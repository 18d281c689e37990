"""Why PostgreSQL does not run a statement at all: the errors that clients of a vector table meet, with their cure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg

from pipeline.errors import ConfigError
from pipeline.store.explain.evidence import Reason

if TYPE_CHECKING:
    from pipeline.store.explain.planner import Database

_VECTORS = re.compile(r"\b(?:half|sparse)?vec(?:tor)?\b")
_TYPES = re.compile(r"operator does not exist: (.+?) (?:<=>|<->|<#>|<\+>) (.+)")
WAYS = "SELECT, WITH, TABLE or VALUES"


def find_refusal(error: psycopg.Error, database: Database) -> Reason:
    """The known reason behind an error. Raises ConfigError for all others."""
    message = str(error.diag.message_primary or error)
    missing = isinstance(error, psycopg.errors.UndefinedFunction | psycopg.errors.UndefinedObject)
    if missing and not database.is_on_path and _VECTORS.search(message):
        return _search_path(database.vector_schema)
    types = _TYPES.match(message)
    if types and _VECTORS.search(message):
        given = next((kind for kind in types.groups() if not _VECTORS.search(kind)), types[2])
        return Reason(
            key="missing_cast",
            why=f"the query vector comes as {given}, and no operator compares that with an embedding",
            cure="cast it: ::halfvec after the value or placeholder (a driver that names no type sends it as it is)",
        )
    if isinstance(error, psycopg.errors.UndefinedFunction) and "search_by_vector(" in message:
        return Reason(
            key="missing_cast",
            why="the query vector is no halfvec, and is not taken for one by itself",
            cure="cast it: ::halfvec; or call catvec.search_by_array, which takes float8[]",
        )
    if isinstance(error, psycopg.errors.DataException) and "dimensions" in message:
        return Reason(
            key="wrong_dimensions",
            why=f"the query vector belongs to another model ({message})",
            cure="encode the query with the model of the view, or read the view of the other: "
            "catvec.image_embeddings_<model>",
        )
    raise _translated(error, message) from error


def _search_path(schema: str) -> Reason:
    return Reason(
        key="search_path",
        why=f"the vector extension lives in schema {schema}, which is not on the search_path",
        cure=f"name it: OPERATOR({schema}.<=>) and ::{schema}.halfvec; or call the functions, which need no "
        f"search_path; or SET search_path = …, {schema}",
    )


def _translated(error: psycopg.Error, message: str) -> ConfigError:
    known: tuple[tuple[type[psycopg.Error], str, str], ...] = (
        (
            psycopg.errors.ReadOnlySqlTransaction,
            "the statement writes",
            "only statements that read are explained by running them",
        ),
        (
            psycopg.errors.SyntaxError,
            "it is no statement that PostgreSQL can explain",
            f"expected one {WAYS}, placeholders as $1, %s or %(name)s; an id with spaces goes with --product",
        ),
        (psycopg.errors.UndefinedTable, "it names what is not there", "the views are catvec.image_embeddings, …"),
        (
            psycopg.errors.InsufficientPrivilege,
            "this user may not do what it says",
            "apps read schema catvec and nothing else; rights are given by: catvec db grant",
        ),
    )
    if "multiple commands" in message:
        return ConfigError("there are several statements, expected one", hint="explain them one by one")
    for kind, what, hint in known:
        if isinstance(error, kind):
            return ConfigError(f"{what}: {message}", hint=hint)
    return ConfigError(f"PostgreSQL refuses the statement: {message}", hint=error.diag.message_hint)

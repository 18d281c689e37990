"""The SQL that the versions load, and the one function that loads it."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op


def execute_sql(name: str) -> None:
    """Run a file of this folder, with @VECTOR@ standing for the quoted schema of the vector extension."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    statements = text.replace("@VECTOR@", context.config.attributes["vector_schema"])
    # the driver's own cursor: the files hold % and : that SQLAlchemy would take for parameters
    op.get_bind().connection.cursor().execute(statements)

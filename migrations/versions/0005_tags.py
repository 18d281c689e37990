"""Tags, searching by them, and searching by several things at once."""

from __future__ import annotations

from migrations.sql import execute_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    execute_sql("0005_tables.sql")
    execute_sql("0005_views.sql")
    execute_sql("0005_functions.sql")

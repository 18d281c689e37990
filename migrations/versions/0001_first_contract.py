"""The first contract: private tables, public views, search functions."""

from __future__ import annotations

from migrations.sql import execute_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    execute_sql("0001_tables.sql")
    execute_sql("0001_views.sql")
    execute_sql("0001_functions.sql")

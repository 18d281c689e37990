"""Runs that do a share of the catalog each."""

from __future__ import annotations

from migrations.sql import execute_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    execute_sql("0004_tables.sql")
    execute_sql("0004_views.sql")

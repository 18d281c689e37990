"""Queries that apps can trust: right with every filter, batches, stored texts, neighbours, retired models."""

from __future__ import annotations

from migrations.sql import execute_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    execute_sql("0002_tables.sql")
    execute_sql("0002_views.sql")
    execute_sql("0002_functions.sql")

"""Unattended runs: what left and when, when failures are tried again, what each run came to."""

from __future__ import annotations

from migrations.sql import execute_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    execute_sql("0003_tables.sql")
    execute_sql("0003_views.sql")

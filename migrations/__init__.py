"""Alembic environment, versions, and the SQL files they load; carried by the wheel."""

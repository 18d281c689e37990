"""Alembic's environment. Only `pipeline.store.migrate` runs it, and hands it a connection.

The migrations are SQL by hand, so there is no metadata to compare with; one table per model is made by
`catvec_store.create_model_table`, not here.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema="catvec_store",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()

"""Alembic's entry: the migrations run on the connection and inside the transaction of the caller."""

from __future__ import annotations

from alembic import context

from broker.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,  # SQLite too: the connection begins its transactions itself
)
context.run_migrations()

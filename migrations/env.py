"""Alembic's entry: runs in the connection, and so in the transaction, that `gateway.store.migration` hands over."""

from alembic import context

from gateway.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()

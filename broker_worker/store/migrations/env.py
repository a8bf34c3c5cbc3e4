"""Run by alembic: upgrade our own schema, over a connection that schema.py made, or as SQL."""

from __future__ import annotations

from alembic import context

from broker_worker.store.schema import VERSION_TABLE


def run() -> None:
    """Apply the revisions inside one transaction, under a lock that other migrations wait for."""
    attributes = context.config.attributes
    schema: str = attributes["schema"]
    connection = attributes.get("connection")
    if connection is None:
        context.configure(
            dialect_name="postgresql",
            dialect_opts={"paramstyle": "named"},  # the default doubles every percent sign
            as_sql=True,
            literal_binds=True,
            version_table=VERSION_TABLE,
            version_table_schema=schema,
        )
    else:
        context.configure(connection=connection, version_table=VERSION_TABLE, version_table_schema=schema)
    with context.begin_transaction():
        context.run_migrations()


run()

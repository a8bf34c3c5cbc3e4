"""Applying the revisions in `migrations`, on a connection or as SQL: the only importer of alembic."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from broker_worker.store.database import Database


def upgrade(connection: Connection, database: Database) -> None:
    """Apply what is missing, inside the transaction of `connection`; the caller holds the lock."""
    exists = connection.execute(
        text("SELECT 1 FROM pg_namespace WHERE nspname = :name"), {"name": database.schema_name}
    ).scalar()
    if not exists:  # a role without CREATE on the database can migrate inside a schema made for it
        connection.exec_driver_sql(f"CREATE SCHEMA {database.schema}")
    command.upgrade(config(database.schema_name, connection=connection), "head")


def migration_sql(schema: str) -> str:
    """The SQL that makes the schema from nothing, for people who apply it themselves."""
    buffer = io.StringIO()
    to_buffer = config(schema)
    to_buffer.output_buffer = buffer
    command.upgrade(to_buffer, "head", sql=True)
    return f'CREATE SCHEMA IF NOT EXISTS "{schema}";\n\n{buffer.getvalue()}'


def config(schema: str, *, connection: Connection | None = None) -> Config:
    """Say to alembic where the revisions are, and to them what `migrations/env.py` wants to know."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    attributes: dict[str, Any] = made.attributes
    attributes["schema"] = schema
    attributes["connection"] = connection
    return made

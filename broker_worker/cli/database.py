"""`broker-worker migrate` and `grants`."""
# ruff: noqa: PLC0415 - a command imports what it needs when it runs

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from broker_worker.cli.session import load_settings, with_database

if TYPE_CHECKING:
    from broker_worker.store.database import Database


def migrate(
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead; needs no database.")] = False,
) -> None:
    """Bring the schema up to date. Safe to repeat, and safe while daemons run.

    Example: `broker-worker migrate`, or `broker-worker migrate --sql > schema.sql`
    """
    from broker_worker.store.schema import check_schema
    from broker_worker.store.schema import migrate as migrate_schema

    if sql:
        from broker_worker.store.migration import migration_sql

        typer.echo(migration_sql(load_settings().database_schema), nl=False)
        return

    async def bring_up_to_date(database: Database) -> str:
        await migrate_schema(database)
        return await check_schema(database)

    revision = with_database(bring_up_to_date, checks_schema=False)
    typer.echo(f"the schema is at revision {revision}")


def grants(
    role: Annotated[str, typer.Argument(help="The role that the daemon connects as.")],
) -> None:
    """Print the rights that a runtime role needs which does not own the schema.

    Example: `broker-worker grants app_runtime | psql "$OWNER_URL"`
    """
    from broker_worker.store.schema import grants_sql

    if not role.strip() or '"' in role or not role.isprintable():
        raise typer.BadParameter(f"{role!r} can't be the name of a role")
    typer.echo(grants_sql(load_settings().database_schema, role), nl=False)


def add_to(app: typer.Typer) -> None:
    """Register."""
    app.command()(migrate)
    app.command()(grants)

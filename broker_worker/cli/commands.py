"""How a command ends when it can't do its work."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from broker_worker.errors import BrokerWorkerError, ConfigurationError
from broker_worker.failure import printable

FAILED = 1
MISUSED = 2


class Commands(TyperGroup):
    """Our own errors are their text on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's, which typer carries under a private name
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokerWorkerError as error:
            typer.echo("\n".join(map(printable, str(error).split("\n"))), err=True)
            raise typer.Exit(MISUSED if isinstance(error, ConfigurationError) else FAILED) from None

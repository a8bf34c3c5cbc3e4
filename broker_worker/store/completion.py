"""The one statement that ends a task in a transaction of its handler's own, with whatever driver."""

from __future__ import annotations

from uuid import UUID

from broker_worker.context import Completion
from broker_worker.step import Claim
from broker_worker.store.database import quoted
from broker_worker.store.outcomes import success_reply


def completion(claim: Claim, result: str | None, *, schema: str, worker: UUID) -> Completion:
    """Build the statement for a success with `result`, JSON; its parameters are plain numbers and text.

    It calls `complete` of the schema, which raises SQLSTATE BW001 where the claim is lost. The
    task's body stays where it is; unless bodies are kept, the pruner deletes it within minutes.
    """
    row = claim.row
    reply = success_reply(row, result).body.decode() if row.reply_to is not None else None
    return Completion(
        f"SELECT {quoted(schema)}.complete(CAST(%s AS bigint), CAST(%s AS integer), CAST(%s AS uuid), "
        "CAST(%s AS json), CAST(%s AS text))",
        (claim.key, claim.epoch, str(worker), result, reply),
    )

"""The handler in a child process, on its own: a daemon that has one starts a child before it is ready."""

from __future__ import annotations

from broker_worker import Registry, SyncContext
from tests.support.handlers import note

registry = Registry()


@registry.task("child", process=True)
def in_child(context: SyncContext) -> str:
    note(context)
    return "done"

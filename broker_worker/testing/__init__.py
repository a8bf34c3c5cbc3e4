"""For tests of handlers: the worker in memory and in virtual time, and contexts without a worker."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_worker.testing.clock import VirtualClock, VirtualLoop, in_virtual_time
    from broker_worker.testing.contexts import RecordingHands, make_context, make_sync_context
    from broker_worker.testing.errors import HarnessError
    from broker_worker.testing.harness import Harness
    from broker_worker.testing.views import AttemptView, LetterView, SentView, TaskView

__all__ = [
    "AttemptView",
    "Harness",
    "HarnessError",
    "LetterView",
    "RecordingHands",
    "SentView",
    "TaskView",
    "VirtualClock",
    "VirtualLoop",
    "in_virtual_time",
    "make_context",
    "make_sync_context",
]

_MODULES = ("clock", "contexts", "errors", "harness", "views")


def __getattr__(name: str) -> object:
    """Import what is asked for, when it is: pytest imports this package at each start, for its plugin."""
    if name in __all__:
        for module in _MODULES:
            found: object = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a mutant is: the daemon's own code with one mistake in it, for as long as a context is entered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

Patch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake that somebody could make, and the invariant that has to tell it."""

    name: str
    mistake: str
    killed_by: str
    patch: Patch


def method(owner: type, name: str, make: Callable[[Any], Callable[..., Any]]) -> Patch:
    """Replace a method; `make` gets the one that was there."""
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


def function(original: Callable[..., Any], mutated: Callable[..., Any]) -> Patch:
    """Replace a function in every module of the daemon that has imported it."""

    @contextmanager
    def patched() -> Iterator[None]:
        with ExitStack() as stack:
            for module in [each for name, each in sys.modules.items() if name.startswith("broker_worker.")]:
                for name in [name for name, value in vars(module).items() if value is original]:
                    stack.enter_context(mock.patch.object(module, name, mutated))
            yield

    return patched


def together(*patches: Patch) -> Patch:
    """Several patches that are one mistake."""

    @contextmanager
    def patched() -> Iterator[None]:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            yield

    return patched

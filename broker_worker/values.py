"""Dataclasses for values of which each message makes some.

`from broker_worker.values import dataclass` in place of the one in `dataclasses`: the type checker sees the
same, and refuses to assign to a field of a frozen one. The interpreter does not: a frozen dataclass sets each
field through `object.__setattr__`, which takes 0.09 µs; a message has some hundred of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses
    from collections.abc import Callable

    def dataclass(*, frozen: bool = False, **options: bool) -> Callable[[type], type]:
        """Make a dataclass that can be hashed, as a frozen one can, and assigned to."""
        return dataclasses.dataclass(unsafe_hash=frozen, **options)


__all__ = ["dataclass"]

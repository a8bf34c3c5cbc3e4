"""One contestant, and what its program has to do.

A contestant is a program `python -m benchmarks.runners.<runner>`. With the argument `work` it works on the
tasks until SIGTERM. Where it `fills` its queue itself, it is run with `fill` before that: it puts as many
tasks as BENCH_MESSAGES says where its system takes them, and ends. Where it does not, they are put as plain
messages into a durable quorum queue (`benchmarks.prefill`). Both get

- `BENCH_AMQP_URL`: a virtual host of its own, empty before `fill`,
- `BENCH_DATABASE_URL`: a database of its own, empty before `fill`,
- `BENCH_QUEUE`: the queue that holds the tasks, where that is a queue of RabbitMQ,
- `BENCH_MESSAGES`: how many there are,
- `BENCH_SIZE`: the bytes of each body,
- `BENCH_TALLY`: the file to which each call of a handler adds a stamp (`benchmarks.tally`); not for `fill`,

and what the contestant's own `variables` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached beside it: the rate of row `of` divided by that of row `to`, at least."""

    least: float
    of: str = "broker_worker"
    to: str = ""  # empty: the contestant's own row


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of the table."""

    name: str  # its key in latest.json and in --only
    title: str  # for people
    runner: str  # the module in benchmarks/runners
    persists: str = "nothing"  # for people: what is in a database when it is done
    setting: str = ""  # one line: what its documentation recommends, and we set
    fills: bool = False  # whether `fill` of its runner makes the tasks
    share: float = 1.0  # the part of the usual number of messages that it gets: slow ones less
    python: Literal["ours", "peers"] = "ours"  # .venv or .venv-bench
    variables: Mapping[str, str] = field(default_factory=dict)  # further environment variables
    # SQL that counts what is finished in its database: the run lasts until that is all. None: until the last
    # call of a handler.
    finished: str | None = None
    queue: str | None = "bench"  # what BENCH_QUEUE says, and must be empty at the end; None: no RabbitMQ
    # the name of the row for which the fastest of several like this one stands, where they are several
    variant_of: str | None = None
    # Where the clock begins: at the first call of a handler, or at the first delivery, for who does something
    # with all messages before the first call
    begins_at: Literal["call", "delivery"] = "call"
    goal: Goal | None = None
    is_quick: bool = True  # whether it takes part in `make bench-quick`

"""One contestant, and what its program has to do.

A contestant is a program `python -m benchmarks.runners.<runner>`. With the argument `fill` it puts
BENCH_MESSAGES tasks where its system takes them and ends; with `work` it works on them until SIGTERM. Both get

- `BENCH_AMQP_URL`: a virtual host of its own, empty before `fill`,
- `BENCH_DATABASE_URL`: a database of its own, empty before `fill`,
- `BENCH_QUEUE`: the queue that holds the tasks, where that is a queue of RabbitMQ,
- `BENCH_MESSAGES`: how many there are,
- `BENCH_TALLY`: the file to which each call of a handler adds a stamp (`benchmarks.tally`),

and what the contestant's own `variables` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of the table."""

    name: str  # its key in latest.json and in --only
    title: str  # for people
    runner: str  # the module in benchmarks/runners
    persists: str = "nothing"  # for people: what is in a database when it is done
    setting: str = ""  # one line: what its documentation recommends, and we set
    share: float = 1.0  # the part of the usual number of messages that it gets: slow ones less
    python: Literal["ours", "peers"] = "ours"  # .venv or .venv-bench
    variables: Mapping[str, str] = field(default_factory=dict)  # further environment variables
    # SQL that counts what is finished in its database: the run lasts until that is all. None: until the last
    # call of a handler.
    finished: str | None = None
    # the RabbitMQ queue that must be empty at the end, None where there is no such queue
    empties: str | None = "bench"
    goal: float | None = None  # the least ratio of broker_worker to it

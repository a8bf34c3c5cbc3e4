"""The publisher of a run: a program of its own that trusts nothing but confirms.

It publishes what is planned, when it is due, and writes each step down before and after. It takes orders on
its standard input, one a line: `hold QUEUE` and `release QUEUE`; it answers each with a line once that is so.
It ends by itself when all is published and answered, or when the input ends.
"""

from __future__ import annotations

import argparse
import heapq
import os
import select
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.faults.amqp_client import Answer, Connection, Properties
from tests.faults.records import Publish, digest_of, line
from tests.faults.workload import Planned, sha256, workload

MOST_UNANSWERED = 500
SECONDS_TO_ANSWER = 20.0  # then the connection is given up
SECONDS_BETWEEN_TRIES = 0.25
SHARE_OF_REPEATS = 0.7  # of what nobody knows to have arrived
TICK = 0.05
MOST_AT_ONCE = 100


class Publisher:
    """One program's state."""

    def __init__(self, url: str, *, exchange: str, file: Path, plan: deque[Planned], random: Random) -> None:
        self._url = url
        self._exchange = exchange
        self._log = file.open("a")
        self._plan = plan
        self._random = random
        self._orders = b""
        self._connection: Connection | None = None
        self._next_try = 0.0
        self._again: list[tuple[float, int, Planned]] = []  # to be published once more
        self._held: dict[str, deque[Planned]] = {}
        self._waiting_for: list[str] = []  # orders to hold, to be answered when nothing is under way
        self._number = 0
        self._sending: deque[tuple[int, Planned]] = deque()  # invoked, and not sent yet
        self._unanswered: dict[int, tuple[int, float, Planned]] = {}  # by tag: number, when, what
        self._began = time.time()
        self.counts = {"ok": 0, "fail": 0, "info": 0}

    def run(self) -> None:
        """Publish until all is done, or nobody listens any more."""
        while self._plan or self._again or self._held or self._unanswered:
            if not self._obey():
                return
            try:
                self._work()
            except OSError:
                self._lose()
            self._log.flush()
            os.fsync(self._log.fileno())
        say(f"done {self.counts}")

    def _work(self) -> None:
        if self._connection is None:
            if time.monotonic() < self._next_try:
                time.sleep(TICK)
                return
            self._connection = Connection(self._url)
        self._invoke(self._due())
        while self._sending:
            number, planned = self._sending.popleft()
            # also what was sent in part only may have arrived
            self._unanswered[self._connection.published + 1] = number, time.monotonic(), planned
            self._connection.publish(self._exchange, planned.queue, self._timed(planned), planned.body)
        for answer in self._connection.answers(TICK):
            self._answered(answer)
        oldest = min((at for _, at, _ in self._unanswered.values()), default=None)
        if oldest is not None and time.monotonic() - oldest > SECONDS_TO_ANSWER:
            raise TimeoutError

    def _due(self) -> list[Planned]:
        """Take what is due now and may be published."""
        now, room = time.time() - self._began, min(MOST_AT_ONCE, MOST_UNANSWERED - len(self._unanswered))
        due: list[Planned] = []
        while len(due) < room and self._again and self._again[0][0] <= now:
            due.append(heapq.heappop(self._again)[2])
        while len(due) < room and self._plan and self._plan[0].due <= now:
            due.append(self._plan.popleft())
        for planned in due:
            if planned.queue in self._held:
                self._held[planned.queue].append(planned)
        return [planned for planned in due if planned.queue not in self._held]

    def _invoke(self, planned: list[Planned]) -> None:
        """Write down what will be tried, before any of it is."""
        for each in planned:
            self._number += 1
            self._sending.append((self._number, each))
            self._write(
                Publish(
                    kind="invoke",
                    number=self._number,
                    queue=each.queue,
                    name=each.properties.type,
                    id=each.properties.message_id,
                    digest=digest_of(each.properties.content_type, each.body),
                    body=sha256(each.body),
                    expects=each.expects,
                    reply_to=each.properties.reply_to,
                    deliver_at=self._moment(each, each.starts_after),
                    not_after=self._moment(each, each.starts_within),
                )
            )
        self._log.flush()
        os.fsync(self._log.fileno())

    def _timed(self, planned: Planned) -> Properties:
        """The properties, with the moments that it names."""
        moments = {
            "deliver-at": self._moment(planned, planned.starts_after),
            "not-after": self._moment(planned, planned.starts_within),
        }
        named = {name: str(moment) for name, moment in moments.items() if moment is not None}
        return replace(planned.properties, headers=named) if named else planned.properties

    def _moment(self, planned: Planned, seconds: float | None) -> float | None:
        """The same each time that the message is published: it counts from when it was due."""
        return None if seconds is None else round(self._began + planned.due + seconds, 3)

    def _answered(self, answer: Answer) -> None:
        for tag in answer.tags:
            number, _, planned = self._unanswered.pop(tag)
            self._end(number, planned, answer.kind)
        self._say_held()

    def _end(self, number: int, planned: Planned, kind: str) -> None:
        self._write(Publish(kind=kind, number=number))  # type: ignore[arg-type]
        self.counts[kind] += 1
        if kind == "fail" or (kind == "info" and self._random.random() < SHARE_OF_REPEATS):
            due = time.time() - self._began + self._random.uniform(0.1, 2.0)
            heapq.heappush(self._again, (due, number, planned))

    def _lose(self) -> None:
        """Give the connection up: what is unanswered stays unknown, what was not sent has failed."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._next_try = None, time.monotonic() + SECONDS_BETWEEN_TRIES
        unanswered, self._unanswered = self._unanswered, {}
        for number, _, planned in unanswered.values():
            self._end(number, planned, "info")
        while self._sending:
            self._end(*self._sending.popleft(), "fail")
        self._say_held()

    def _obey(self) -> bool:
        """Take orders; whether anybody still gives some."""
        while select.select([sys.stdin], [], [], 0)[0]:
            data = os.read(sys.stdin.fileno(), 4096)
            if not data:
                return False
            self._orders += data
        *lines, self._orders = self._orders.split(b"\n")
        for each in lines:
            order, _, queue = each.decode().partition(" ")
            if order == "hold":
                self._held.setdefault(queue, deque())
                self._waiting_for.append(queue)
                self._say_held()
            else:
                self._plan.extendleft(reversed(self._held.pop(queue, deque())))
                say(f"released {queue}")
        return True

    def _say_held(self) -> None:
        under_way = {planned.queue for _, _, planned in self._unanswered.values()}
        for queue in [queue for queue in self._waiting_for if queue not in under_way]:
            self._waiting_for.remove(queue)
            say(f"held {queue}")

    def _write(self, record: Publish) -> None:
        record.at, record.order = time.time(), self._number
        self._log.write(line(record) + "\n")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    plan = deque(workload(options.seed, messages=options.messages, seconds=options.seconds))
    publisher = Publisher(
        os.environ["CHAOS_AMQP_URL"],
        exchange=f"{options.prefix}.tasks",
        file=options.file,
        plan=plan,
        random=Random(f"publisher {options.seed}"),
    )
    publisher.run()


if __name__ == "__main__":
    main()

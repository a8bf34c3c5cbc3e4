"""The great faults of a simulation: what is broken at which moment, or at which step, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from broker_worker.message import EPOCH, MAX_ID_LENGTH, TASK_ID, TaskId
from broker_worker.task import TERMINAL, TaskState
from tests.simulation.broker import Connection, Held
from tests.simulation.process import SimulatedProcess
from tests.simulation.world import Armed

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

STEPS = (
    "delivered",
    "before arrive",
    "executed arrive",
    "told arrive",
    "before record",
    "executed record",
    "told record",
    "before commit",
    "executed commit",
    "told commit",
    "before ack",
    "acked",
    "before publish",
    "published",
    "before delete",
    "executed delete",
    "executed take",
    "told take",
    "executed rescue",
    "executed release_forgotten",
    "executed beat",
    "executed leave",
    "executed bury",
    "told bury",
)


class Plan:
    """Draws the great faults, and does them."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._random = simulation.world.random

    def draw(self, seconds: float) -> None:
        """Plan faults for the next `seconds`."""
        kinds, weights = [kind for _, kind in KINDS], [weight for weight, _ in KINDS]
        for _ in range(self._random.randint(4, 18)):
            (do,) = self._random.choices(kinds, weights)
            self._world.later(self._random.random() * seconds, self._do, do)

    def _do(self, do: Callable[[Plan], None]) -> None:
        if not self._world.is_healed:
            do(self)

    # --- processes -------------------------------------------------------------------

    def crash(self) -> None:
        if (process := self._some_process()) is not None:
            process.crash()

    def crash_at_a_step(self) -> None:
        """Kill the process that passes some step next, right there."""

        def crash(process: SimulatedProcess) -> None:
            self._world.counts["crash_at_a_step"] += 1
            process.crash()

        step = self._random.choice(STEPS)
        self._world.armed.append(Armed(step, self._random.randint(1, 12), crash))

    def terminate(self) -> None:
        """SIGTERM, and sometimes a second one."""
        process = self._some_process()
        if process is None or process.is_ending:
            return
        self._world.broke("sigterm", process.name)
        process.ask_to_stop()
        if self._random.random() < 0.4:
            self._world.broke("sigterm_twice", process.name)
            self._world.later(self._random.random() * 4, process.ask_to_stop)
        elif self._random.random() < 0.3:  # the supervisor loses its patience
            self._world.later(self._random.random() * 10, self._kill, process)

    def terminate_at_a_step(self) -> None:
        def terminate(process: SimulatedProcess) -> None:
            self._world.broke("sigterm", process.name)
            process.ask_to_stop()

        step = self._random.choice(STEPS)
        self._world.armed.append(Armed(step, self._random.randint(1, 12), terminate))

    def pause(self) -> None:
        if (process := self._some_process()) is not None:
            process.pause(self._pause())

    def pause_at_a_step(self) -> None:
        """Stop the process that passes some step next, for so long that it may be taken for dead."""

        def pause(process: SimulatedProcess) -> None:
            process.pause(self._pause())

        step = self._random.choice(STEPS)
        self._world.armed.append(Armed(step, self._random.randint(1, 12), pause))

    def deploy(self) -> None:
        """Replace all, one after the other."""
        self._world.broke("deploy")
        for number, process in enumerate(self._simulation.living):
            self._world.later(number * 2.0, process.ask_to_stop)

    # --- the broker --------------------------------------------------------------------

    def end_connection(self) -> None:
        if (connection := self._some_connection()) is not None:
            self._world.broke("connection_closed", connection.name)
            connection.end("CONNECTION_FORCED")

    def silence_connection(self) -> None:
        if (connection := self._some_connection()) is not None and not connection.is_silent:
            number = self._world.broke("half_open", connection.name, lasts=True)
            noticed = connection.fall_silent()
            self._world.later(noticed, self._world.mended, number, "half_open", connection.name)

    def close_channel(self) -> None:
        if (connection := self._some_connection()) is not None:
            open_ = [each for each in connection.channels if each.is_open]
            if open_:
                self._world.broke("channel_closed", connection.name)
                self._random.choice(open_).close_here("PRECONDITION_FAILED")

    def cancel_consumer(self) -> None:
        consumers = [each for queue in self._simulation.broker.queues.values() for each in queue.consumers]
        if consumers:
            channel = self._random.choice(consumers)
            self._world.broke("consumer_cancelled", channel.connection.name)
            channel.cancel_here()

    def restart_broker(self) -> None:
        broker, world = self._simulation.broker, self._world
        if not broker.is_up:
            return
        number = world.broke("broker_restart", lasts=True)
        broker.stop()

        def start() -> None:
            broker.start()
            world.mended(number, "broker_restart")

        world.later(self._duration(0.2, 15), start)

    def reorder(self) -> None:
        queue = self._random.choice(self._simulation.broker.work_queues)
        if len(queue.ready) > 1:
            self._world.broke("reordered", queue.name)
            self._random.shuffle(queue.ready)

    def deliver_twice(self) -> None:
        """Let a message be there twice, as after a publisher that did not hear of its confirm."""
        queue = self._random.choice(self._simulation.broker.work_queues)
        unacked = [each for channel in queue.consumers for each in channel.unacked.values()]
        held = [each for each in (*queue.ready, *unacked) if _has_id(each)]
        if held:
            self._world.broke("duplicated", queue.name)
            one = self._random.choice(held)
            queue.put(Held(one.properties, one.body, one.exchange, one.routing_key))

    def lose_copies(self) -> None:
        """Lose what only the database can make up for."""
        if self._simulation.broker.lose(self._is_copy):
            self._world.broke("copies_lost")

    def crash_and_lose(self) -> None:
        """Kill a process, and lose the messages that it held."""
        process = self._some_process()
        if process is None:
            return
        process.crash()
        dead = process.worker

        def was_held(queue: str, held: Held) -> bool:
            task = TaskId(queue, held.properties.type or "", _id(held))
            row = self._simulation.database.tasks.get(task)
            is_running = row is not None and row.task.state is TaskState.RUNNING
            return is_running and row is not None and row.task.worker == dead

        def lose() -> None:
            if self._simulation.broker.lose(was_held):
                self._world.broke("messages_of_the_dead_lost")

        self._world.later(0.5 + self._random.random(), lose)

    @staticmethod
    def _is_copy(_: str, held: Held) -> bool:
        epoch = held.properties.headers.get(EPOCH)
        return isinstance(epoch, int) and epoch > 0

    # --- the database ------------------------------------------------------------------

    def break_database(self) -> None:
        faults, world = self._simulation.faults, self._world
        if faults.outage:
            return
        how = self._random.choice(("refuses", "hangs"))
        number = world.broke(f"database_{how}", lasts=True)
        faults.outage = "refuses" if how == "refuses" else "hangs"

        def mend() -> None:
            faults.outage = ""
            world.mended(number, f"database_{how}")

        world.later(self._duration(0.2, 25), mend)

    def step_clock(self) -> None:
        self._world.step_clock(timedelta(seconds=self._duration(1, 150)))

    # --- operators -----------------------------------------------------------------------

    def cancel(self) -> None:
        database = self._simulation.database
        rows = [row.task for row in database.tasks.values() if row.task.state not in TERMINAL]
        if rows:
            self._world.counts["cancel"] += 1
            database.begin(actor="operator")
            database.cancel(self._random.choice(rows).id)

    def cancel_running(self) -> None:
        database = self._simulation.database
        rows = [row.task for row in database.tasks.values() if row.task.state is TaskState.RUNNING]
        if rows:
            self._world.counts["cancel_running"] += 1
            database.begin(actor="operator")
            database.cancel(self._random.choice(rows).id)

    def replay(self) -> None:
        database = self._simulation.database
        letters = [each for each in database.letters.values() if each.task_key is not None]
        if not letters:
            return
        letter = self._random.choice(letters)
        database.begin(actor="operator")
        if database.replay(letter):
            self._world.counts["replay"] += 1
            self._world.later(self._random.random() * 3, self._replay_again, letter.id)

    def _replay_again(self, letter: object) -> None:
        database = self._simulation.database
        found = [each for each in database.letters.values() if each.id == letter]
        if found and not self._world.is_over:
            self._world.counts["replay_again"] += 1
            database.begin(actor="operator")
            database.replay(found[0])

    def cancel_and_crash(self) -> None:
        """Let an operator's cancel meet a worker that dies of something else."""
        process = self._some_process()
        database = self._simulation.database
        rows = [row.task for row in database.tasks.values() if process and row.task.worker == process.worker]
        running = [task for task in rows if task.state is TaskState.RUNNING]
        if process is not None and running:
            self._world.counts["cancel_and_crash"] += 1
            database.begin(actor="operator")
            database.cancel(self._random.choice(running).id)
            self._world.later(self._random.random() * 0.5, self._kill, process)

    # --- which -----------------------------------------------------------------------

    def _some_process(self) -> SimulatedProcess | None:
        living = [each for each in self._simulation.living if not each.is_paused]
        return self._random.choice(living) if living else None

    def _some_connection(self) -> Connection | None:
        connections = self._simulation.broker.connections
        return self._random.choice(connections) if connections else None

    def _kill(self, process: SimulatedProcess) -> None:
        if not self._world.is_healed:
            process.crash()

    def _pause(self) -> float:
        """Short, or so long that it is taken for dead and its messages are delivered to others."""
        return self._duration(1, 20) if self._random.random() < 0.4 else self._random.uniform(25, 60)

    def _duration(self, least: float, most: float) -> float:
        return math.exp(self._random.uniform(math.log(least), math.log(most)))


KINDS: list[tuple[int, Callable[[Plan], None]]] = [
    (6, Plan.crash),
    (12, Plan.crash_at_a_step),
    (5, Plan.terminate),
    (4, Plan.terminate_at_a_step),
    (5, Plan.pause),
    (8, Plan.pause_at_a_step),
    (2, Plan.deploy),
    (6, Plan.end_connection),
    (3, Plan.silence_connection),
    (6, Plan.close_channel),
    (4, Plan.cancel_consumer),
    (4, Plan.restart_broker),
    (5, Plan.reorder),
    (5, Plan.deliver_twice),
    (2, Plan.lose_copies),
    (1, Plan.crash_and_lose),
    (3, Plan.cancel_and_crash),
    (6, Plan.break_database),
    (1, Plan.step_clock),
    (5, Plan.cancel),
    (5, Plan.cancel_running),
    (6, Plan.replay),
]


def _has_id(held: Held) -> bool:
    """Whether two of it are one task."""
    return 0 < len(_id(held)) <= MAX_ID_LENGTH


def _id(held: Held) -> str:
    return str(held.properties.headers.get(TASK_ID) or held.properties.message_id or "")

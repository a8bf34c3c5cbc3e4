"""Handlers for the tests of child processes: well-behaved ones, and every way to end a process."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydantic import BaseModel

from broker_worker import BrokerWorkerError, Context, GiveUp, Registry, Retry, SyncContext
from broker_worker.context import current_task

registry = Registry()
resourceful = Registry()
MIB = 2**20


class Sum(BaseModel):
    total: int
    pid: int


class Connection:
    def __init__(self, path: str) -> None:
        self.path = path


@resourceful.resource
async def connection() -> AsyncIterator[Connection]:
    await asyncio.sleep(0)
    yield Connection("an address")
    if closed := os.environ.get("CLOSED"):
        await asyncio.to_thread(Path(closed).write_text, "closed")


@registry.task("add", process=True)
def add(a: int, b: int) -> Sum:
    return Sum(total=a + b, pid=os.getpid())


@registry.task("add_async", process=True)
async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@resourceful.task("of_class", process=True)
class OfClass:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(self) -> str:
        return self._connection.path


@registry.task("own_loop", process=True)
def own_loop() -> str:
    async def inside() -> str:
        return "inside"

    return asyncio.run(inside())


@registry.task("print", process=True)
def prints(text: str) -> None:
    print(text)  # noqa: T201
    os.write(2, text.encode())


@registry.task("log", process=True)
def logs() -> None:
    logging.getLogger("tests").warning("a line from a child")


@registry.task("measure", process=True)
def measure(text: str) -> str:
    return text


@registry.task("decide", process=True)
def decide(how: str) -> None:
    if how == "give_up":
        raise GiveUp("no use")
    if how == "retry":
        raise Retry("later", delay=7)
    if how == "exit":
        sys.exit(3)
    fail(how)


def fail(how: str) -> None:
    error = ValueError(f"{how} is unheard of")
    error.add_note("a note")
    raise error


@registry.task("fail_async", process=True)
async def fail_async() -> None:
    raise ValueError("on a loop")


@registry.task("final", process=True, give_up_on=LookupError)
def final() -> None:
    raise KeyError("absent")


@registry.task("unserialisable", process=True)
def unserialisable() -> object:
    return object()


@registry.task("surroundings", process=True)
def surroundings() -> dict[str, Any]:
    listing = Path("/proc/self/fd")
    descriptors = [str(entry.readlink()) for entry in listing.iterdir() if entry.is_symlink()]
    return {
        "environment": dict(os.environ),
        "descriptors": descriptors,
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "oom_score": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


@registry.task("facts", process=True)
async def facts(context: Context) -> dict[str, Any]:
    current = current_task.get()
    return {
        "id": context.task_id,
        "attempt": context.attempt,
        "max_attempts": context.max_attempts,
        "may_be_repeat": context.may_be_repeat,
        "deadline": context.deadline.isoformat(),
        "saved": context.saved,
        "headers": {name: repr(value) for name, value in context.message.headers.items()},
        "current": current is not None and current.name,
    }


@registry.task("reach_out", process=True)
async def reach_out(context: Context) -> str:
    await context.progress(0.5, "half")
    await context.checkpoint({"page": 3})
    await context.send(add, {"a": 1, "b": 2}, delay=5, id="next")
    await context.send_event({"is": "over"}, exchange="events", routing_key="a.b")
    return "reached"


@registry.task("reach_out_plainly", process=True)
def reach_out_plainly(context: SyncContext) -> str:
    context.progress(1)
    context.checkpoint([1, 2])
    return context.send("elsewhere", queue="other", id="next")


@registry.task("save_impatiently", process=True)
async def save_impatiently(path: str, context: Context) -> str:
    """Leave off a checkpoint, say so by a file, and make another."""
    try:
        async with asyncio.timeout(0):
            await context.checkpoint("first")
    except TimeoutError:
        Path(path).write_text("left off")
    await context.checkpoint("second")
    return "saved"


@registry.task("report_often", process=True)
def report_often(context: SyncContext) -> None:
    for number in range(100_001):
        context.progress(number / 100_000)


@registry.task("complete", process=True)
def complete(context: SyncContext) -> list[Any]:
    completion = context.completion(Sum(total=1, pid=2))
    return [completion.sql, *completion.parameters]


REFUSALS: SimpleQueue[str] = SimpleQueue()


@registry.task("outlive", process=True)
def outlive(context: SyncContext) -> None:
    """Leave a thread that goes on to speak in this attempt's name."""

    def speak() -> None:
        try:
            while True:
                context.progress(0.25, "from the grave")
        except BrokerWorkerError as error:
            REFUSALS.put(str(error))

    threading.Thread(target=speak, daemon=True).start()


@registry.task("refusal", process=True)
def refusal() -> str:
    return REFUSALS.get(timeout=30)


@registry.task("wait", process=True)
def wait(path: str) -> None:
    """Say which process waits, and wait for the end."""
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(3600)


@registry.task("wait_in_c", process=True)
def wait_in_c(path: str) -> None:
    """Wait where no thread of this process can run."""
    Path(path).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(90)


@registry.task("wait_with_offspring", process=True)
def wait_with_offspring(path: str) -> None:
    sleeper = subprocess.Popen(["sleep", "3600"])
    Path(path).write_text(json.dumps([os.getpid(), sleeper.pid]))
    sleeper.wait()


@registry.task("echo_when", process=True)
def echo_when(begun: str, path: str) -> str:
    """Wait until there is text in a file, and return it."""
    Path(begun).write_text("begun")
    while not (Path(path).exists() and Path(path).read_text()):
        time.sleep(0.01)
    return Path(path).read_text()


@registry.task("terminate_offspring", process=True)
def terminate_offspring() -> int:
    sleeper = subprocess.Popen(["sleep", "3600"])
    sleeper.terminate()
    return sleeper.wait()


@registry.task("be_signalled", process=True)
def be_signalled() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return "still here"


@registry.task("crash", process=True)
def crash(how: str) -> None:
    match how:
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(1)
        case "close":
            os.closerange(3, 1024)
        case "scribble":
            scribble()
        case "fork_and_die":
            fork_and_die()
        case _:
            pass
    time.sleep(3600)


def scribble() -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"0123456789")
        except OSError:
            continue


def fork_and_die() -> None:
    """Leave a descendant that holds every descriptor open."""
    if os.fork() == 0:
        time.sleep(90)
        os._exit(0)
    os._exit(7)


@registry.task("hoard", process=True, memory_limit=256 * MIB)
def hoard(mebibytes: int) -> int:
    return len([bytearray(MIB) for _ in range(mebibytes)])


@registry.task("hoard_in_group", process=True, memory_limit=256 * MIB)
async def hoard_in_group() -> None:
    async def one() -> None:
        bytearray(1024 * MIB)

    async with asyncio.TaskGroup() as group:
        group.create_task(one())


@registry.task("hoard_result", process=True, memory_limit=256 * MIB)
def hoard_result() -> list[str]:
    return ["x" * MIB] * 1000  # little as it is, and much as JSON


KEPT: list[bytearray] = []


@registry.task("keep", process=True)
def keep(mebibytes: int) -> int:
    """Keep memory for good."""
    KEPT.append(bytearray(b"x") * (mebibytes * MIB))
    return os.getpid()


@registry.task("need", process=True, memory_limit=256 * MIB)
def need(mebibytes: int) -> int:
    bytearray(mebibytes * MIB)
    return os.getpid()

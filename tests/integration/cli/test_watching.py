"""`tasks watch`: what a person at a terminal sees of a task, and what a pipe gets."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from broker_worker.outcome import Succeeded
from broker_worker.ports import Report
from broker_worker.step import Claim
from broker_worker.store.progress import ProgressStore
from tests.support.inbox import Inbox, a_message, opened

WATCH = ("-m", "broker_worker", "tasks", "watch", "t-1", "--timeout", "50s")
DRAWING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@asynccontextmanager
async def watched(url: str, *options: str, stdout: int) -> AsyncIterator[Process]:
    """Run the command; it ends with its task, or by its timeout."""
    environment = {**os.environ, "BROKER_WORKER_DATABASE_URL": url, "TERM": "xterm", "COLUMNS": "100"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *WATCH, *options, env=environment, stdin=DEVNULL, stdout=stdout
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def report(inbox: Inbox, claim: Claim, fraction: float, note: str) -> None:
    store = ProgressStore(inbox.database, worker=inbox.worker)
    await store.write([Report(claim.key, claim.epoch, fraction, note)])


async def lines_of(process: Process, *acts: Callable[[], Awaitable[object]]) -> list[str]:
    """Read all lines; after each comes the next act."""
    lines: list[str] = []
    remaining = iter(acts)
    assert process.stdout is not None
    async for line in process.stdout:
        lines.append(line.decode().rstrip("\n"))
        act = next(remaining, None)
        if act is not None:
            await act()
    return lines


async def test_a_pipe_gets_a_line_for_each_change_of_the_progress(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.claim(a_message("t-1"))
        async with watched(database_url, stdout=PIPE) as process:
            lines = await lines_of(
                process,
                lambda: report(inbox, claim, 0.4, "resizing\x1b[31m"),
                lambda: report(inbox, claim, 0.9, ""),
                lambda: inbox.tasks.record(claim, Succeeded()),
            )

    assert lines == [
        "running: attempt 1/3",
        "running: attempt 1/3, 40% resizing\\x1b[31m",
        "running: attempt 1/3, 90%",
        "succeeded: attempt 1/3",
    ]


async def test_json_has_a_line_for_each_change_of_the_progress(database_url: str) -> None:
    async with opened(database_url) as inbox:
        claim = await inbox.claim(a_message("t-1"))
        async with watched(database_url, "--json", stdout=PIPE) as process:
            texts = await lines_of(
                process,
                lambda: report(inbox, claim, 0.4, "resizing"),
                lambda: inbox.tasks.record(claim, Succeeded()),
            )

    lines = [json.loads(text) for text in texts]
    assert [(line["state"], line["progress"], line["progress_note"]) for line in lines] == [
        ("running", None, None),
        ("running", 0.4, "resizing"),
        ("succeeded", 0.4, "resizing"),
    ]


async def test_a_terminal_has_one_bar_that_is_redrawn_in_place(database_url: str) -> None:
    leader, follower = pty.openpty()
    try:
        async with opened(database_url) as inbox:
            claim = await inbox.claim(a_message("t-1"))
            await report(inbox, claim, 0.4, "[red]resizing")
            async with watched(database_url, stdout=follower) as process:
                os.close(follower)
                begun = await read_until(leader, "40% [red]resizing")
                await report(inbox, claim, 0.9, "uploading")
                redrawn = await read_until(leader, "90% uploading")
                await inbox.tasks.record(claim, Succeeded())
                ended = await read_until(leader, "succeeded: attempt 1/3")
                exit_code = await process.wait()
    finally:
        os.close(leader)

    assert exit_code == 0
    assert plain(begun).splitlines()[0] == "running: attempt 1/3"
    assert "\n" not in redrawn
    assert "running" not in plain(redrawn + ended)
    assert "━" in redrawn


async def read_until(terminal: int, text: str) -> str:
    """Read what is written to a terminal until `text` came; that it has ended is an error."""
    seen = ""
    while text not in plain(seen):
        seen += (await asyncio.to_thread(os.read, terminal, 65536)).decode()
    return seen


def plain(drawn: str) -> str:
    """What is drawn, without how."""
    return DRAWING.sub("", drawn)

"""Whether the worker lives and is ready, and the small HTTP server that tells probes so.

The server has a thread and an event loop of its own: it answers while the
worker's loop is blocked, which is just what a liveness probe is to find out.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Self

from broker_worker.errors import ConfigurationError
from broker_worker.telemetry.redaction import Redactor

MAX_CONNECTIONS = 16  # probes need two or three
MAX_HEAD_BYTES = 8 * 1024
PATIENCE = timedelta(seconds=5)  # for all of one connection: request, response, end
MAX_DETAIL = 200  # characters
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Check(StrEnum):
    """What readiness depends on."""

    BROKER = "broker"
    DATABASE = "database"
    CONSUMERS = "consumers"
    SCHEMA = "schema"
    DRAINING = "draining"  # ok while the worker is not


@dataclass(frozen=True, slots=True)
class CheckState:
    """How one of them stands."""

    ok: bool
    detail: str = ""


class Health:
    """What probes are told. The daemon sets it, from any thread."""

    def __init__(
        self,
        *,
        redactor: Redactor | None = None,
        standing: Callable[[], timedelta] = timedelta,
        blocked_loop_limit: timedelta,
    ) -> None:
        """`standing` says for how long the event loop has stood: what lives stands within the limit."""
        self._redactor = redactor or Redactor()
        self._standing = standing
        self._blocked_loop_limit = blocked_loop_limit
        self._lock = threading.Lock()
        self._states = {check: CheckState(ok=False, detail="not known yet") for check in Check}
        self._states[Check.DRAINING] = CheckState(ok=True)
        self._has_started = False

    def set(self, check: Check, *, ok: bool, detail: str = "") -> None:
        """Say how one check stands, and why in a few words that may be public."""
        state = CheckState(ok, self._redactor.text(detail)[:MAX_DETAIL])
        with self._lock:
            self._states[check] = state

    def mark_started(self) -> None:
        """Let the startup probe pass: settings and handlers are good. Servers may still be away."""
        self._has_started = True

    @property
    def is_alive(self) -> bool:
        """Whether the event loop turned lately. Nothing else: a broker that is away needs no restart."""
        return self._standing() <= self._blocked_loop_limit

    @property
    def has_started(self) -> bool:
        return self._has_started

    def states(self) -> dict[Check, CheckState]:
        """Copy how every check stands at one moment."""
        with self._lock:
            return dict(self._states)


@dataclass(frozen=True, slots=True)
class Response:
    """What a probe gets."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self, *, with_body: bool = True) -> bytes:
        """Write it as HTTP/1.1; the connection ends with it."""
        headers = [
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
            *self.headers,
        ]
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{k}: {v}" for k, v in headers)]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        return head + self.body if with_body else head


class Probes:
    """Answers requests: `/livez`, `/readyz`, `/startupz`, `/metrics`, and nothing else."""

    def __init__(self, health: Health, exposition: Callable[[], bytes]) -> None:
        self._health = health
        self._exposition = exposition
        self._pages = {
            b"/livez": self._live,
            b"/readyz": self._ready,
            b"/startupz": self._startup,
            b"/metrics": self._metrics,
        }

    def answer(self, head: bytes) -> bytes:
        """Answer the head of a request, from its first line to the empty one."""
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):  # noqa: PLR2004 - method, target, version
            return refuse(HTTPStatus.BAD_REQUEST)
        method, target, _ = parts
        page = self._pages.get(target.partition(b"?")[0])
        if page is None:
            return refuse(HTTPStatus.NOT_FOUND)
        if method not in {b"GET", b"HEAD"}:
            return refuse(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
        return page().encode(with_body=method == b"GET")

    def _live(self) -> Response:
        if self._health.is_alive:
            return Response(HTTPStatus.OK, b"ok\n")
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, b"the event loop does not turn\n")

    def _startup(self) -> Response:
        if self._health.has_started:
            return Response(HTTPStatus.OK, b"ok\n")
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, b"starting\n")

    def _ready(self) -> Response:
        states = self._health.states()
        is_ready = all(state.ok for state in states.values())
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        body = {"ready": is_ready, "checks": {str(check): asdict(state) for check, state in states.items()}}
        return Response(status, json.dumps(body).encode() + b"\n", JSON)

    def _metrics(self) -> Response:
        return Response(HTTPStatus.OK, self._exposition(), EXPOSITION)


def refuse(status: HTTPStatus, *headers: tuple[str, str]) -> bytes:
    """Answer what is no request of ours."""
    return Response(status, f"{status.phrase}\n".encode(), headers=headers).encode()


class HealthServer:
    """Serves `Probes` from a daemon thread.

    Each connection gets one response and 5 seconds in all. With 16 of them open, a
    new one ends the oldest: whoever holds connections open can't keep probes out.
    """

    def __init__(self, host: str, port: int, *, probes: Probes, patience: timedelta = PATIENCE) -> None:
        self._address = (host, port)
        self._probes = probes
        self._patience = patience
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._open: dict[_Connection, None] = {}

    @property
    def port(self) -> int:
        """The port in use; of interest where the one asked for was 0."""
        assert self._listener is not None  # noqa: S101 - ask after start
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: the address can't be had.
        """
        self._listener = _listen(*self._address)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, self._listener), name="broker-worker-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End every connection and free the port before returning. Without `start`, nothing happens."""
        if self._thread is None or self._loop is None:
            return
        with suppress(RuntimeError):  # its loop is closed: it has stopped
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve_until_stopped(listener))

    async def _serve_until_stopped(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connection, sock=listener)
        await self._stopping.wait()
        # A closed server would lose, and leave open, what its loop is just accepting. So: accept no more,
        # wait for the loop's own tasks that make connections of it, and only then close.
        loop.remove_reader(listener)
        accepting = asyncio.all_tasks() - {asyncio.current_task()}
        if accepting:
            await asyncio.wait(accepting)
        server.close()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # the sockets are closed in the next turn

    def _connection(self) -> asyncio.Protocol:
        return _Connection(self._probes.answer, self._open, patience=self._patience)


class _Connection(asyncio.Protocol):
    """One request, one response, and the end: all within `patience`."""

    def __init__(
        self,
        answer: Callable[[bytes], bytes],
        connections: dict[_Connection, None],
        *,
        patience: timedelta,
    ) -> None:
        """Share `connections`, the open ones in order of arrival."""
        self._answer = answer
        self._connections = connections
        self._patience = patience
        self._received = b""
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._patience.total_seconds(), transport.abort)
        if len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).abort()
        self._connections[self] = None

    def data_received(self, data: bytes) -> None:
        """Answer once. To close before all is read would reset the connection, and lose the answer."""
        if self._is_answered:
            return
        self._received += data
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            self._respond(refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif end:
            self._respond(self._answer(head))

    def connection_lost(self, _: Exception | None) -> None:
        self._deadline.cancel()
        self._connections.pop(self, None)

    def abort(self) -> None:
        """End it now, and leave its place to another."""
        self._connections.pop(self, None)
        self._transport.abort()

    def _respond(self, response: bytes) -> None:
        self._is_answered = True
        self._received = b""
        self._transport.write(response)
        self._transport.write_eof()


def _listen(host: str, port: int) -> socket.socket:
    is_any = host == "::"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(
            address, family=family, dualstack_ipv6=is_any and socket.has_dualstack_ipv6()
        )
    except (OSError, OverflowError, UnicodeError) as error:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(f"BROKER_WORKER_HTTP_BIND={shown!r}: can't listen there: {why}") from error

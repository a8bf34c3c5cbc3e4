"""A TCP proxy that can stop carrying bytes, as a firewall or a full buffer does, and have them watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

Write = Callable[[bytes], Awaitable[None]]


class Watch(Protocol):
    """What sees the bytes of one connection, and carries them on when it likes."""

    async def from_client(self, data: bytes, write: Write) -> None: ...

    async def from_server(self, data: bytes, write: Write) -> None: ...


class Unwatched:
    """Carries everything on as it comes."""

    async def from_client(self, data: bytes, write: Write) -> None:
        await write(data)

    async def from_server(self, data: bytes, write: Write) -> None:
        await write(data)


class Proxy:
    """Carries bytes between its own port and a server until it is stalled."""

    def __init__(self, host: str, port: int, watch: Callable[[], Watch]) -> None:
        self._server_address = host, port
        self._watch = watch
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    def stall(self) -> None:
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._server_address)
        watch = self._watch()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, server_writer, watch.from_client))
                group.create_task(self._carry(server_reader, writer, watch.from_server))
        except* OSError:
            pass  # one side is gone
        finally:
            for side in (writer, server_writer):
                side.transport.abort()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        see: Callable[[bytes, Write], Awaitable[None]],
    ) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        while data := await reader.read(65536):
            await self._flows.wait()
            await see(data, write)
        raise ConnectionResetError


@asynccontextmanager
async def proxy_to(host: str, port: int, watch: Callable[[], Watch] = Unwatched) -> AsyncIterator[Proxy]:
    """Put one before a server; each connection through it has a watch of its own."""
    proxy = Proxy(host, port, watch)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.resume()
        server.close()

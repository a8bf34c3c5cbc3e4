"""A TCP proxy that can stop carrying bytes, as a firewall or a full buffer does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Carries bytes between its own port and a server until it is stalled."""

    def __init__(self, host: str, port: int) -> None:
        self._server_address = host, port
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    def stall(self) -> None:
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._server_address)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, server_writer))
                group.create_task(self._carry(server_reader, writer))
        except* OSError:
            pass  # one side is gone
        finally:
            for side in (writer, server_writer):
                side.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def proxy_to(host: str, port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(host, port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.resume()
        server.close()

"""RabbitMQ's HTTP API, for what AMQP itself can't do to a broker."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

NOT_FOUND = 404
OF_THE_TEST = "test"  # begins the names of a test's own connections: the API may list those that are gone


@dataclass(frozen=True)
class Control:
    """What an operator can do to one virtual host, by RabbitMQ's HTTP API."""

    management_url: str
    vhost: str

    async def client_names(self, *, at_least: int = 1) -> list[str]:
        """List what the virtual host's connections call themselves, once there are `at_least` so many."""
        return [
            one["client_properties"].get("connection_name", "") for one in await self._connections(at_least)
        ]

    async def close_connections(self, *, at_least: int = 1) -> None:
        for one in await self._connections(at_least):
            try:
                await self._call("DELETE", f"/api/connections/{quote(one['name'], safe='')}")
            except HTTPError as error:
                if error.code != NOT_FOUND:  # it has ended by itself
                    raise

    async def add_user(self, url: str, *, write: str, read: str) -> str:
        """Add a user who can't configure anything, and return its URL."""
        name = f"u{secrets.token_hex(4)}"
        await self._call("PUT", f"/api/users/{name}", password="secret", tags="")
        parts = urlsplit(url)
        url = parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port}").geturl()
        await self.set_rights(url, write=write, read=read)
        return url

    async def set_rights(self, url: str, *, write: str, read: str) -> None:
        """Say what a user may from now on, still nothing but write and read."""
        path = f"/api/permissions/{quote(self.vhost, safe='')}/{urlsplit(url).username}"
        await self._call("PUT", path, configure="^$", write=write, read=read)

    async def _connections(self, at_least: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            while True:  # the API learns of a connection some time after its client: there is no signal
                answer = json.loads(
                    await self._call("GET", f"/api/vhosts/{quote(self.vhost, safe='')}/connections")
                )
                known = [one for one in answer if is_under_test(one)]
                if len(known) >= at_least:
                    return known
                await asyncio.sleep(0.1)

    async def _call(self, method: str, path: str, **body: str) -> bytes:
        return await asyncio.to_thread(
            self._request, method, path, json.dumps(body).encode() if body else None
        )

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        address = urlsplit(self.management_url)
        credentials = b64encode(f"{address.username}:{address.password}".encode()).decode()
        request = urllib.request.Request(
            f"{address.scheme}://{address.hostname}:{address.port}{path}",
            data=body,
            method=method,
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
            return content


def is_under_test(connection: dict[str, Any]) -> bool:
    """Whether a connection has said what it is, and is none of the test's own."""
    if "client_properties" not in connection:
        return False
    return not connection["client_properties"].get("connection_name", "").startswith(OF_THE_TEST)

"""What handlers share: opened once, injected by type. `python -m examples.resources` shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from broker_worker import Registry
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


class Connection:
    """Stands for an HTTP client, an engine, a model in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0

    async def get(self, path: str) -> str:
        self.requests += 1
        return f"{self.name}{path}, request {self.requests}"


class Directory:
    """Needs a connection itself."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def find(self, user: str) -> str:
        return await self.connection.get(f"/users/{user}")


@registry.resource
async def connection() -> AsyncIterator[Connection]:
    print("connection opened")
    yield Connection("https://example.org")
    print("connection closed")


@registry.resource
async def directory(connection: Connection) -> AsyncIterator[Directory]:
    yield Directory(connection)


@registry.task("page.fetch")
async def fetch(path: str, connection: Connection) -> str:
    return await connection.get(path)


@registry.task("user.greet")
class GreetUser:
    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    async def run(self, user: str) -> str:
        return f"hello, {await self.directory.find(user)}"


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        await harness.publish(fetch, {"path": "/"})
        await harness.drain()
        await harness.publish(GreetUser, {"user": "ada"})
        await harness.drain()
        for task in harness.tasks():
            print(f"{task.name}: {task.result}")


if __name__ == "__main__":
    main()

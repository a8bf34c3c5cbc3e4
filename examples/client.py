"""Publish, ask, wait and cancel from a program with an event loop.

`broker-worker dev --handlers examples.client`, and with the addresses that it prints in the
environment `python -m examples.client`.
"""

from __future__ import annotations

import asyncio

from broker_worker import Context, Registry
from broker_worker.client import Client, PayloadError

registry = Registry()


@registry.task("greeting.say")
async def say(name: str, context: Context) -> str:
    await context.progress(0.5, "thinking")
    await asyncio.sleep(3600 if name == "nobody" else 0)
    return f"Hello, {name}!"


async def main() -> None:
    async with Client.from_environment(registry=registry) as client:
        await client.publish(say, {"name": "Ada"}, id="greet-ada")
        print((await client.wait("greet-ada", timeout=60)).result)

        await client.publish(say, {"name": "nobody"}, id="greet-nobody", delay=3600)
        try:
            await client.publish(say, {"nane": "a typo"})
        except PayloadError as error:
            print(f"not published: {error}")

        while (status := await client.status("greet-nobody")) is None:  # until the worker has received it
            await asyncio.sleep(0.05)
        print(status.state)
        await client.cancel("greet-nobody")
        print((await client.wait("greet-nobody", timeout=60)).state)


if __name__ == "__main__":
    asyncio.run(main())

"""The smallest worker: what `docker compose up` runs. BROKER_WORKER_HANDLERS=examples.hello."""

from __future__ import annotations

from broker_worker import Context, Registry

registry = Registry()


@registry.task("greeting.say")
async def say_greeting(name: str, context: Context) -> str:
    """Greet somebody; what is returned becomes the result of the task."""
    context.log.info("greeting", extra={"letters": len(name)})
    return f"Hello, {name}!"

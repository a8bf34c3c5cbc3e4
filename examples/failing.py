"""What follows a failure. `python -m examples.failing` shows it; its hours pass in virtual time."""

from __future__ import annotations

from broker_worker import Context, GiveUp, Policy, Registry, Retry
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


class RateLimitedError(Exception):
    """The other side wants us to come back later."""


@registry.task(
    "invoice.charge",
    max_attempts=5,
    retry_delay=10,
    retry_max_delay=600,
    give_up_on=ValueError,
    policies={RateLimitedError: Policy(max_attempts=20, delay=3600, max_delay=3600, jitter=0)},
)
async def charge(invoice: str, context: Context) -> str:
    match invoice:
        case "paid already":
            raise GiveUp("there is nothing to charge")  # dead at once
        case "soon" if context.attempt == 1:
            raise Retry(delay=30)  # in 30 s, whatever the policy says
        case "limited" if context.attempt < 3:
            raise RateLimitedError  # each hour
        case "flaky" if context.attempt < 4:
            raise ConnectionError("away")  # 10 s, 20 s, 40 s, half of it drawn
        case "broken":
            raise ValueError("no such currency")  # give_up_on: dead at once
        case "hopeless":
            raise ConnectionError("away for good")  # dead after five attempts
        case _:
            return f"charged at attempt {context.attempt}"


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        for invoice in ("paid already", "soon", "limited", "flaky", "broken", "hopeless"):
            await harness.publish(charge, {"invoice": invoice}, id=invoice)
        await harness.drain()
        for task in harness.tasks():
            waits = ", ".join(f"{wait.total_seconds():.0f} s" for wait in task.retries) or "none"
            print(f"{task.id}: {task.state} {task.reason or task.result}; waits: {waits}")


if __name__ == "__main__":
    main()

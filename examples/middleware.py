"""Hooks around every attempt, and reports of errors. `python -m examples.middleware` shows both."""

from __future__ import annotations

import time

from broker_worker import BaseContext, CallNext, ErrorReport, Outcome, Registry, report_errors
from broker_worker.testing import Harness, in_virtual_time

registry = Registry()


@registry.middleware
async def timed(context: BaseContext, call_next: CallNext) -> Outcome:
    began = time.monotonic()
    outcome = await call_next()
    took = "at once" if time.monotonic() - began < 1 else "slowly"
    print(f"{context.name}, attempt {context.attempt}: {type(outcome).__name__}, {took}")
    return outcome


def report(each: ErrorReport) -> None:
    """Where a service for errors would be called: sentry_sdk.capture_exception(each.error)."""
    print(f"reported: {each.error!r}, final: {each.is_final}")


registry.middleware(report_errors(report))


@registry.task("number.divide", max_attempts=2, retry_delay=1)
async def divide(number: int, by: int) -> float:
    return number / by


@in_virtual_time
async def main() -> None:
    async with Harness(registry) as harness:
        await harness.publish(divide, {"number": 1, "by": 2})
        await harness.publish(divide, {"number": 1, "by": 0})
        await harness.drain()


if __name__ == "__main__":
    main()

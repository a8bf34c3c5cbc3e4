"""What a handler does through its context."""

from __future__ import annotations

from typing import Any

import pytest

from broker_worker.context import Context, SyncContext
from broker_worker.errors import BrokerWorkerError, ConfigurationError
from broker_worker.outcome import Outcome, Postponed, Succeeded
from broker_worker.registry import Registry
from broker_worker.sending import SentTask
from tests.unit.test_executor import Bench, claim_of, context, handler_of


async def add(left: int, right: int) -> int:
    return left + right


def error_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Postponed), outcome
    return f"{outcome.failure.error_type}: {outcome.failure.message}"


async def test_what_an_attempt_sends_leaves_with_its_success_only() -> None:
    registry = Registry()
    registry.task("add")(add)
    here = Bench(registry)

    async def sends(context: Context, fails: bool) -> str:
        sent = await context.send(add, {"left": 1, "right": 2}, id="a-1", delay=5)
        if fails:
            raise ValueError
        return sent

    good = await here.execute(handler_of(sends), {"fails": False})
    bad = await here.execute(handler_of(sends), {"fails": True})

    assert isinstance(good, Succeeded)
    (sent,) = good.sent
    assert isinstance(sent, SentTask)
    assert (sent.message.task, sent.delay.total_seconds()) == (("email", "add", "a-1"), 5)
    assert isinstance(bad, Postponed)


@pytest.mark.parametrize(
    ("task", "payload", "says"),
    [
        (add, {"left": "x"}, "PayloadError: this is no payload of 'add': left: int_parsing; right: missing"),
        ("add", {"left": 1}, "PayloadError: this is no payload of 'add': right: missing"),
        ("other", float("nan"), "PayloadError: a payload holds NaN"),
        ("other", object(), "PayloadError: a payload of type object can't become JSON"),
        (error_of, {}, "ConfigurationError: 'error_of' is not registered as a task"),
    ],
)
async def test_a_payload_or_a_task_that_is_wrong_fails_where_it_is_sent(
    task: Any,  # noqa: ANN401 - a handler or a name
    payload: object,
    says: str,
) -> None:
    registry = Registry()
    registry.task("add")(add)

    async def sends(context: Context) -> None:
        await context.send(task, payload)

    assert error_of(await Bench(registry).execute(handler_of(sends))).startswith(says)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
async def test_progress_is_a_fraction(fraction: float) -> None:
    here = Bench()

    async def reports(context: Context) -> None:
        await context.progress(0.5, "half")
        await context.progress(fraction)

    assert error_of(await here.execute(handler_of(reports))).startswith("ValueError: progress is a fraction")
    assert here.store.progress == [(0.5, "half")]


async def test_a_checkpoint_is_limited_by_its_bytes() -> None:
    here = Bench()

    async def saves(context: Context) -> None:
        await context.checkpoint("x" * 98)
        await context.checkpoint("ä" * 60)

    outcome = await here.execute(handler_of(saves))

    assert error_of(outcome) == "PayloadError: the checkpoint has 122 bytes, allowed are 100"
    assert here.store.saved == ['"' + "x" * 98 + '"']


async def test_a_thread_saves_a_checkpoint_and_reads_the_last_one() -> None:
    here = Bench()

    def saves(context: SyncContext) -> int:
        last = context.saved_as(int) or 0
        context.checkpoint(last + 1)
        return last

    outcome = await here.execute(handler_of(saves), claim=claim_of(saved="7"))

    here.executor.close()
    assert outcome == Succeeded("7")
    assert here.store.saved == ["8"]


@pytest.mark.parametrize("sends_first", [False, True])
async def test_nothing_is_sent_beside_a_completion(*, sends_first: bool) -> None:
    async def both(context: Context) -> None:
        if sends_first:
            await context.send("other")
        context.completion()
        await context.send("other")

    says = (
        "BrokerWorkerError: what was sent can't" if sends_first else "BrokerWorkerError: after completion()"
    )
    assert error_of(await Bench().execute(handler_of(both))).startswith(says)


@pytest.mark.parametrize("completes", [False, True])
async def test_a_completion_is_believed_when_it_is_committed(*, completes: bool) -> None:
    here = Bench()
    here.store.completes = completes

    async def completing(context: Context) -> str:
        context.completion(1)
        return "of no account"

    outcome = await here.execute(handler_of(completing))

    if completes:
        assert outcome == Succeeded("1")
    else:
        assert error_of(outcome).startswith("NotCompletedError")


async def test_a_unit_test_can_call_a_handler_with_a_context_of_its_own() -> None:
    here = context()

    await here.progress(0.5)
    await here.checkpoint({"page": 1})
    await here.send(add, {"left": 1})
    await here.send_event({}, exchange="events", routing_key="it")

    assert not here.is_cancelled
    assert here.saved is None
    with pytest.raises(BrokerWorkerError, match="there is no worker, and so nothing to complete"):
        here.completion()


def sync_with_context(context: Context) -> None: ...


async def async_with_sync_context(context: SyncContext) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (sync_with_context, "parameter 'context': a plain function takes SyncContext"),
        (async_with_sync_context, "parameter 'context': an async one takes Context"),
    ],
)
def test_a_context_of_the_other_kind_is_refused(function: Any, says: str) -> None:  # noqa: ANN401 - a handler
    with pytest.raises(ConfigurationError, match=f"{function.__name__}: {says}"):
        handler_of(function)


@pytest.mark.parametrize(("options"), [{"memory_limit": 1}, {"memory_limit": 0, "process": True}])
def test_a_memory_limit_is_for_child_processes(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="add: memory_limit is a number of bytes, for process=True"):
        Registry().task("add", **options)(add)

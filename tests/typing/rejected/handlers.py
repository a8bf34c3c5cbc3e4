"""Mistakes in handlers. Each marked line is one, by the codes that the checkers give it; no other is."""

from __future__ import annotations

from collections.abc import AsyncIterator

from broker_worker import (
    BaseContext,
    CallNext,
    Context,
    ErrorReport,
    Outcome,
    Policy,
    Registry,
    Retry,
    SyncContext,
    report_errors,
)

registry = Registry()


class Mailbox:
    async def send(self, to: str) -> bool:
        return bool(to)


# --- registering -------------------------------------------------------------------------


@registry.task("page.fetch")
async def fetch(url: str, context: Context) -> str:
    return url


@registry.task("mail.send")
class SendMail:
    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def run(self, to: str) -> bool:
        return await self.mailbox.send(to)


@registry.task("a", timeout="20s")  # E: mypy[arg-type] pyright[reportArgumentType]
async def with_a_timeout(url: str) -> None: ...


@registry.task("b", retry_delay="1s")  # E: mypy[arg-type] pyright[reportArgumentType]
async def with_a_delay(url: str) -> None: ...


@registry.task("c", retry_on="ValueError")  # E: mypy[arg-type] pyright[reportArgumentType]
async def with_an_error(url: str) -> None: ...


@registry.task("d", policies={ValueError: 5})  # E: mypy[dict-item] pyright[reportArgumentType]
async def with_a_policy(url: str) -> None: ...


@registry.task("e", True)  # E: mypy[call-arg] pyright[reportUntypedFunctionDecorator, reportCallIssue]
async def with_a_positional_option(url: str) -> None: ...


@registry.task("f", max_attempt=5)  # E: mypy[call-arg] pyright[reportUntypedFunctionDecorator, reportCallIssue]
async def with_an_unknown_option(url: str) -> None: ...


@registry.task  # E: mypy[arg-type] pyright[reportArgumentType]
async def without_a_name(url: str) -> None: ...


registry.task("g")(5)  # E: mypy[type-var] pyright[reportArgumentType]
registry.task(5)(fetch)  # E: mypy[arg-type] pyright[reportArgumentType]

Policy(jitter="x")  # E: mypy[arg-type] pyright[reportArgumentType]
Policy(delay="1s")  # E: mypy[arg-type] pyright[reportArgumentType]
Policy(attempts=5)  # E: mypy[call-arg] pyright[reportCallIssue]
Retry(delay="x")  # E: mypy[arg-type] pyright[reportArgumentType]
Retry("later", 30)  # E: mypy[call-arg] pyright[reportCallIssue]


# --- what a context does -----------------------------------------------------------------


@registry.task("report.write")
async def report(rows: int, context: Context) -> None:
    context.checkpoint(rows)  # E: mypy[unused-coroutine] pyright[reportUnusedCoroutine]
    context.send(fetch, {"url": ""})  # E: mypy[unused-coroutine] pyright[reportUnusedCoroutine]
    await context.progress("x")  # E: mypy[arg-type] pyright[reportArgumentType]
    await context.progress(fraction=0.5, text="half")  # E: mypy[call-arg] pyright[reportCallIssue]
    await context.send(5, {"url": ""})  # E: mypy[arg-type] pyright[reportArgumentType]
    await context.send(fetch, {"url": ""}, delay="1s")  # E: mypy[arg-type] pyright[reportArgumentType]
    await context.send_event({"rows": rows}, exchange="shop")  # E: mypy[call-arg] pyright[reportCallIssue]
    rows = context.saved_as(int)  # E: mypy[assignment] pyright[reportAssignmentType]
    print(rows)


@registry.task("archive.unpack")
def unpack(path: str, context: SyncContext) -> int:
    context.progress("x")  # E: mypy[arg-type] pyright[reportArgumentType]
    context.checkpoint()  # E: mypy[call-arg] pyright[reportCallIssue]
    saved = context.saved_as(bytes)
    return saved.count(b"/")  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]


# --- calling -----------------------------------------------------------------------------


async def call(context: Context, sync_context: SyncContext) -> None:
    await fetch(5, context)  # E: mypy[arg-type] pyright[reportArgumentType]
    await fetch("https://example.org")  # E: mypy[call-arg] pyright[reportCallIssue]
    await fetch("https://example.org", sync_context)  # E: mypy[arg-type] pyright[reportArgumentType]
    length: int = await fetch("https://example.org", context)  # E: mypy[assignment] pyright[reportAssignmentType]
    unpack("/tmp", context)  # E: mypy[arg-type] pyright[reportArgumentType]
    unpack("/tmp", sync_context, depth=length)  # E: mypy[call-arg] pyright[reportCallIssue]
    await unpack("/tmp", sync_context)  # E: mypy[misc] pyright[reportGeneralTypeIssues]
    SendMail()  # E: mypy[call-arg] pyright[reportCallIssue]
    await SendMail(Mailbox()).run(5)  # E: mypy[arg-type] pyright[reportArgumentType]


# --- resources, middleware, decoders -----------------------------------------------------


@registry.resource  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
def a_plain_function() -> Mailbox:
    return Mailbox()


@registry.resource  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
async def without_a_yield() -> Mailbox:
    return Mailbox()


@registry.resource
async def of_another_type() -> AsyncIterator[Mailbox]:
    yield "mailbox"  # E: mypy[misc] pyright[reportReturnType]


@registry.middleware  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
def a_plain_middleware(context: BaseContext, call_next: CallNext) -> Outcome:
    raise NotImplementedError


@registry.middleware  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
async def without_call_next(context: BaseContext) -> Outcome:
    raise NotImplementedError


@registry.middleware  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
async def for_one_kind_of_context(context: Context, call_next: CallNext) -> Outcome:
    return await call_next()


@registry.middleware  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
async def without_an_outcome(context: BaseContext, call_next: CallNext) -> None:
    await call_next()


@registry.middleware
async def without_await(context: BaseContext, call_next: CallNext) -> Outcome:
    return call_next()  # E: mypy[return-value] pyright[reportReturnType]


async def report_name(name: str) -> None: ...


def report_outcome(report: ErrorReport) -> None:
    assert report.error.args  # E: mypy[union-attr] pyright[reportOptionalMemberAccess]


registry.middleware(report_errors(report_name))  # E: mypy[arg-type] pyright[reportArgumentType]
registry.middleware(report_outcome)  # E: mypy[type-var] pyright[reportArgumentType]


@registry.decoder("application/x-text")  # E: mypy[type-var] pyright[reportArgumentType, reportUntypedFunctionDecorator]
def decode(body: str) -> str:
    return body


@registry.decoder  # E: mypy[arg-type] pyright[reportArgumentType]
def without_a_content_type(body: bytes) -> str:
    return body.decode()

"""What a worker and its child processes say to each other: words of a closed union, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Base64Bytes, Field, TypeAdapter, ValidationError

from broker_worker.context import BaseContext
from broker_worker.framing import FrameError
from broker_worker.handler import Handler, Limits
from broker_worker.message import Message, TaskId, from_record, to_record
from broker_worker.outcome import Dead, Failure, Outcome, Postponed, Reason, Released, Succeeded
from broker_worker.retry import RetryPolicy
from broker_worker.sending import Sent, SentEvent, SentTask

END_GRACE = 2.0  # seconds from the end of the orders, in which an idle child may close its resources

# --- from the worker ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """The first word: what a child needs to be ready."""

    modules: tuple[str, ...]  # with registries, as in the settings
    path: tuple[str, ...]  # the worker's sys.path, so that a name means the same module
    max_result_bytes: int
    log_level: str
    log_format: str
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A message."""

    task: TaskId
    body: Base64Bytes = field(repr=False)
    record: Mapping[str, object]
    epoch: int

    @classmethod
    def of(cls, message: Message) -> WireMessage:
        return cls(message.task, message.body, to_record(message), message.epoch)

    def message(self) -> Message:
        return from_record(self.task, self.body, self.record, epoch=self.epoch)


@dataclass(frozen=True, slots=True)
class Begin:
    """Run an attempt."""

    handler: str
    message: WireMessage
    attempt: int
    may_be_repeat: bool
    deadline: datetime
    saved: str | None
    max_attempts: int
    retry_delay: timedelta
    retry_max_delay: timedelta
    retry_jitter: float
    timeout: timedelta
    jitter: float  # drawn
    time_left: timedelta | None
    memory_limit: int | None
    kind: Literal["begin"] = "begin"

    @classmethod
    def of(
        cls,
        handler: Handler,
        context: BaseContext,
        *,
        limits: Limits,
        jitter: float,
        time_left: timedelta | None,
    ) -> Begin:
        return cls(
            handler=handler.name,
            message=WireMessage.of(context.message),
            attempt=context.attempt,
            may_be_repeat=context.may_be_repeat,
            deadline=context.deadline,
            saved=context.saved_json,
            max_attempts=limits.policy.max_attempts,
            retry_delay=limits.policy.delay,
            retry_max_delay=limits.policy.max_delay,
            retry_jitter=limits.policy.jitter,
            timeout=limits.timeout,
            jitter=jitter,
            time_left=time_left,
            memory_limit=handler.memory_limit,
        )

    def limits(self) -> Limits:
        """All that isn't a class; those are the handler's own, to be put over this."""
        policy = RetryPolicy(self.max_attempts, self.retry_delay, self.retry_max_delay, self.retry_jitter)
        return Limits(policy, self.timeout)


@dataclass(frozen=True, slots=True)
class Answer:
    """To the request of this number: done, or the type and message of an error."""

    number: int
    error: str | None = None
    message: str = ""
    sql: str = ""  # of a completion, with its parameters
    parameters: tuple[object, ...] = ()
    kind: Literal["answer"] = "answer"


# --- from the child ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """Every handler is loaded."""

    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Unable:
    """It can't start, for this reason, and ends."""

    reason: str
    kind: Literal["unable"] = "unable"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the attempt is."""

    fraction: float
    note: str
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class Save:
    """Please commit a checkpoint."""

    number: int
    state: str
    kind: Literal["save"] = "save"


@dataclass(frozen=True, slots=True)
class Send:
    """Please keep a task that is to leave with the outcome."""

    number: int
    message: WireMessage
    delay: timedelta
    kind: Literal["send"] = "send"


@dataclass(frozen=True, slots=True)
class SendEvent:
    """Please keep an event that is to leave with the outcome."""

    number: int
    exchange: str
    routing_key: str
    body: Base64Bytes = field(repr=False)
    kind: Literal["send_event"] = "send_event"


@dataclass(frozen=True, slots=True)
class Complete:
    """Please give the statement that ends the task with this result, JSON."""

    number: int
    result: str | None
    kind: Literal["complete"] = "complete"


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned."""

    result: str | None
    kind: Literal["returned"] = "returned"


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed; without a delay no other follows."""

    error_type: str
    message: str
    traceback: str | None
    fingerprint: str | None
    reason: Reason | None
    delay: timedelta | None
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt ended because it is not this worker's any more."""

    kind: Literal["lost"] = "lost"


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The handler ended for want of memory, and so does the child."""

    kind: Literal["out_of_memory"] = "out_of_memory"


FromWorker = Start | Begin | Answer
LastWord = Returned | Failed | Lost
FromChild = Ready | Unable | Progress | Save | Send | SendEvent | Complete | LastWord | OutOfMemory
Word = FromWorker | FromChild
_WORD: TypeAdapter[Word] = TypeAdapter(Annotated[Word, Field(discriminator="kind")])


def write_word(word: Word) -> bytes:
    """Make the content of a frame."""
    return _WORD.dump_json(word)


def read_word(content: bytes) -> Word:
    """Read the content of a frame; raise `FrameError` where it is no word."""
    try:
        return _WORD.validate_json(content)
    except ValidationError:
        raise FrameError("a frame came that holds no word of ours") from None  # its text shows input


def last_word(outcome: Outcome) -> LastWord:
    """Say how an attempt ended; what it sent is known to the worker already."""
    match outcome:
        case Succeeded(result):
            return Returned(result)
        case Postponed(delay, failure, reason):
            return _failed(failure, reason, delay)
        case Dead(reason, failure):
            return _failed(failure, reason, None)
        case _:
            return Lost()


def outcome_of(word: LastWord, *, sent: tuple[Sent, ...]) -> Outcome:
    """Undo `last_word`."""
    match word:
        case Returned(result):
            return Succeeded(result, sent)
        case Lost():
            return Released()
        case Failed(delay=timedelta() as delay):
            return Postponed(delay, _failure(word), word.reason)
        case Failed():
            return Dead(word.reason or Reason.ATTEMPTS_EXHAUSTED, _failure(word))


def request(sent: Sent, number: int) -> Send | SendEvent:
    """Ask for `sent` to be kept."""
    match sent:
        case SentTask(message, delay):
            return Send(number, WireMessage.of(message), delay)
        case SentEvent(exchange, routing_key, body):
            return SendEvent(number, exchange, routing_key, body)


def sent_by(word: Send | SendEvent) -> Sent:
    """Undo `request`."""
    match word:
        case Send():
            return SentTask(word.message.message(), word.delay)
        case SendEvent():
            return SentEvent(word.exchange, word.routing_key, word.body)


def _failed(failure: Failure, reason: Reason | None, delay: timedelta | None) -> Failed:
    return Failed(
        error_type=failure.error_type,
        message=failure.message,
        traceback=failure.traceback,
        fingerprint=failure.fingerprint,
        reason=reason,
        delay=delay,
    )


def _failure(word: Failed) -> Failure:
    return Failure(word.error_type, word.message, word.traceback, word.fingerprint)

"""Signatures of messages: HMAC-SHA256 over what a task is, by keys that publishers and workers share.

`docs/message-contract.md` has the text that is signed, and how to do it in other languages.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import lru_cache

from broker_worker.errors import ConfigurationError
from broker_worker.message import (
    DELIVER_AT,
    NOT_AFTER,
    TASK_ID,
    Message,
    Properties,
    TaskId,
    Undecodable,
    Unidentified,
    read_epoch,
)
from broker_worker.outcome import Failure, Reason
from broker_worker.outgoing import Kind, Outgoing

VERSION = "bw1"
SIGNATURE, SIGNATURE_KEY = "signature", "signature-key"  # of the publisher
COPY_SIGNATURE, COPY_SIGNATURE_KEY = "bw-signature", "bw-signature-key"  # of the worker, on its copies
TENANT = "tenant-id"
KEY = re.compile(r"(?P<id>[A-Za-z0-9._-]{1,64}):(?P<secret>[^\s,]{16,})")
ALLOWED_KEYS = "id:secret separated by commas; ids of A-Z a-z 0-9 . _ -, secrets of 16 characters or more"
READ_AGAIN = 10.0  # seconds


class UnsignableError(ValueError):
    """A value that can't be covered by a signature."""


class Keyring:
    """The keys by their ids; the first one signs, each one verifies.

    Read again every ten seconds, so that keys that come from a file can be rotated.
    """

    def __init__(
        self,
        reveal: Callable[[], str],
        *,
        report: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys; `report` is told why they can't be read any more, once for each reason.

        Raises:
            ConfigurationError: they can't be.
        """
        self._reveal = reveal
        self._report = report
        self._fault: str | None = None
        self._monotonic = monotonic
        self._read_at = monotonic()
        self._keys = read_keys(reveal())

    @property
    def keys(self) -> Mapping[str, bytes]:
        """The keys as they are now; while their file can't be read, as they were."""
        now = self._monotonic()
        if now - self._read_at >= READ_AGAIN:
            self._read_at = now
            self._read_again()
        return self._keys

    def _read_again(self) -> None:
        try:
            self._keys, self._fault = read_keys(self._reveal()), None
        except ConfigurationError as error:  # it may be being replaced
            if str(error) != self._fault:
                self._fault = str(error)
                self._report(self._fault)

    def sign(self, text: bytes) -> tuple[str, str]:
        """Return the id of the first key, and the signature by it."""
        key_id, key = next(iter(self.keys.items()))
        return key_id, _hmac(key, text)

    def complaint(self, key_id: object, signature: object, text: bytes) -> str | None:
        """Say why this is no signature of `text`, if it is none."""
        if not isinstance(key_id, str) or not isinstance(signature, str):
            return "the message is not signed"
        key = self.keys.get(key_id)
        if key is None:
            return f"it is signed by a key that is not known: {key_id[:64]!r}"
        if not hmac.compare_digest(_hmac(key, text).encode(), signature.encode(errors="replace")):
            return "its signature is of another message, or by another key"
        return None


class Signatures:
    """What a worker asks of the messages in some of its queues."""

    def __init__(self, keyring: Keyring, required: Sequence[str]) -> None:
        """Ask it in the queues whose names fit a pattern of `required`."""
        self._keyring = keyring
        self._required = tuple(required)

    def idle_patterns(self, queues: Collection[str]) -> list[str]:
        """Find the patterns that fit none of `queues`; one of them may be misspelt."""
        return [each for each in self._required if not any(_fits(queue, (each,)) for queue in queues)]

    def doubt(
        self,
        found: Message | Unidentified | Undecodable,
        *,
        queue: str,
        properties: Properties,
        body: bytes,
    ) -> Undecodable | None:
        """Say what is to be buried in place of `found`, where that is not signed as its queue requires.

        It is never a task: an identity that is not vouched for must touch no row, nor keep its owner from it.
        """
        if not _fits(queue, self._required):
            return None
        if isinstance(found, Unidentified):
            return _refused("a message without an id can't be signed", None)
        message = found.message if isinstance(found, Undecodable) else found
        if message is None or (complaint := self._complaint(message.task, properties, body)) is None:
            return None
        # what else is wrong with it says more, such as that it was too large to be read
        return found if isinstance(found, Undecodable) else _refused(complaint, message)

    def _complaint(self, task: TaskId, properties: Properties, body: bytes) -> str | None:
        epoch = read_epoch(properties)
        key_name, name = (COPY_SIGNATURE_KEY, COPY_SIGNATURE) if epoch else (SIGNATURE_KEY, SIGNATURE)
        try:
            text = signed_text(task, properties, body)
        except UnsignableError as error:
            return str(error)
        return self._keyring.complaint(properties.headers.get(key_name), properties.headers.get(name), text)


def signed(
    outgoing: Outgoing, keyring: Keyring, *, names: tuple[str, str] = (SIGNATURE_KEY, SIGNATURE)
) -> Outgoing:
    """Add a signature to the publish of a task.

    Raises:
        UnsignableError: a value of it can't be covered.
    """
    properties = outgoing.properties
    task = TaskId(outgoing.routing_key, properties.type or "", str(properties.headers.get(TASK_ID)))
    signature = keyring.sign(signed_text(task, properties, outgoing.body))
    headers = {**properties.headers, **dict(zip(names, signature, strict=True))}
    return replace(outgoing, properties=replace(properties, headers=headers))


def signed_copy(outgoing: Outgoing, keyring: Keyring) -> Outgoing:
    """Vouch for a copy of a task that is in the database; everything else stays as it is.

    A message that goes back to its queue as it came is not ours to vouch for.
    """
    if outgoing.kind is not Kind.COPY or not read_epoch(outgoing.properties):
        return outgoing
    try:
        return signed(outgoing, keyring, names=(COPY_SIGNATURE_KEY, COPY_SIGNATURE))
    except UnsignableError:
        # of a queue that asks for no signatures: nothing that can't be signed got into another
        return outgoing


def signed_text(task: TaskId, properties: Properties, body: bytes) -> bytes:
    """Write what a signature covers: a line for each thing that is there.

    Raises:
        UnsignableError: a value has more than one line, or is neither text, whole number nor time.
    """
    lines = [f"{name}={_text(name, value)}" for name, value in _covered(task, properties)]
    text = "\n".join([VERSION, *lines, f"body={hashlib.sha256(body).hexdigest()}"])
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UnsignableError("it holds text that is no UTF-8") from error


def _covered(task: TaskId, properties: Properties) -> Iterator[tuple[str, object]]:
    yield from (("queue", task.queue), ("type", task.name), ("id", task.id))
    if properties.content_type:
        yield "content-type", properties.content_type
    if properties.reply_to:
        yield "reply-to", properties.reply_to
    for name in (NOT_AFTER, DELIVER_AT, TENANT):
        if properties.headers.get(name) is not None:
            yield name, properties.headers[name]
    if epoch := read_epoch(properties):
        yield "epoch", epoch


def _text(name: str, value: object) -> str:
    match value:
        case str() if "\n" not in value:
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case datetime():
            return str(int(value.timestamp()))
        case _:
            raise UnsignableError(
                f"{name} is neither a line of text, a whole number nor a time: not to be signed"
            )


def _refused(detail: str, message: Message | None) -> Undecodable:
    return Undecodable(Reason.BAD_SIGNATURE, Failure("SignatureError", detail), message)


@lru_cache(1000)
def _fits(queue: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(queue, pattern) for pattern in patterns)


def _hmac(key: bytes, text: bytes) -> str:
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def read_keys(text: str) -> dict[str, bytes]:
    """Read a list of keys.

    Raises:
        ConfigurationError: it is none; the text never shows it.
    """
    if (complaint := complaint_about_keys(text)) is not None:
        raise ConfigurationError(f"the signing keys are not what is allowed{complaint}")
    found = (KEY.fullmatch(item) for item in _items(text))
    return {each["id"]: each["secret"].encode() for each in found if each is not None}


def complaint_about_keys(text: str) -> str | None:
    """Say what is wrong with a list of keys without showing it."""
    found = [KEY.fullmatch(item) for item in _items(text)]
    if not found or None in found or len({each["id"] for each in found if each}) < len(found):
        return f": allowed is {ALLOWED_KEYS}; each id once"
    return None


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]

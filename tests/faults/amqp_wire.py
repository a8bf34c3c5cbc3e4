"""What the frames of one AMQP connection say: deliveries, acks, publishes, confirms. Reads, and never fails.

It is written by hand, and not with the daemon's library: what the daemon misreads is to be seen here.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from tests.faults.amqp_header import Header, read_header, short
from tests.faults.records import Wire, digest_of
from tests.faults.splitting import UNREADABLE, Splitter

PREAMBLE = b"AMQP"
PREAMBLE_SIZE = 8
HEAD = struct.Struct(">BHI")  # type, channel, size of the payload
METHOD = struct.Struct(">HH")
TAG = struct.Struct(">Q")
ARGUMENTS = HEAD.size + METHOD.size  # where those of a method begin
METHOD_FRAME, HEADER_FRAME, BODY_FRAME, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE

CHANNEL_OPEN, CHANNEL_CLOSE = (20, 10), (20, 40)
CONSUME, CONSUME_OK, CANCEL = (60, 20), (60, 21), (60, 30)
PUBLISH, RETURN, DELIVER, GET_OK = (60, 40), (60, 50), (60, 60), (60, 71)
ACK, REJECT, NACK, SELECT = (60, 80), (60, 90), (60, 120), (85, 10)
MULTIPLE, REQUEUE = 1, 2  # bits of an ack and a nack
MANDATORY = 1
ANSWERED = {ACK: "confirm", NACK: "refused"}


@dataclass(slots=True)
class Content:
    """A message on its way: the method was seen, header and body come."""

    record: Wire | None  # None: of no interest
    header: Header = field(default_factory=Header)
    left: int = -1  # bytes of the body; less than 0: the header is still to come
    body: bytes = b""


@dataclass(slots=True)
class Channel:
    """What is under way on one channel."""

    sending: Content | None = None
    receiving: Content | None = None
    confirms: bool = False
    published: int = 0
    consuming: str = ""  # the queue whose consumer is being made
    queue_by_consumer: dict[str, str] = field(default_factory=dict)
    unsettled: dict[int, str] = field(default_factory=dict)  # the queue of each delivery


Piece = tuple[bytes, tuple[Wire, ...]]


class AmqpReader:
    """Both directions of one connection; records lack the time and whose connection it is."""

    def __init__(self) -> None:
        self._up = Splitter(measure)
        self._down = Splitter(measure)
        self._channels: dict[int, Channel] = {}

    def from_client(self, data: bytes) -> list[Piece]:
        """Return what may be carried on, in pieces, each with what it says."""
        return [
            (piece, self._read(piece, is_sent=True) if whole else ()) for piece, whole in self._up.feed(data)
        ]

    def from_server(self, data: bytes) -> list[Piece]:
        return [
            (piece, self._read(piece, is_sent=False) if whole else ())
            for piece, whole in self._down.feed(data)
        ]

    def count_unsettled(self, queue: str) -> int:
        """How many deliveries of a queue the client has not settled."""
        return sum(list(channel.unsettled.values()).count(queue) for channel in self._channels.values())

    def _read(self, frame: bytes, *, is_sent: bool) -> tuple[Wire, ...]:
        if frame.startswith(PREAMBLE):
            return ()
        kind, number, _ = HEAD.unpack_from(frame)
        channel = self._channels.setdefault(number, Channel())
        try:
            if kind == METHOD_FRAME:
                understand = self._sent if is_sent else self._received
                record = understand(METHOD.unpack_from(frame, HEAD.size), channel, frame)
            else:
                record = content(channel, kind, frame, is_sent=is_sent)
        except (IndexError, struct.error):
            return ()  # no client and no server says this
        if record is None:
            return ()
        record.channel = number
        if record.kind == "channel_lost":
            self._channels[number] = Channel()
        return (record,)

    def _sent(self, method: tuple[int, int], channel: Channel, frame: bytes) -> Wire | None:
        if method == PUBLISH:
            exchange, at = short(frame, ARGUMENTS + 2)
            key, at = short(frame, at)
            record = Wire(
                kind="publish", exchange=exchange, routing_key=key, mandatory=bool(frame[at] & MANDATORY)
            )
            channel.sending = Content(record)
        elif method == CONSUME:
            channel.consuming, at = short(frame, ARGUMENTS + 2)
            channel.queue_by_consumer[short(frame, at)[0]] = channel.consuming
        elif method == SELECT:
            channel.confirms = True
        elif method == CHANNEL_CLOSE:
            return Wire(kind="channel_lost")
        elif method in {ACK, NACK, REJECT}:
            return settled(method, channel, frame)
        return None

    def _received(self, method: tuple[int, int], channel: Channel, frame: bytes) -> Wire | None:
        if method == DELIVER:
            consumer, at = short(frame, ARGUMENTS)
            (tag,) = TAG.unpack_from(frame, at)
            exchange, after = short(frame, at + TAG.size + 1)
            channel.receiving = Content(
                Wire(
                    kind="deliver",
                    tag=tag,
                    redelivered=bool(frame[at + TAG.size]),
                    exchange=exchange,
                    routing_key=short(frame, after)[0],
                    amqp_queue=channel.queue_by_consumer.get(consumer, ""),
                )
            )
        elif method in ANSWERED:
            (tag,) = TAG.unpack_from(frame, ARGUMENTS)
            multiple = bool(frame[ARGUMENTS + TAG.size] & MULTIPLE)
            return Wire(kind=ANSWERED[method], tag=tag, multiple=multiple)  # type: ignore[arg-type]
        elif method == RETURN:
            _, at = short(frame, ARGUMENTS + 2)
            exchange, at = short(frame, at)
            record = Wire(kind="returned", exchange=exchange, routing_key=short(frame, at)[0])
            channel.receiving = Content(record)
        else:
            return self._told(method, channel, frame)
        return None

    def _told(self, method: tuple[int, int], channel: Channel, frame: bytes) -> Wire | None:
        """What a server says of consumers and of the channel itself."""
        if method == CONSUME_OK:
            channel.queue_by_consumer[short(frame, ARGUMENTS)[0]] = channel.consuming
        elif method == CANCEL:
            queue = channel.queue_by_consumer.get(short(frame, ARGUMENTS)[0], "")
            return Wire(kind="cancelled", amqp_queue=queue)
        elif method == CHANNEL_CLOSE:
            return Wire(kind="channel_lost")
        elif method == GET_OK:
            channel.receiving = Content(None)
        return None


def content(channel: Channel, kind: int, frame: bytes, *, is_sent: bool) -> Wire | None:
    """Take the next frame of a message's content; return the record with its last one."""
    message = channel.sending if is_sent else channel.receiving
    if message is None:
        return None
    if kind == HEADER_FRAME and message.left < 0:
        message.header = read_header(frame)
        message.left = message.header.body_size
    elif kind == BODY_FRAME and message.left > 0:
        part = frame[HEAD.size : -1]
        message.body += part
        message.left -= len(part)
    if message.left != 0:
        return None
    if is_sent:
        channel.sending = None
        channel.published += channel.confirms
    else:
        channel.receiving = None
    return named(channel, message)


def named(channel: Channel, message: Content) -> Wire | None:
    """The record of a message, with what names it."""
    record, header = message.record, message.header
    if record is None:
        return None
    record.message_id = header.texts.get("message_id", "")
    if record.kind == "returned":
        return record
    record.name, record.id = header.name, header.id
    record.correlation_id = header.texts.get("correlation_id", "")
    record.epoch, record.attempt = header.number("bw-epoch"), header.number("bw-attempt")
    record.digest = digest_of(header.texts.get("content_type"), message.body)
    record.body = hashlib.sha256(message.body).hexdigest()
    record.letter, record.event = header.text("bw-dead-letter-id"), header.text("bw-event-id")
    record.reason = header.text("bw-reason")
    if record.kind == "publish":
        record.tag = channel.published if channel.confirms else 0
        record.headers = list(header.headers)
    else:
        channel.unsettled[record.tag] = record.amqp_queue
    return record


def settled(method: tuple[int, int], channel: Channel, frame: bytes) -> Wire:
    """What the client says of deliveries."""
    (tag,) = TAG.unpack_from(frame, ARGUMENTS)
    bits = frame[ARGUMENTS + TAG.size]
    multiple = method != REJECT and bool(bits & MULTIPLE)
    for one in [one for one in channel.unsettled if one == tag or (multiple and (one < tag or tag == 0))]:
        del channel.unsettled[one]
    if method == ACK:
        return Wire(kind="ack", tag=tag, multiple=multiple)
    if method == NACK:
        return Wire(kind="nack", tag=tag, multiple=multiple, requeue=bool(bits & REQUEUE))
    return Wire(kind="reject", tag=tag, requeue=bool(bits & 1))


def measure(data: bytes) -> int:
    """How long the first frame is."""
    if data[0] == PREAMBLE[0]:
        return PREAMBLE_SIZE if len(data) >= PREAMBLE_SIZE else 0
    if data[0] not in {METHOD_FRAME, HEADER_FRAME, BODY_FRAME, HEARTBEAT}:
        return UNREADABLE
    if len(data) < HEAD.size:
        return 0
    size = HEAD.size + int(HEAD.unpack_from(data)[2]) + 1
    return UNREADABLE if len(data) >= size and data[size - 1] != FRAME_END else size

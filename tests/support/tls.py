"""Certificates of every kind, servers that show them, and what a client says to such a server."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import trustme

from broker_worker.local import PrivatePostgres, PrivateRabbitMQ
from broker_worker.local.network import LOOPBACK, free_ports
from tests.support.proxy import Write, proxy_to

HOST = "localhost"  # what the certificates are for, and where the servers are
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # a client of Postgres, asking whether TLS is spoken
RECORDS = range(20, 24)  # TLS: change of cipher, alert, handshake, data
HEADER = 5  # bytes of a TLS record


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """One authority that is trusted, and who has a certificate."""

    authority: Path
    good: Pair
    client: Pair
    expired: Pair
    of_another_host: Pair
    of_a_stranger: Pair

    @classmethod
    def issue(cls, folder: Path) -> Certificates:
        trusted, strange = trustme.CA(), trustme.CA()
        authority = folder / "authority.pem"
        trusted.cert_pem.write_to_path(str(authority))
        begin = datetime.now(UTC) - timedelta(days=9)
        expired = trusted.issue_cert(HOST, LOOPBACK, not_before=begin, not_after=begin + timedelta(days=1))
        return cls(
            authority,
            _written(trusted.issue_cert(HOST, LOOPBACK), folder / "good"),
            _written(trusted.issue_cert("worker@example.org", common_name="worker"), folder / "client"),
            _written(expired, folder / "expired"),
            _written(trusted.issue_cert("rabbit.example.org"), folder / "another-host"),
            _written(strange.issue_cert(HOST, LOOPBACK), folder / "stranger"),
        )


def _written(issued: trustme.LeafCert, name: Path) -> Pair:
    pair = Pair(name.with_suffix(".pem"), name.with_suffix(".key"))
    pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    pair.key.write_bytes(issued.private_key_pem.bytes())
    return pair


# --- servers -------------------------------------------------------------------------------


def listen_with_tls(rabbitmq: PrivateRabbitMQ, certificates: Certificates, pair: Pair, *options: str) -> int:
    """Have a RabbitMQ take TLS on one more port; `options` are Erlang's."""
    (port,) = free_ports(1)
    terms = [
        f'{{cacertfile,"{certificates.authority}"}}',
        f'{{certfile,"{pair.certificate}"}}',
        f'{{keyfile,"{pair.key}"}}',
        *options,
    ]
    rabbitmq.ctl(
        "eval",
        f"{{ok,_}} = application:ensure_all_started(ssl), "
        f'rabbit_networking:start_ssl_listener({{"{LOOPBACK}",{port}}}, [{",".join(terms)}], 1).',
    )
    return port


def amqps(rabbitmq: PrivateRabbitMQ, port: int, **query: object) -> str:
    """The address of such a port."""
    parts = urlsplit(rabbitmq.amqp_url())
    return _with(parts._replace(scheme="amqps"), port, query)


def postgres_at(postgres: PrivatePostgres, port: int, **query: object) -> str:
    """The address of a Postgres by way of this port."""
    return _with(urlsplit(postgres.url()), port, query)


def _with(parts: SplitResult, port: int, query: dict[str, object]) -> str:
    credentials = parts.netloc.rpartition("@")[0]
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return parts._replace(netloc=f"{credentials}@{HOST}:{port}", query=text).geturl()


@asynccontextmanager
async def tls_before(postgres: PrivatePostgres, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Take TLS in front of a Postgres, as poolers do: the server that we carry is built without."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST
            writer.write(b"S")
            await writer.start_tls(context)
            from_server, to_server = await asyncio.open_connection(LOOPBACK, postgres.port)
            await asyncio.gather(_carry(reader, to_server), _carry(from_server, writer))
        except OSError:
            pass  # the client went, as it should where it does not trust us
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.transport.abort()


def showing(pair: Pair) -> ssl.SSLContext:
    """What a server shows its certificate with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def old(pair: Pair) -> ssl.SSLContext:
    """A server that speaks TLS 1.1 and nothing newer."""
    context = showing(pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def demanding(pair: Pair, authority: Path) -> ssl.SSLContext:
    """A server that wants to see a certificate, too."""
    context = showing(pair)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


# --- what a client says ----------------------------------------------------------------------


class Recorder:
    """Keeps what the client has said on each connection."""

    def __init__(self) -> None:
        self.port = 0
        self.said: list[bytearray] = []

    def __call__(self) -> Recorded:
        self.said.append(bytearray())
        return Recorded(self.said[-1])


class Recorded:
    """One connection."""

    def __init__(self, said: bytearray) -> None:
        self._said = said

    async def from_client(self, data: bytes, write: Write) -> None:
        self._said += data
        await write(data)

    async def from_server(self, data: bytes, write: Write) -> None:
        await write(data)


@asynccontextmanager
async def recording(port: int) -> AsyncIterator[Recorder]:
    """Stand before a server on this machine."""
    recorder = Recorder()
    async with proxy_to(LOOPBACK, port, recorder) as proxy:
        recorder.port = proxy.port
        yield recorder


def is_tls(said: bytes) -> bool:
    """Whether these bytes are whole records of TLS and nothing else."""
    while said:
        if len(said) < HEADER or said[0] not in RECORDS or said[1] != 3:
            return False
        said = said[HEADER + int.from_bytes(said[3:HEADER]) :]
    return True

"""A server that is not verified hears nothing from us: real ones, with certificates of every kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from broker_worker.amqp.connection import connected
from broker_worker.errors import BrokerUnavailableError, ConfigurationError, StoreUnavailableError
from broker_worker.local import PrivatePostgres, PrivateRabbitMQ
from broker_worker.store.database import Database
from tests.support.tls import (
    SSL_REQUEST,
    Certificates,
    Recorder,
    amqps,
    demanding,
    is_tls,
    listen_with_tls,
    old,
    postgres_at,
    recording,
    showing,
    tls_before,
)

pytestmark = pytest.mark.timeout(300)

OLD = "tlsv1.1"  # what no client of ours speaks any more
IMPOSTORS = {
    "of_a_stranger": "its certificate is refused: .*(self-signed|unable to get local issuer)",
    "of_another_host": "its certificate is refused: .*certificate is not valid for 'localhost'",
    "expired": "its certificate is refused: certificate has expired",
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[PrivateRabbitMQ]:
    with PrivateRabbitMQ() as rabbitmq:
        yield rabbitmq


@pytest.fixture(scope="module")
def port_by_server(rabbitmq: PrivateRabbitMQ, certificates: Certificates) -> dict[str, int]:
    demanding = "{verify,verify_peer}", "{fail_if_no_peer_cert,true}"
    return {
        "good": listen_with_tls(rabbitmq, certificates, certificates.good),
        "demanding": listen_with_tls(rabbitmq, certificates, certificates.good, *demanding),
        "old": listen_with_tls(rabbitmq, certificates, certificates.good, f"{{versions,['{OLD}']}}"),
        "plain": rabbitmq.port,
        **{name: listen_with_tls(rabbitmq, certificates, getattr(certificates, name)) for name in IMPOSTORS},
    }


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as postgres:
        yield postgres


async def connect_to_rabbitmq(url: str) -> None:
    async with connected(url, "test"):
        pass


async def connect_to_postgres(url: str) -> None:
    database = Database.open(lambda: url, schema="broker_worker", pool_size=1)
    try:
        await database.ping()
    finally:
        await database.close()


def said_nothing_but_tls(recorder: Recorder, *, after: bytes = b"") -> bool:
    return bool(recorder.said) and all(
        said.startswith(after) and is_tls(bytes(said[len(after) :])) for said in recorder.said
    )


# --- RabbitMQ --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cacertfile", "cafile"])
async def test_a_rabbitmq_whose_certificate_is_of_our_authority_is_spoken_to(
    name: str, rabbitmq: PrivateRabbitMQ, certificates: Certificates, port_by_server: dict[str, int]
) -> None:
    async with recording(port_by_server["good"]) as recorder:
        await connect_to_rabbitmq(
            amqps(rabbitmq, recorder.port, verify="verify_peer", **{name: certificates.authority})
        )

    assert said_nothing_but_tls(recorder)


@pytest.mark.parametrize(
    ("server", "error"),
    [
        *IMPOSTORS.items(),
        ("old", "no TLS with it: .*(protocol|version)"),
        ("plain", "no TLS with it: wrong version"),
    ],
)
async def test_a_rabbitmq_that_can_not_be_verified_is_one_line_and_hears_nothing(
    server: str,
    error: str,
    *,
    rabbitmq: PrivateRabbitMQ,
    certificates: Certificates,
    port_by_server: dict[str, int],
) -> None:
    async with recording(port_by_server[server]) as recorder:
        with pytest.raises(BrokerUnavailableError, match=f"^localhost:{recorder.port}: {error}") as caught:
            await connect_to_rabbitmq(amqps(rabbitmq, recorder.port, cacertfile=certificates.authority))

    assert said_nothing_but_tls(recorder)
    assert "\n" not in str(caught.value)


async def test_a_rabbitmq_of_an_authority_that_only_we_know_is_refused_where_none_is_named(
    rabbitmq: PrivateRabbitMQ, port_by_server: dict[str, int]
) -> None:
    with pytest.raises(BrokerUnavailableError, match="its certificate is refused: "):
        await connect_to_rabbitmq(amqps(rabbitmq, port_by_server["good"]))


async def test_the_name_to_verify_can_be_another_than_the_hosts(
    rabbitmq: PrivateRabbitMQ, certificates: Certificates, port_by_server: dict[str, int]
) -> None:
    await connect_to_rabbitmq(
        amqps(
            rabbitmq,
            port_by_server["of_another_host"],
            cacertfile=certificates.authority,
            server_name_indication="rabbit.example.org",
        )
    )


async def test_a_rabbitmq_that_asks_for_our_certificate_gets_it(
    rabbitmq: PrivateRabbitMQ, certificates: Certificates, port_by_server: dict[str, int]
) -> None:
    client = certificates.client
    await connect_to_rabbitmq(
        amqps(
            rabbitmq,
            port_by_server["demanding"],
            cacertfile=certificates.authority,
            certfile=client.certificate,
            keyfile=client.key,
        )
    )


async def test_without_the_certificate_that_a_rabbitmq_asks_for_it_is_one_line(
    rabbitmq: PrivateRabbitMQ, certificates: Certificates, port_by_server: dict[str, int]
) -> None:
    url = amqps(rabbitmq, port_by_server["demanding"], cacertfile=certificates.authority)

    with pytest.raises(BrokerUnavailableError, match=r"certificate required|reset") as caught:  # as it comes
        await connect_to_rabbitmq(url)

    assert "\n" not in str(caught.value)


async def test_verification_that_is_turned_off_is_off(
    rabbitmq: PrivateRabbitMQ, port_by_server: dict[str, int]
) -> None:
    await connect_to_rabbitmq(amqps(rabbitmq, port_by_server["of_a_stranger"], verify="verify_none"))


@pytest.mark.parametrize("name", ["cacertfile", "certfile"])
async def test_a_file_that_is_not_there_is_one_line(name: str, tmp_path: Path) -> None:
    url = f"amqps://user:s3cret@localhost:1/?{name}={tmp_path / 'missing.pem'}"

    with pytest.raises(BrokerUnavailableError, match=r"can't be (read|used).*: No such file") as caught:
        await connect_to_rabbitmq(url)

    assert "s3cret" not in str(caught.value)


async def test_a_key_whose_password_is_missing_is_one_line_and_asks_nobody(
    certificates: Certificates, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    locked.write_bytes(encrypted(certificates.client.key.read_bytes()))
    url = f"amqps://localhost:1/?certfile={certificates.client.certificate}&keyfile={locked}"

    with pytest.raises(BrokerUnavailableError, match="certificate can't be used with its key"):
        await connect_to_rabbitmq(url)
    with pytest.raises(BrokerUnavailableError, match="Connect"):  # the key is open, nobody is there
        await connect_to_rabbitmq(f"{url}&password=open%20sesame")


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )


# --- Postgres ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
async def test_a_postgres_whose_certificate_is_of_our_authority_is_spoken_to(
    mode: str, postgres: PrivatePostgres, certificates: Certificates
) -> None:
    async with tls_before(postgres, showing(certificates.good)) as port, recording(port) as recorder:
        await connect_to_postgres(
            postgres_at(postgres, recorder.port, sslmode=mode, sslrootcert=certificates.authority)
        )

    assert said_nothing_but_tls(recorder, after=SSL_REQUEST)


async def refuse_postgres(postgres: PrivatePostgres, port: int, certificates: Certificates) -> str:
    """Connect, and see that it is refused in one line before anything is said."""
    async with recording(port) as recorder:
        url = postgres_at(postgres, recorder.port, sslmode="verify-full", sslrootcert=certificates.authority)
        with pytest.raises(StoreUnavailableError) as caught:
            await connect_to_postgres(url)
    assert said_nothing_but_tls(recorder, after=SSL_REQUEST)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("server", "error"), IMPOSTORS.items())
async def test_a_postgres_whose_certificate_is_not_the_right_one_is_one_line_and_hears_nothing(
    server: str, error: str, postgres: PrivatePostgres, certificates: Certificates
) -> None:
    async with tls_before(postgres, showing(getattr(certificates, server))) as port:
        assert re.search(error, await refuse_postgres(postgres, port, certificates))


async def test_a_postgres_without_tls_is_one_line_and_hears_nothing(
    postgres: PrivatePostgres, certificates: Certificates
) -> None:
    assert "rejected SSL upgrade" in await refuse_postgres(postgres, postgres.port, certificates)


async def test_a_postgres_with_an_old_tls_is_one_line_and_hears_nothing(
    postgres: PrivatePostgres, certificates: Certificates
) -> None:
    async with tls_before(postgres, old(certificates.good)) as port:
        await refuse_postgres(postgres, port, certificates)


async def test_the_authorities_of_this_machine_do_not_know_ours(
    postgres: PrivatePostgres, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_before(postgres, showing(certificates.good)) as port:
        url = postgres_at(postgres, port, sslmode="verify-full", sslrootcert="system")

        with pytest.raises(StoreUnavailableError, match="its certificate is refused: "):
            await connect_to_postgres(url)

        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))  # OpenSSL's own, as if installed
        await connect_to_postgres(url)


@pytest.mark.parametrize("authority", ["file", "system"])
async def test_a_postgres_that_asks_for_our_certificate_gets_it_or_there_is_one_line(
    authority: str, postgres: PrivatePostgres, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    verified = {
        "sslmode": "verify-full",
        "sslrootcert": "system" if authority == "system" else certificates.authority,
    }
    client = {"sslcert": certificates.client.certificate, "sslkey": certificates.client.key}

    async with tls_before(postgres, demanding(certificates.good, certificates.authority)) as port:
        await connect_to_postgres(postgres_at(postgres, port, **verified, **client))
        with pytest.raises(StoreUnavailableError) as caught:
            await connect_to_postgres(postgres_at(postgres, port, **verified))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert", "sslkey"])
async def test_a_file_for_postgres_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    url = f"postgresql://user:s3cret@localhost:1/app?sslmode=verify-full&{name}={tmp_path / 'missing.pem'}"

    with pytest.raises(StoreUnavailableError, match=f"{name}='.*missing.pem': No such file") as caught:
        await connect_to_postgres(url)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("password", ["p%ss#w0rd", "p?ss=w0rd", "p/w0rd", "p@ss:w0rd"])
async def test_a_password_that_is_not_encoded_is_in_no_error(password: str) -> None:
    with pytest.raises((ConfigurationError, StoreUnavailableError)) as caught:
        await connect_to_postgres(f"postgresql://user:{password}@127.0.0.1:1/app")

    assert "w0rd" not in str(caught.value)

"""A daemon whose whole conversation with RabbitMQ is encrypted, and one that is told to have it otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_worker.local import PrivateRabbitMQ
from tests.e2e.conftest import Service, message
from tests.support.tls import Certificates, amqps, listen_with_tls

pytestmark = pytest.mark.timeout(300)


def test_a_daemon_consumes_and_publishes_over_verified_tls_with_its_own_certificate(
    service: Service, private_rabbitmq: PrivateRabbitMQ, tmp_path: Path
) -> None:
    certificates = Certificates.issue(tmp_path)
    demanding = "{verify,verify_peer}", "{fail_if_no_peer_cert,true}"
    port = listen_with_tls(private_rabbitmq, certificates, certificates.good, *demanding)
    service.amqp_url = private_rabbitmq.amqp_url()  # for the publisher of this test
    secure = amqps(
        private_rabbitmq,
        port,
        cacertfile=certificates.authority,
        certfile=certificates.client.certificate,
        keyfile=certificates.client.key,
    )
    worker = service.start(AMQP_URL=secure, ALLOW_INSECURE="false")

    service.publish(message("double", "t", {"x": 1}), message("fails_once", "r"))
    service.until_states(succeeded=2)
    service.until_rest()

    assert worker.stop() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"AMQP_URL": "amqp://worker:s3cret@rabbit.example.org/"},
        {"AMQP_URL": "amqps://worker:s3cret@localhost/?verify=verify_none"},
        {"DATABASE_URL": "postgresql://worker:s3cret@db.example.org/app"},
        {"DATABASE_URL": "postgresql://worker:s3cret@db.example.org/app?sslmode=require"},
    ],
    ids=lambda settings: next(iter(settings.values())).replace("s3cret", "…"),
)
def test_an_insecure_url_ends_the_start_with_one_line(service: Service, settings: dict[str, str]) -> None:
    service.settings = {"ALLOW_INSECURE": "false", **settings}
    worker = service.start(ready=False)

    assert worker.wait() == 2
    (line,) = worker.log.read_text().splitlines()
    assert line.startswith(f"BROKER_WORKER_{next(iter(settings))} ")
    assert line.endswith("else allowed only with BROKER_WORKER_ALLOW_INSECURE=true")
    assert "s3cret" not in line

import json
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPConnection, HTTPResponse

import pytest

from broker_worker.errors import ConfigurationError
from broker_worker.telemetry.health import MAX_CONNECTIONS, Check, Health, HealthServer, Probes
from broker_worker.telemetry.redaction import Redactor

LOOPBACK = "127.0.0.1"
WAIT = 30  # seconds; none of these tests waits for it


class Loop:
    """How the watchdog says that the event loop stands."""

    def __init__(self) -> None:
        self.standing = timedelta(0)

    def __call__(self) -> timedelta:
        return self.standing


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def health(loop: Loop) -> Health:
    redactor = Redactor(["canary-secret"])
    return Health(redactor=redactor, standing=loop, blocked_loop_limit=timedelta(seconds=30))


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    with HealthServer(LOOPBACK, 0, probes=Probes(health, lambda: b"some_metric 1\n")) as running:
        yield running


def ask(server: HealthServer, path: str, method: str = "GET", host: str = LOOPBACK) -> tuple[int, bytes]:
    response = request(server, path, method, host)
    return response.status, response.read()


def request(server: HealthServer, path: str, method: str = "GET", host: str = LOOPBACK) -> HTTPResponse:
    connection = HTTPConnection(host, server.port, timeout=WAIT)
    connection.request(method, path)
    return connection.getresponse()


def connect(server: HealthServer) -> socket.socket:
    return socket.create_connection((LOOPBACK, server.port), timeout=WAIT)


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection, which a server in a hurry may cut."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def all_good(health: Health) -> None:
    for check in Check:
        health.set(check, ok=True)


def test_a_worker_is_alive_until_its_loop_has_stood_for_longer_than_the_limit(
    server: HealthServer, loop: Loop
) -> None:
    loop.standing = timedelta(seconds=30)
    stalled = ask(server, "/livez")
    loop.standing = timedelta(seconds=31)
    blocked = ask(server, "/livez")
    loop.standing = timedelta(0)
    turning = ask(server, "/livez")

    assert stalled == (200, b"ok\n")
    assert blocked == (503, b"the event loop does not turn\n")
    assert turning == (200, b"ok\n")


def test_liveness_does_not_depend_on_any_server(server: HealthServer, health: Health) -> None:
    health.set(Check.BROKER, ok=False)
    health.set(Check.DATABASE, ok=False)

    assert ask(server, "/livez")[0] == 200
    assert ask(server, "/readyz")[0] == 503


def test_readiness_needs_every_check_and_says_which_one_fails(server: HealthServer, health: Health) -> None:
    all_good(health)
    ready = ask(server, "/readyz")
    health.set(Check.CONSUMERS, ok=False, detail="email: no consumer")
    not_ready = ask(server, "/readyz")

    assert ready[0] == 200
    assert json.loads(ready[1])["ready"] is True
    assert not_ready[0] == 503
    body = json.loads(not_ready[1])
    assert body["ready"] is False
    assert list(body["checks"]) == ["broker", "database", "consumers", "schema", "draining"]
    assert body["checks"]["consumers"] == {"ok": False, "detail": "email: no consumer"}


def test_a_worker_that_has_said_nothing_yet_is_not_ready(server: HealthServer) -> None:
    assert ask(server, "/readyz")[0] == 503


def test_a_detail_is_short_and_without_secrets(server: HealthServer, health: Health) -> None:
    health.set(Check.BROKER, ok=False, detail="amqp://u:p@h refused canary-secret " + "x" * 1000)

    detail = json.loads(ask(server, "/readyz")[1])["checks"]["broker"]["detail"]

    assert detail.startswith("amqp://***@h refused *** x")
    assert len(detail) == 200


def test_the_start_is_over_when_the_worker_says_so(server: HealthServer, health: Health) -> None:
    before = ask(server, "/startupz")[0]
    health.mark_started()

    assert (before, ask(server, "/startupz")[0]) == (503, 200)


def test_metrics_are_served_in_the_text_format(server: HealthServer) -> None:
    response = request(server, "/metrics?x=1")

    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.read() == b"some_metric 1\n"


def test_head_gets_the_headers_alone(server: HealthServer) -> None:
    response = request(server, "/metrics", "HEAD")

    assert (response.status, response.headers["Content-Length"], response.read()) == (200, "14", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
def test_nothing_can_be_changed(server: HealthServer, method: str) -> None:
    response = request(server, "/readyz", method)

    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/livez/", "/livez/../metrics", "//livez", "/tasks", "/%6civez", "*"])
def test_there_is_nothing_else(server: HealthServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_a_body_does_not_cost_the_client_its_answer(server: HealthServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"POST /livez HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET /livez SIP/2.0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(server: HealthServer, head: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 400 ")


def test_headers_have_a_limit(server: HealthServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 431 ")


def test_one_connection_gets_one_answer(server: HealthServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)

    assert answer.count(b"HTTP/1.1") == 1


def test_a_connection_that_says_nothing_is_ended(health: Health) -> None:
    patience = timedelta(seconds=0.05)
    with (
        HealthServer(LOOPBACK, 0, probes=Probes(health, bytes), patience=patience) as server,
        connect(server) as connection,
    ):
        connection.sendall(b"GET /livez HT")

        assert read_all(connection) == b""


def test_a_connection_that_trickles_does_not_win_time(health: Health) -> None:
    patience = timedelta(seconds=0.2)
    with (
        HealthServer(LOOPBACK, 0, probes=Probes(health, bytes), patience=patience) as server,
        connect(server) as connection,
    ):
        connection.settimeout(0.02)
        ended = False
        for _ in range(1000):
            try:
                connection.sendall(b"x")
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break

    assert ended


def test_slow_connections_do_not_keep_probes_out(server: HealthServer) -> None:
    slow = [connect(server) for _ in range(MAX_CONNECTIONS * 4)]
    for connection in slow:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: ")

    answers = [ask(server, "/livez")[0] for _ in range(20)]
    first_ended = read_all(slow[0])
    for connection in slow:
        connection.close()

    assert answers == [200] * 20
    assert first_ended == b""


def test_no_request_is_logged(server: HealthServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    ask(server, "/livez")

    assert caplog.records == []


def test_stopping_frees_the_port_at_once_and_ends_open_connections(health: Health) -> None:
    def serve(port: int) -> HealthServer:
        server = HealthServer(LOOPBACK, port, probes=Probes(health, bytes))
        server.start()
        return server

    server = serve(0)
    port = server.port
    ask(server, "/livez")
    open_connection = connect(server)
    open_connection.sendall(b"GET")
    server.stop()
    server.stop()
    again = serve(port)
    answer = ask(again, "/livez")[0]
    again.stop()

    assert read_all(open_connection) == b""
    assert answer == 200
    assert not any(thread.name == "broker-worker-http" for thread in threading.enumerate())
    open_connection.close()


def test_ipv6_is_served(health: Health) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with HealthServer("::1", 0, probes=Probes(health, bytes)) as server:
        assert ask(server, "/livez", host="::1")[0] == 200
    with HealthServer("::", 0, probes=Probes(health, bytes)) as server:
        assert ask(server, "/livez", host="::1")[0] == 200
        assert ask(server, "/livez", host=LOOPBACK)[0] == 200


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"])
def test_an_address_that_can_not_be_had_is_one_line(health: Health, host: str) -> None:
    server = HealthServer(host, 8080, probes=Probes(health, bytes))

    with pytest.raises(ConfigurationError) as caught:
        server.start()

    assert str(caught.value).startswith(f"BROKER_WORKER_HTTP_BIND='{host}:8080': can't listen there: ")
    assert "\n" not in str(caught.value)
    server.stop()


def test_a_port_in_use_is_one_line(server: HealthServer, health: Health) -> None:
    with pytest.raises(ConfigurationError, match="already in use"):
        HealthServer(LOOPBACK, server.port, probes=Probes(health, bytes)).start()

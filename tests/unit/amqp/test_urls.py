from __future__ import annotations

import pytest

from broker_worker.amqp.urls import address, broker_urls
from broker_worker.errors import ConfigurationError


def hosts(text: str) -> list[str]:
    return [address(url) for url in broker_urls(text, heartbeat=20)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amqp://h", ["h:5672"]),
        ("amqps://h", ["h:5671"]),
        ("amqp://u:p@h1:1,h2,h3:3/vhost", ["h1:1", "h2:5672", "h3:3"]),
        ("amqp://[::1]:5,h/", ["::1:5", "h:5672"]),
        ("  amqp://h/%2F  ", ["h:5672"]),
    ],
)
def test_each_host_becomes_an_url(text: str, expected: list[str]) -> None:
    assert hosts(text) == expected


def test_user_password_virtual_host_and_parameters_are_the_same_for_each() -> None:
    first, second = broker_urls("amqps://u%40x:p%2Fq@a,b/v%2Fh?cafile=/ca.pem", heartbeat=20)

    for url in (first, second):
        assert (url.user, url.password, url.raw_path) == ("u@x", "p/q", "/v%2Fh")
        assert dict(url.query) == {"heartbeat": "20", "cafile": "/ca.pem"}


def test_a_heartbeat_in_the_url_holds() -> None:
    assert broker_urls("amqp://h/?heartbeat=5", heartbeat=20)[0].query["heartbeat"] == "5"


@pytest.mark.parametrize("heartbeat", ["abc", "", "-1", "1.5", "65535", "9" * 5000])
def test_a_heartbeat_that_the_library_would_take_for_none_is_refused(heartbeat: str) -> None:
    with pytest.raises(ConfigurationError, match="heartbeat"):
        broker_urls(f"amqp://h/?heartbeat={heartbeat}", heartbeat=20)


@pytest.mark.parametrize("query", ["no_verify_ssl=1", "no_verify_ssl=true", "verify=0", "verify=verify_none"])
def test_tls_without_verification_is_what_the_settings_let_through(query: str) -> None:
    (url,) = broker_urls(f"amqps://h/?{query}", heartbeat=20)

    assert url.query["no_verify_ssl"] == "1"


@pytest.mark.parametrize("query", ["no_verify_ssl=0", "verify=1", "verify=verify_peer"])
def test_asking_for_verification_is_fine(query: str) -> None:
    (url,) = broker_urls(f"amqps://h/?{query}", heartbeat=20)

    assert "no_verify_ssl" not in url.query


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h",
        "http://h",
        "amqp://",
        "amqp://u:s3cret@",
        "amqp://u:s3cret@h:port",
        "amqp://u:s3cret@,h",
        "amqps://u:4711/s3cret@h/v",
    ],
)
def test_what_is_no_url_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not an AMQP URL") as caught:
        hosts(text)

    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(caught.value.__cause__)

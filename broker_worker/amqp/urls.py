"""AMQP URLs: several hosts in one, and what is refused."""

from __future__ import annotations

import re

from yarl import URL

from broker_worker.errors import ConfigurationError

SHAPE = re.compile(
    r"(?P<scheme>amqps?)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]+)(?P<rest>(?:/[^?#]*)?(?:\?[^#]*)?)"
)
NO = frozenset({"0", "false", "no", "off", "none", "verify_none"})


def broker_urls(text: str, *, heartbeat: int) -> list[URL]:
    """Split `amqp://user:password@host1:5672,host2/vhost?key=value` into a URL for each host.

    Raises:
        ConfigurationError: it is no AMQP URL, or it asks for TLS without verification;
            the text never repeats the URL, which holds a password.
    """
    shape = SHAPE.fullmatch(text.strip())
    if shape is None:
        raise ConfigurationError("not an AMQP URL: amqp[s]://user:password@host[:port][,host…][/vhost]")
    user = f"{shape['user']}@" if shape["user"] else ""
    try:
        urls = [URL(f"{shape['scheme']}://{user}{host}{shape['rest']}") for host in shape["hosts"].split(",")]
    except ValueError as error:
        raise ConfigurationError("not an AMQP URL: a host or port in it can't be read") from error
    _refuse_unverified(urls[0])
    return [_complete(url, heartbeat) for url in urls]


def address(url: URL) -> str:
    """Name a broker without user and password."""
    return f"{url.host}:{url.port}"


def _refuse_unverified(url: URL) -> None:
    without = url.query.get("no_verify_ssl", "0")
    if without.lower() not in NO or url.query.get("verify", "1").lower() in NO:
        raise ConfigurationError(
            "the AMQP URL switches off the verification of the server's certificate; "
            "remove no_verify_ssl or verify, and name your own authority by cafile=… instead"
        )


def _complete(url: URL, heartbeat: int) -> URL:
    if not url.host:
        raise ConfigurationError("not an AMQP URL: a host is missing")
    default = 5671 if url.scheme == "amqps" else 5672
    query = {name: value for name, value in url.query.items() if name not in ("no_verify_ssl", "verify")}
    return url.with_port(url.explicit_port or default).with_query({"heartbeat": str(heartbeat), **query})

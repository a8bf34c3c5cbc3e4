"""AMQP URLs: several hosts in one, and what is refused."""

from __future__ import annotations

import re

from yarl import URL

from broker_worker.encryption import AMQP_URL, trusts_anyone
from broker_worker.errors import ConfigurationError

SECONDS = re.compile(r"[0-9]{1,5}")
LONGEST_HEARTBEAT = 65534  # seconds; the library takes more for none


def broker_urls(text: str, *, heartbeat: int) -> list[URL]:
    """Split `amqp://user:password@host1:5672,host2/vhost?key=value` into a URL for each host.

    Raises:
        ConfigurationError: it is no AMQP URL; the text never repeats it, for it holds a password.
    """
    shape = AMQP_URL.fullmatch(text.strip())
    if shape is None:
        raise ConfigurationError("not an AMQP URL: amqp[s]://user:password@host[:port][,host…][/vhost]")
    user = f"{shape['user']}@" if shape["user"] else ""
    try:
        urls = [URL(f"{shape['scheme']}://{user}{host}{shape['rest']}") for host in shape["hosts"].split(",")]
    except ValueError as error:
        raise ConfigurationError("not an AMQP URL: a host or port in it can't be read") from error
    return [_complete(url, heartbeat) for url in urls]


def address(url: URL) -> str:
    """Name a broker without user and password."""
    return f"{url.host}:{url.port}"


def _complete(url: URL, heartbeat: int) -> URL:
    if not url.host:
        raise ConfigurationError("not an AMQP URL: a host is missing")
    default = 5671 if url.scheme == "amqps" else 5672
    query = {name: value for name, value in url.query.items() if name not in ("no_verify_ssl", "verify")}
    if trusts_anyone(url.query.items()):
        query["no_verify_ssl"] = "1"
    query.setdefault("heartbeat", str(heartbeat))
    if not SECONDS.fullmatch(query["heartbeat"]) or int(query["heartbeat"]) > LONGEST_HEARTBEAT:
        # the library would take it for none, and a server that falls silent would go unnoticed
        raise ConfigurationError("not an AMQP URL: its heartbeat is not in whole seconds, at most 65534")
    return url.with_port(url.explicit_port or default).with_query(query)

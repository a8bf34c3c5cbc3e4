"""Which URLs lead only to servers that are verified, or that are on this machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

AMQP_URL = re.compile(
    r"(?P<scheme>amqps?)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]+)(?P<rest>(?:/[^?#@]*)?(?:\?[^#]*)?)"
)
NO = frozenset({"0", "false", "no", "off", "none", "verify_none"})
VERIFIED = frozenset({"verify-full", "verify-ca"})
SYSTEM = "system"  # libpq's word for the authorities that this machine trusts, in place of a file


def amqp_weakness(url: str) -> str | None:
    """Say in what way a connection to RabbitMQ could be read or answered by somebody else; never shows it."""
    if trusts_anyone(parse_qsl(url.partition("?")[2], keep_blank_values=True)):
        return "turns the verification of certificates off"
    shape = AMQP_URL.fullmatch(url.strip())
    if shape is None or shape["scheme"] == "amqps":  # what is no URL can't be connected to
        return None
    if all(_is_here(_without_port(host)) for host in shape["hosts"].split(",")):
        return None
    return "leads to another machine without TLS; amqps:// has it"


def trusts_anyone(query: Iterable[tuple[str, str]]) -> bool:
    """Whether one of these parameters turns verification off: aiormq's, or RabbitMQ's own."""
    return any(
        (name == "no_verify_ssl" and value.lower() not in NO) or (name == "verify" and value.lower() in NO)
        for name, value in query
    )


def postgres_weakness(url: str, environ: Mapping[str, str]) -> str | None:
    """Say in what way a connection to Postgres could be read or answered by somebody else; never shows it.

    The driver's own default encrypts where the server offers it, verifies nothing, and falls back
    to plain text. As the driver does, this heeds libpq's variables in `environ`.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None  # nor can it be connected to
    query = dict(parse_qsl(parts.query))
    if _is_verified(query, environ) or all(map(_is_here, _postgres_hosts(parts, query, environ))):
        return None
    return "leads to another machine and does not verify it; sslmode=verify-full does"


def _is_verified(query: Mapping[str, str], environ: Mapping[str, str]) -> bool:
    mode = (query.get("sslmode") or environ.get("PGSSLMODE") or "prefer").replace("_", "-")
    if mode == "require":  # libpq's rule, for its oldest users: with an authority it means verify-ca
        return bool(query.get("sslrootcert") or environ.get("PGSSLROOTCERT"))
    return mode in VERIFIED


def _postgres_hosts(parts: SplitResult, query: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """Find the hosts as the driver does; none where it takes a local socket, `?` where a file names them."""
    before, at, after = parts.netloc.partition("@")
    if named := after if at else before:
        return [_without_port(unquote(host)) for host in named.split(",")]
    if "service" in query:
        return ["?"]
    named = query.get("host") or environ.get("PGHOST", "")
    return [_without_port(host) for host in named.split(",")] if named else []


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_here(host: str) -> bool:
    """Whether nothing that is said to this host leaves the machine, by its name alone."""
    if host.startswith("/") or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

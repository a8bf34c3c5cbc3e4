"""TLS to the broker: the server is verified, and may verify us, before a byte of AMQP is said."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64decode

from aiormq import AMQPConnectionError, TransportFactory
from yarl import URL


class TlsSockets(TransportFactory):
    """Opens sockets as the parameters of an `amqps` URL say, which are those of RabbitMQ's URI specification.

    The library's own knows neither the name to verify nor a key with a password, and leaves the files' names
    out of its errors. Files are read at each connect: certificates are renewed while we run.
    """

    async def create(self, url: URL, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        kwargs.pop("ssl_context_provider", None)
        context = await asyncio.to_thread(tls_context, url)
        try:
            return await asyncio.open_connection(
                url.host,
                url.port,
                ssl=context,
                server_hostname=url.query.get("server_name_indication") or None,
                **kwargs,  # type: ignore[arg-type]  # the library's, for create_connection
            )
        except ssl.SSLCertVerificationError as error:
            raise AMQPConnectionError(f"its certificate is refused: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise AMQPConnectionError(f"no TLS with it: {reason_of(error)}") from error
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error


def tls_context(url: URL) -> ssl.SSLContext:
    """Build what a connection to `url` is verified with: TLS 1.2 at least, as Python's defaults have it.

    Raises:
        AMQPConnectionError: a file that it names can't be used.
    """
    query = url.query
    try:
        context = ssl.create_default_context(  # with none of the three, whom this machine trusts
            cafile=query.get("cacertfile") or query.get("cafile"),
            capath=query.get("capath"),
            cadata=b64decode(query["cadata"]) if "cadata" in query else None,
        )
    except (OSError, ValueError) as error:
        raise AMQPConnectionError(f"the URL's authorities can't be read: {reason_of(error)}") from error
    if certificate := query.get("certfile"):
        try:
            # without a password OpenSSL would ask for it on the terminal
            context.load_cert_chain(
                certificate, query.get("keyfile"), password=lambda: query.get("password", "")
            )
        except OSError as error:
            raise AMQPConnectionError(
                f"the URL's certificate can't be used with its key: {reason_of(error)}"
            ) from error
    if query.get("no_verify_ssl") == "1":  # the settings have allowed it
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def reason_of(error: Exception) -> str:
    """Say in a few words what OpenSSL or the system objects to."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__

"""The outside world of the demo: a mail server and a webhook receiver that is down at first."""

from __future__ import annotations

import asyncio
import email
import socketserver
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler

from aiosmtpd.smtp import SMTP, Envelope, Session

LOOPBACK = "127.0.0.1"


class Mailbox:
    """What the mail server took in: how often each Message-ID came."""

    def __init__(self) -> None:
        self.count_by_id: Counter[str] = Counter()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002 - aiosmtpd's name
        """Take in one mail."""
        content = envelope.content or b""
        mail = email.message_from_bytes(content if isinstance(content, bytes) else content.encode())
        self.count_by_id[mail["Message-ID"].strip("<>").removesuffix("@demo.example")] += 1
        return "250 taken"


@asynccontextmanager
async def mail_server(mailbox: Mailbox) -> AsyncIterator[str]:
    """Serve SMTP; give host and port."""
    loop = asyncio.get_running_loop()
    # a host name of our own: the default one asks the resolver
    server = await loop.create_server(lambda: SMTP(mailbox, hostname="localhost", loop=loop), LOOPBACK, 0)
    try:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Receiver:
    """Takes webhooks in: answers 503 until `outage` seconds after the first one came."""

    def __init__(self, outage: float) -> None:
        self.count_by_id: Counter[str] = Counter()
        self.refused = 0
        self._outage = outage
        self._up_at: float | None = None
        self._lock = threading.Lock()

    def take(self, idempotency_key: str) -> int:
        """Answer one call with an HTTP status."""
        now = time.monotonic()
        with self._lock:
            if self._up_at is None:
                self._up_at = now + self._outage
            if now < self._up_at:
                self.refused += 1
                return 503
            self.count_by_id[idempotency_key] += 1
            return 200


class _Server(socketserver.ThreadingTCPServer):
    """HTTPServer itself asks the resolver for a name; this does not."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


@contextmanager
def webhook_server(receiver: Receiver) -> Iterator[str]:
    """Serve HTTP in threads; give the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(receiver.take(self.headers["Idempotency-Key"]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with _Server((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="webhooks")
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_address[1]}/hook"
        finally:
            server.shutdown()
            thread.join()

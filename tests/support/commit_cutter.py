"""A way to Postgres on which one commit, or the reply to it, gets lost: for daemons in other processes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

QUERY, ANSWER = b"COMMIT;\0", b"COMMIT\0"  # as the driver asks, and as the server says that it is done


class CommitCutter:
    """Cuts the first connection that carries `cut_at` after `marker`, before that is carried."""

    def __init__(self, address: tuple[str, int], *, marker: bytes, cut_at: bytes) -> None:
        self._address = address
        self._marker = marker
        self._cut_at = cut_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0

    def serve(self) -> None:
        """Accept until closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._address)
                marked = threading.Event()
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target, marked), daemon=True).start()

    def close(self) -> None:
        """Accept no more; what is connected ends with its sides."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _carry(self, source: socket.socket, target: socket.socket, marked: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._marker in data:
                    marked.set()
                if marked.is_set() and not self.cuts and self._cut_at in data:
                    self.cuts += 1
                    break
                target.sendall(data)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        source.close()  # each direction closes its source


@contextmanager
def commit_cutter(database_url: str, *, marker: bytes, cut_at: bytes) -> Iterator[tuple[CommitCutter, str]]:
    """Put one before a database: itself, and the address that leads through it."""
    address = urlsplit(database_url)
    cutter = CommitCutter((address.hostname or "", address.port or 5432), marker=marker, cut_at=cut_at)
    thread = threading.Thread(target=cutter.serve)
    thread.start()
    credentials, at, _ = address.netloc.rpartition("@")
    netloc = f"{credentials}{at}127.0.0.1:{cutter.port}"
    try:
        yield cutter, urlunsplit(address._replace(netloc=netloc, query="sslmode=disable"))
    finally:
        cutter.close()
        thread.join(30)

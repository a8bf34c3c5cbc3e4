"""A way to a server that can be shut, or fall silent: for daemons in other processes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit


class Gateway:
    """Carries bytes to and fro while it is open."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._is_shut = False

    def serve(self) -> None:
        """Accept until closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_shut:
                    client.close()
                    continue
                server = socket.create_connection(self._address)
                self._sockets |= {client, server}
                if self._is_shut:  # meanwhile
                    self.shut()
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def shut(self) -> None:
        """Cut what is connected and hang up on who comes, as where the server has gone."""
        self._is_shut = True
        for each in list(self._sockets):
            _end(each)

    def fall_silent(self) -> None:
        """Accept, and carry nothing any more, as where a network drops what it gets."""
        self._flows.clear()

    def close(self) -> None:
        _end(self._listener)
        self.shut()
        self._flows.set()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        for side in (source, target):
            _end(side)


def _end(side: socket.socket) -> None:
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
    side.close()


@contextmanager
def gateway(url: str, *, query: str = "") -> Iterator[tuple[Gateway, str]]:
    """Put one before a server: itself, and the address that leads through it."""
    address = urlsplit(url)
    way = Gateway((address.hostname or "", address.port or 0))
    thread = threading.Thread(target=way.serve)
    thread.start()
    credentials, at, _ = address.netloc.rpartition("@")
    netloc = f"{credentials}{at}127.0.0.1:{way.port}"
    try:
        yield way, urlunsplit(address._replace(netloc=netloc, query=query or address.query))
    finally:
        way.close()
        thread.join(30)

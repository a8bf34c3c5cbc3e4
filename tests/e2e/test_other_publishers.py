"""Programs that know nothing of us hand tasks to a daemon: the snippets of the README, run as they stand."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker_worker.local import LocalServerError
from broker_worker.local.debian import install, no_service_starts, one_at_a_time
from tests.e2e.conftest import Service

ROOT = Path(__file__).parents[2]
AMQPLIB = "2.3.1"
SECONDS_TO_FETCH = 120
SECONDS_TO_PUBLISH = 90

# the first run on a machine installs programs
pytestmark = pytest.mark.timeout(600)


def snippets(language: str) -> list[str]:
    """The README's code blocks of one language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


def snippet(language: str, *, holding: str) -> str:
    (found,) = (text for text in snippets(language) if holding in text)
    return found


def need(program: str, package: str) -> str:
    """The path of a program, its package installed where it is missing and may be."""
    if found := shutil.which(program):
        return found
    try:
        install_packages(package)
    except LocalServerError as error:
        pytest.fail(f"{program} is not installed, and {error}", pytrace=False)
    return shutil.which(program) or pytest.fail(f"the package {package} brings no {program}", pytrace=False)


def install_packages(*packages: str) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise LocalServerError(
            f"{', '.join(packages)} can be installed from here only as root on Debian or Ubuntu"
        )
    with one_at_a_time(), no_service_starts():
        for package in packages:
            install(package)


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a publisher; what it says is shown where it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_PUBLISH,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time fill a folder that others share."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def node_modules() -> Path:
    """The folder of amqplib, fetched once per machine into the user's cache."""
    npm = need("npm", "npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "broker-worker-tests" / f"amqplib-{AMQPLIB}"
    with alone(folder):
        if not (folder / "complete").exists():
            fetched = subprocess.run(
                [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"amqplib@{AMQPLIB}"],
                cwd=folder,
                # trust whom this machine trusts: Node brings a list of authorities of its own
                env={"NODE_OPTIONS": "--use-openssl-ca", **os.environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS_TO_FETCH,
                check=False,
            )
            if fetched.returncode != 0:
                pytest.fail(f"npm can't install amqplib: {fetched.stderr.strip()[-500:]}", pytrace=False)
            (folder / "complete").touch()
    return folder / "node_modules"


@pytest.fixture
def readme(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that runs the handler of the README."""
    handlers = snippet("python", holding="@registry.task")
    (service.folder / "readme_handlers.py").write_text(handlers)
    monkeypatch.setenv("PYTHONPATH", str(service.folder))
    monkeypatch.setenv("AMQP_URL", service.amqp_url)
    service.settings = {"HANDLERS": "readme_handlers"}
    return service


def adapted(service: Service, text: str) -> str:
    """A snippet for this test's own prefix."""
    assert "bw.tasks" in text
    return text.replace("bw.tasks", f"{service.prefix}.tasks")


def test_a_python_program_hands_over_a_task(readme: Service) -> None:
    readme.start()
    program = readme.folder / "publish.py"
    program.write_text(adapted(readme, snippet("python", holding="aio_pika.connect")))

    run([sys.executable, str(program)], readme.folder, {})

    readme.until_states(succeeded=1)
    assert readme.task("ada-1")["result"] == '{"sent_to":"ada@example.org"}'


def test_a_node_program_hands_over_a_task(readme: Service) -> None:
    readme.start()
    node = need("node", "nodejs")
    modules = node_modules()
    program = readme.folder / "publish.js"
    program.write_text(adapted(readme, snippet("js", holding="amqplib")))

    run([node, str(program)], readme.folder, {"NODE_PATH": str(modules)})

    readme.until_states(succeeded=1)
    assert readme.task("bob-1")["result"] == '{"sent_to":"bob@example.org"}'


def test_a_c_program_hands_over_a_task(readme: Service) -> None:
    readme.start()
    compiler = need("cc", "gcc")
    program = readme.folder / "publish.c"
    program.write_text(adapted(readme, snippet("c", holding="amqp_basic_publish")))
    compile_with_librabbitmq(compiler, program)

    run([str(program.with_suffix(""))], readme.folder, {})

    readme.until_states(succeeded=1)
    assert readme.task("cy-1")["result"] == '{"sent_to":"cy@example.org"}'


def test_the_shell_hands_over_a_task(readme: Service) -> None:
    readme.start()
    need("amqp-publish", "amqp-tools")

    run(["sh", "-c", adapted(readme, snippet("sh", holding="amqp-publish"))], readme.folder, {})

    readme.until_states(succeeded=1)
    assert readme.task("dee-1")["result"] == '{"sent_to":"dee@example.org"}'


def test_messages_without_an_id_from_the_shell_are_stamped_and_done(readme: Service) -> None:
    readme.start()
    need("amqp-publish", "amqp-tools")
    whole = adapted(readme, snippet("sh", holding="amqp-publish"))
    without_id = whole.replace('--header "task-id: dee-1"', "")
    assert without_id != whole

    for _ in range(3):
        run(["sh", "-c", without_id], readme.folder, {})

    readme.until_states(succeeded=3)
    ids = [row["message_id"] for row in readme.rows("SELECT message_id FROM tasks")]
    assert sorted(map(len, ids)) == [36, 36, 36]
    readme.until_rest()


def test_the_same_task_published_by_two_programs_is_done_once(readme: Service) -> None:
    readme.start()
    need("amqp-publish", "amqp-tools")
    shell = adapted(readme, snippet("sh", holding="amqp-publish"))
    python = adapted(readme, snippet("python", holding="aio_pika.connect"))
    program = readme.folder / "publish.py"
    program.write_text(python.replace("ada-1", "dee-1").replace("ada@", "dee@"))

    run(["sh", "-c", shell], readme.folder, {})
    run([sys.executable, str(program)], readme.folder, {})

    readme.until_states(succeeded=1)
    readme.until_rest()
    assert readme.task("dee-1")["attempt"] == 1


def test_the_handler_of_the_readme_retries_and_gives_up_as_it_says(readme: Service) -> None:
    readme.start()
    need("amqp-publish", "amqp-tools")
    shell = adapted(readme, snippet("sh", holding="amqp-publish"))

    run(["sh", "-c", shell.replace("dee@example.org", "dee@busy.example")], readme.folder, {})
    run(
        ["sh", "-c", shell.replace("dee-1", "nowhere-1").replace("dee@example.org", "nowhere")],
        readme.folder,
        {},
    )

    readme.until_states(succeeded=1, dead=1)
    assert readme.task("dee-1")["attempt"] == 2
    assert readme.task("nowhere-1")["reason"] == "gave_up"


def compile_with_librabbitmq(compiler: str, program: Path) -> None:
    """Compile, with the library's headers installed where they are missing and may be."""
    command = [compiler, "-Wall", "-Werror", "-o", str(program.with_suffix("")), str(program), "-lrabbitmq"]
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"],
        input="#include <amqp.h>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    if probe.returncode != 0:
        try:
            install_packages("librabbitmq-dev")
        except LocalServerError as error:
            pytest.fail(f"the headers of librabbitmq are missing, and {error}", pytrace=False)
    run(command, program.parent, {})

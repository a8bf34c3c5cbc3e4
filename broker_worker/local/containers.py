"""RabbitMQ and Postgres in Docker, through testcontainers: its helper removes them even after a crash."""

from __future__ import annotations

import importlib.util
import secrets
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from broker_worker.local.errors import LocalServerError
from broker_worker.local.network import answers_amqp, answers_sql, wait_for_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RABBITMQ_IMAGE = "rabbitmq:4-management-alpine"
POSTGRES_IMAGE = "postgres:17-alpine"
SECONDS_FOR_THE_ENGINE = 3
SECONDS_FOR_A_REGISTRY = 8  # three images are asked for, one after the other; the first that fails decides
SECONDS_TO_START = 90.0
STARTING = Lock()  # the first start makes the helper; two threads would make two of one name


@contextmanager
def rabbitmq_in_docker() -> Iterator[tuple[str, str]]:
    """Run RabbitMQ in a container; yield its AMQP and its management address.

    Raises:
        LocalServerError: no engine, no image, or it did not come up.
    """
    password = secrets.token_urlsafe(16)
    settings = {"RABBITMQ_DEFAULT_USER": "guest", "RABBITMQ_DEFAULT_PASS": password}
    with container(RABBITMQ_IMAGE, settings, 5672, 15672) as address:
        amqp_url = f"amqp://guest:{password}@{address(5672)}/%2F"
        wait_until_ready(RABBITMQ_IMAGE, lambda: answers_amqp(amqp_url))
        yield amqp_url, f"http://guest:{password}@{address(15672)}"


@contextmanager
def postgres_in_docker(*, fsync: bool) -> Iterator[str]:
    """Run Postgres in a container; yield its address.

    Raises:
        LocalServerError: no engine, no image, or it did not come up.
    """
    password = secrets.token_urlsafe(16)
    command = [
        "postgres",
        "-cmax_connections=200",
        *([] if fsync else ["-cfsync=off", "-cfull_page_writes=off"]),
    ]
    with container(POSTGRES_IMAGE, {"POSTGRES_PASSWORD": password}, 5432, command=command) as address:
        url = f"postgresql://postgres:{password}@{address(5432)}/postgres"
        wait_until_ready(POSTGRES_IMAGE, lambda: answers_sql(url))
        yield url


@contextmanager
def container(
    image: str, environment: dict[str, str], *ports: int, command: list[str] | None = None
) -> Iterator[Callable[[int], str]]:
    """Run one container; yield a function that says where a port of it is reached.

    Raises:
        LocalServerError: no engine, no image, or it can't be started.
    """
    require_docker(image)
    import docker  # noqa: PLC0415  # the extra `local` may be missing
    import requests  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415
    from testcontainers.core.exceptions import ContainerConnectException, ContainerStartException  # noqa: PLC0415

    failures = (
        docker.errors.DockerException,
        requests.RequestException,
        ContainerStartException,
        ContainerConnectException,
        OSError,
    )
    running = DockerContainer(image).with_exposed_ports(*ports)
    for name, value in environment.items():
        running.with_env(name, value)
    if command is not None:
        running.with_command(command)
    with ExitStack() as until_the_end:
        try:
            with STARTING:
                until_the_end.enter_context(running)
        except failures as error:
            raise LocalServerError(f"Docker cannot start {image} ({type(error).__name__})") from error
        yield lambda port: f"{running.get_container_host_ip()}:{running.get_exposed_port(port)}"


def require_docker(image: str) -> None:
    """Return if an engine answers and has the image, or a registry that answers in time can give it.

    Raises:
        LocalServerError: otherwise; after 30 s at the most, mostly at once.
    """
    if importlib.util.find_spec("testcontainers") is None:
        raise LocalServerError("the package testcontainers is not installed (the extra local has it)")
    import docker  # noqa: PLC0415  # the extra `local` may be missing
    import requests  # noqa: PLC0415
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415

    failures = (docker.errors.DockerException, requests.RequestException, OSError)
    try:
        docker.from_env(timeout=SECONDS_FOR_THE_ENGINE).close()
        engine = docker.from_env(timeout=SECONDS_FOR_A_REGISTRY)
    except failures as error:
        raise LocalServerError(f"no Docker engine answers ({type(error).__name__})") from error
    try:
        for name in (testcontainers_config.ryuk_image, image):
            require_image(engine, name)
    except failures as error:
        raise LocalServerError(f"Docker cannot get {image} ({type(error).__name__})") from error
    finally:
        engine.close()


def require_image(engine: Any, image: str) -> None:  # noqa: ANN401  # the client of the SDK has no types
    """Return if the image is here, or if its registry says within the client's timeout that it has it."""
    import docker  # noqa: PLC0415

    try:
        engine.images.get(image)
    except docker.errors.ImageNotFound:
        engine.images.get_registry_data(image)


def wait_until_ready(image: str, answers: Callable[[], bool]) -> None:
    """Return when the server in a container answers.

    Raises:
        LocalServerError: it does not within `SECONDS_TO_START`.
    """
    if not wait_for_answer(answers, lambda: True, seconds=SECONDS_TO_START):
        raise LocalServerError(f"{image} in Docker did not answer within {SECONDS_TO_START:g} s")

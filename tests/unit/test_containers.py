"""Containers for tests and the demo, with an engine that is not there."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

import docker
import pytest
from testcontainers.core import container as library

from broker_worker.local import LocalServerError, containers


class Refused:
    """A container whose start takes a moment, and is refused."""

    starting = 0
    most_at_once = 0
    lock = threading.Lock()

    def __init__(self, image: str) -> None:
        self.image = image

    def with_exposed_ports(self, *_: int) -> Self:
        return self

    def with_env(self, *_: str) -> Self:
        return self

    def __enter__(self) -> Self:
        with self.lock:
            type(self).starting += 1
            type(self).most_at_once = max(self.most_at_once, self.starting)
        time.sleep(0.01)  # a chance for another thread
        with self.lock:
            type(self).starting -= 1
        raise docker.errors.APIError("409 Conflict")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "require_docker", lambda _: None)
    monkeypatch.setattr(library, "DockerContainer", Refused)
    Refused.most_at_once = 0


def start(image: str) -> None:
    with containers.container(image, {"A": "b"}, 5672):
        raise AssertionError


def test_a_container_that_can_not_be_started_is_a_reason_to_look_elsewhere() -> None:
    with pytest.raises(LocalServerError, match="Docker cannot start rabbitmq"):
        start("rabbitmq:4")


def test_containers_are_started_one_at_a_time_because_the_first_starts_a_helper_for_all() -> None:
    def try_to_start(image: str) -> None:
        with suppress(LocalServerError):
            start(image)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(try_to_start, ["rabbitmq:4", "postgres:17"] * 2))

    assert Refused.most_at_once == 1

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog

from broker_worker.telemetry.logs import QUIET, configure
from broker_worker.telemetry.redaction import Redactor


class Lines:
    """What `configure` made of the calls so far."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.redactor = Redactor()

    def configure(
        self,
        level: str = "debug",
        log_format: str = "json",
        *,
        secrets: tuple[str, ...] = (),
        task_fields: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self.redactor = configure(level, log_format=log_format, stream=self.stream, task_fields=task_fields)
        for secret in secrets:
            self.redactor.learn(secret)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def raw(self) -> list[str]:
        return self.text.splitlines()

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw]

    @property
    def only(self) -> dict[str, Any]:
        (line,) = self.all
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in QUIET}
    with warnings.catch_warnings():
        root.handlers = []  # pytest's own stay unclosed
        yield Lines()
        logging.captureWarnings(capture=False)
    root.handlers = before
    root.setLevel(level)
    for name, former in levels.items():
        logging.getLogger(name).setLevel(former)
    structlog.reset_defaults()

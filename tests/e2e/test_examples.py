"""The small examples that need servers, each with a daemon that runs their handlers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.e2e.conftest import Service
from tests.support.daemon import ROOT

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("transactional", ["booked", "bookings of o-17: 1"]),
        ("other_driver", ["{'shipped': 'o-17'}"]),
        ("client", ["Hello, Ada!", "not published: ", "queued", "cancelled"]),
    ],
)
def test_an_example_does_what_it_says(
    service: Service, monkeypatch: pytest.MonkeyPatch, name: str, says: list[str]
) -> None:
    monkeypatch.setenv("SHOP_DATABASE_URL", service.database_url)
    service.settings = {"HANDLERS": f"examples.{name}"}
    service.start()

    base = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_WORKER_")}
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"],
        cwd=ROOT,
        env={**base, **service.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.splitlines()
    assert len(shown) == len(says)
    assert all(line.startswith(expected) for line, expected in zip(shown, says, strict=True))

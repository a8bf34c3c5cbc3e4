"""What the decorator returns is the function itself, so a test just calls it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from broker_worker import SyncContext
from broker_worker.message import Message, TaskId
from examples.demo import handlers


def context(task_id: str) -> SyncContext:
    message = Message(TaskId("default", "any", task_id), b"{}")
    return SyncContext(message, attempt=1, max_attempts=3, may_be_repeat=False, deadline=datetime.now(UTC))


def test_every_handler_has_a_signature_that_can_be_used() -> None:
    names = [handler.name for handler in handlers.registry.handlers]

    assert "thumbnail.make" in names
    assert len(names) == 8


@pytest.mark.parametrize("times", [1, 2])
def test_a_thumbnail_may_be_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(handlers.Settings, "folder", tmp_path)
    for name in ("images", "thumbnails"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (640, 480), "teal").save(tmp_path / "images" / "one.png")

    made = [handlers.make_thumbnail("one.png", 160, context("t-1")) for _ in range(times)]

    assert made[-1] == handlers.Thumbnail("t-1.jpg", 160, 120)
    assert [path.name for path in (tmp_path / "thumbnails").iterdir()] == ["t-1.jpg"]

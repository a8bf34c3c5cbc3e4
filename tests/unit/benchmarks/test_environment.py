"""The environment of the peers is made once, by one, and anew when its lock changes."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

import pytest

from benchmarks import environment
from benchmarks.environment import EnvironmentMissingError, peers_python, ways


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "benchmarks.txt").write_text("peer==1.0\n")
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand for the installers: what was made, in order."""
    venvs: list[Path] = []

    def make(venv: Path, lock: Path) -> None:
        venv.mkdir(exist_ok=True)
        with lock.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever else asks meanwhile has to wait
        venvs.append(venv)

    monkeypatch.setattr(environment, "make", make)
    return venvs


def test_what_is_up_to_date_is_not_made_again_and_nobody_makes_it_beside_another(
    root: Path, made: list[Path]
) -> None:
    pythons = {peers_python(root) for _ in range(3)}

    assert made == [root / ".venv-bench"]
    assert pythons == {root / ".venv-bench" / "bin" / "python"}


def test_another_lock_makes_it_anew(root: Path, made: list[Path]) -> None:
    peers_python(root)
    (root / "requirements" / "benchmarks.txt").write_text("peer==2.0\n")

    peers_python(root)

    assert len(made) == 2


def test_another_python_makes_it_anew(root: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    peers_python(root)
    monkeypatch.setattr(sys, "version", "4.0.0")

    peers_python(root)

    assert len(made) == 2


def test_what_could_not_be_made_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fails(commands: object) -> str:
        asked.append(commands)
        return "pip: no index"

    monkeypatch.setattr(environment, "first_fault", fails)
    monkeypatch.setattr(environment, "find_uv", lambda: None)

    for _ in range(2):
        with pytest.raises(EnvironmentMissingError, match=r"cannot make \.venv-bench: pip: no index"):
            peers_python(root)

    assert len(asked) == 2


@pytest.mark.parametrize(("uv", "tools"), [("/bin/uv", ["uv", "pip"]), (None, ["pip"])])
def test_hashes_are_checked_whoever_installs(uv: str | None, tools: list[str]) -> None:
    found = ways(uv, Path("venv"), Path("lock"))

    assert len(found) == len(tools)
    assert all("--require-hashes" in commands[-1] for commands in found)

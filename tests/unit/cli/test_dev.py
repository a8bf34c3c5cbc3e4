"""What `broker-worker dev` decides before it starts anything."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from broker_worker.cli import app, dev
from broker_worker.cli.example_task import payload_of
from broker_worker.cli.reloading import is_source, named, source_folders

PROJECT = Path("/home/ada/.checkouts/project")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()


def invoke(*arguments: str, **environment: str) -> Result:
    given: Mapping[str, str | None] = {
        **{name: None for name in os.environ if name.startswith("BROKER_WORKER_")},
        **{f"BROKER_WORKER_{name}": text for name, text in environment.items()},
    }
    return CliRunner().invoke(app, ["dev", *arguments], env=given)


def the_line(result: Result) -> str:
    (line,) = result.stderr.splitlines()
    return line


def test_without_handlers_it_says_what_is_missing() -> None:
    result = invoke()

    assert result.exit_code == 2
    assert the_line(result).startswith("--handlers is missing")


@pytest.mark.parametrize("path", ["app/handlers.py", "./app/handlers.py", "app/handlers"])
def test_a_path_is_answered_with_the_module(path: str) -> None:
    result = invoke("--handlers", path)

    assert result.exit_code == 2
    assert the_line(result).endswith("is a path, but wanted is a module: app.handlers")


def test_a_module_that_is_nowhere_is_said_before_servers_start() -> None:
    result = invoke("--handlers", "no_such_module.handlers")

    assert result.exit_code == 2
    assert "no module no_such_module" in the_line(result)


def test_a_wrong_setting_is_said_before_servers_start() -> None:
    result = invoke("--handlers", "jobs", "--queues", "default:many", LOG_LEVEL="loud")

    assert result.exit_code == 2
    assert [line.partition("=")[0] for line in result.stderr.splitlines()] == [
        "BROKER_WORKER_QUEUES",
        "BROKER_WORKER_LOG_LEVEL",
    ]


def test_a_missing_extra_is_one_line_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)

    result = invoke("--handlers", "jobs")

    assert result.exit_code == 2
    assert the_line(result).endswith("pip install '.[local]' in a clone")


def test_the_users_settings_win_over_ours_and_options_over_both() -> None:
    given = {"BROKER_WORKER_LOG_FORMAT": "json", "BROKER_WORKER_QUEUES": "mail:2", "OTHER": "1"}

    environment = dev._environment(given, {"QUEUES": "default:4"})

    assert environment["BROKER_WORKER_LOG_FORMAT"] == "json"
    assert environment["BROKER_WORKER_QUEUES"] == "default:4"
    assert environment["BROKER_WORKER_AUTO_MIGRATE"] == "true"
    assert environment["OTHER"] == "1"


@pytest.mark.parametrize("folder", ["", "app", "app/mail"])
def test_a_source_is_python_below_a_watched_folder(folder: str) -> None:
    assert is_source(PROJECT / folder / "jobs.py", [PROJECT])


@pytest.mark.parametrize(
    "file",
    [
        "jobs.txt",
        "jobs.py~",
        ".hidden.py",
        ".venv/lib/jobs.py",
        "__pycache__/jobs.py",
        "env/lib/python3.11/site-packages/x/jobs.py",
        "../other/jobs.py",
    ],
)
def test_what_is_hidden_installed_or_elsewhere_is_no_source(file: str) -> None:
    assert not is_source(Path(os.path.normpath(PROJECT / file)), [PROJECT])


def test_the_folders_are_the_current_one_and_those_of_packages_elsewhere(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far_package").mkdir()
    (elsewhere / "far_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "near_package").mkdir()
    sys.path.append(str(elsewhere))
    importlib.invalidate_caches()

    folders = source_folders(["far_package.jobs:registry", "near_package.jobs"])

    assert folders == [tmp_path, elsewhere / "far_package"]


def test_many_changed_files_are_named_by_the_first() -> None:
    assert named([Path("a/b.py")]) == "b.py"
    assert named([Path("c.py"), Path("b.py"), Path("d.py")]) == "b.py and 2 more"


def test_an_example_has_what_the_schema_requires() -> None:
    schema = {
        "properties": {"to": {"type": "string"}, "kind": {"$ref": "#/$defs/Kind"}, "at": {"type": "integer"}},
        "required": ["to", "kind"],
    }

    assert payload_of(schema) == {"to": "text", "kind": None}
    assert payload_of({"type": "object"}) == {}

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_worker.errors import ConfigurationError
from broker_worker.loading import load_registries

HEAD = (
    "from __future__ import annotations\nfrom broker_worker.registry import Registry\nregistry = Registry()\n"
)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(directory: Path, name: str, body: str, head: str = HEAD) -> None:
    (directory / f"{name}.py").write_text(head + body)


def problem(*names: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_registries(names)
    (line,) = str(caught.value).splitlines()
    return line


def test_modules_in_the_current_directory_are_loaded_and_merged(directory: Path) -> None:
    write(directory, "load_a", "@registry.task('a')\ndef a(x: int, y: int): ...\n")
    write(directory, "load_b", "@registry.task('b', default_for='q')\ndef b(x: int): ...\n")

    registry = load_registries(["load_a", "load_b:registry"])

    assert [handler.name for handler in registry.handlers] == ["a", "b"]
    assert registry.default_name("q") == "b"


def test_annotations_may_name_what_a_module_defines_later(directory: Path) -> None:
    later = "from pydantic import BaseModel\nclass Later(BaseModel): ...\n"
    write(directory, "load_later", f"@registry.task('a')\ndef a(x: Later): ...\n{later}")

    assert len(load_registries(["load_later"]).handlers) == 1


def test_one_registry_in_two_modules_is_taken_once(directory: Path) -> None:
    write(directory, "load_one", "@registry.task('a')\ndef a(): ...\n")
    write(directory, "load_two", "from load_one import registry\n", head="")

    assert len(load_registries(["load_one", "load_two"]).handlers) == 1


def test_decoders_of_one_module_serve_the_handlers_of_all(directory: Path) -> None:
    write(directory, "load_handler", "@registry.task('a')\ndef a(x: int): ...\n")
    write(directory, "load_decoder", "@registry.decoder('text/x')\ndef d(body): return {'x': body}\n")

    handler = load_registries(["load_handler", "load_decoder"]).lookup("a")

    assert handler is not None
    assert handler.bind(b"7", "text/x") == {"x": 7}


def test_a_name_in_two_modules_is_refused(directory: Path) -> None:
    write(directory, "load_x", "@registry.task('a')\ndef a(): ...\n")
    write(directory, "load_y", "@registry.task('a')\ndef a(): ...\n")

    says = "load_y.a: the task 'a' is registered already, by load_x.a"
    assert problem("load_x", "load_y") == says


def test_a_module_that_does_not_exist_is_one_line() -> None:
    says = "load_nothing: the module can't be imported: ModuleNotFoundError: No module named 'load_nothing'"
    assert problem("load_nothing") == says


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import nowhere.at.all\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines"),
    ],
)
def test_a_module_that_fails_is_one_line_with_the_place(directory: Path, body: str, says: str) -> None:
    write(directory, "load_broken", body, head="")

    place = f"({directory / 'load_broken.py'}:1)"
    assert problem("load_broken") == f"load_broken: the module can't be imported: {says} {place}"


def test_a_syntax_error_is_one_line_with_the_place(directory: Path) -> None:
    write(directory, "load_syntax", "def f(:\n", head="")

    line = problem("load_syntax")

    assert "SyntaxError: " in line
    assert "(load_syntax.py, line 1)" in line


def test_a_module_without_a_registry_is_one_line(directory: Path) -> None:
    write(directory, "load_empty", "x = 1\n", head="")

    assert problem("load_empty") == "load_empty: the module holds no Registry"
    assert problem("load_empty:x") == "load_empty:x: this is not a Registry but int"
    assert problem("load_empty:y.z") == "load_empty:y.z: this is not a Registry but NoneType"


def test_a_registry_without_handlers_is_one_line(directory: Path) -> None:
    write(directory, "load_bare", "")

    assert problem("load_bare") == "no handler is registered in load_bare"


def test_a_handler_that_can_not_be_served_fails_the_load(directory: Path) -> None:
    write(directory, "load_wrong", "@registry.task('a')\ndef a(x: Nowhere): ...\n")

    says = "load_wrong.a: the annotation of parameter 'x' can't be resolved: name 'Nowhere' is not defined"
    assert problem("load_wrong") == says

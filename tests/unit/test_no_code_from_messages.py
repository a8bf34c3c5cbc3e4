"""Nothing that a publisher writes is ever run: not as code, not as an object, not as the name of a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "broker_worker"
# what makes objects, or code, of bytes
UNPACKERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "jsonpickle",
    "yaml",
    "code",
}
RUNNERS = {"eval", "exec", "compile", "__import__"}
IMPORTERS = {  # by a name that an author, an operator or this package itself has written
    "loading.py": "the modules of the setting HANDLERS",
    "testing/__init__.py": "its own modules, when they are first asked for",
}


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case _:
                pass


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                yield f"{module}.{name}"
            case _:
                pass


@pytest.mark.parametrize("file", files())
def test_nothing_makes_objects_or_code_of_bytes(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text())

    assert UNPACKERS.isdisjoint(imported(tree))
    assert RUNNERS.isdisjoint(called(tree))


def test_modules_are_imported_by_name_only_where_a_publisher_has_no_say() -> None:
    importing = {
        file
        for file in files()
        if {"import_module", "importlib.import_module"} & set(called(ast.parse((PACKAGE / file).read_text())))
    }

    assert importing == set(IMPORTERS)

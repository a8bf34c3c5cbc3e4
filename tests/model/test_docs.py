"""The table of transitions in docs/internals.md names functions that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def defined() -> set[str]:
    """Every function of the package, methods with their class."""
    names = set()
    for source in ROOT.glob("broker_worker/**/*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, FUNCTIONS)}
            elif isinstance(node, FUNCTIONS):
                names.add(node.name)
    return names


def test_each_transition_is_taken_by_functions_that_are_there() -> None:
    _, _, table = (ROOT / "docs/internals.md").read_text().partition("| transition of the model |")
    cells = [row.split("|")[2] for row in table.splitlines()[2:] if row.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`(\w+(?:\.\w+)?)`", cell)}

    assert len(cells) > 10
    assert named - defined() - {"Resumed", "Released"} == set()

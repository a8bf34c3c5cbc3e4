"""Whatever SECURITY.md promises has a test, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
PROOFS = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))


def promises() -> list[list[str]]:
    _, _, rest = PAGE.partition("| | test |\n")
    table = rest.partition("\n\n")[0].splitlines()[1:]
    return [row.strip("| ").split(" | ") for row in table]


def test_each_promise_names_its_proof() -> None:
    assert len(promises()) > 10
    assert [promise for promise, proofs in promises() if "`tests/" not in proofs] == []


@pytest.mark.parametrize("proof", PROOFS)
def test_the_proof_is_there(proof: str) -> None:
    file, _, name = proof.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}

    assert functions
    assert not name or name in functions

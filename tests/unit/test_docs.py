"""What the documentation says of the code is so, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from broker_worker.cli import app
from broker_worker.outcome import Reason
from broker_worker.settings import example
from broker_worker.task import TRANSITIONS, TaskState

ROOT = Path(__file__).parents[2]
DOCS = sorted(
    [
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / f"{n}.md" for n in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    ]
)
REQUIRED = {"AMQP_URL", "DATABASE_URL", "HANDLERS"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def table_of(name: str, heading: str) -> list[list[str]]:
    """The cells of the table whose head begins with `heading`."""
    _, head, rest = text_of(name).partition(f"| {heading} |")
    assert head, f"{name} has no table with the head {heading!r}"
    lines = rest.splitlines()[2:]
    rows = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def defaults() -> dict[str, str]:
    """Every setting with its default, as the example file shows them."""
    found = re.findall(r"^#?BROKER_WORKER_([A-Z_]+)=(.*)$", example(), re.MULTILINE)
    return {name: "required" if name in REQUIRED else default for name, default in found}


def prose_of(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(command: object, path: str = "broker-worker") -> Iterator[str]:
    children: dict[str, object] | None = getattr(command, "commands", None)
    if children is None:
        yield path
        return
    for name, child in children.items():
        yield from commands(child, f"{path} {name}")


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {
        row[0].strip("`"): row[1].strip("`") for row in table_of("docs/configuration.md", "setting")
    }

    said = {name: {"empty": "", "not set": ""}.get(default, default) for name, default in documented.items()}

    assert said == defaults()


def test_the_example_environment_is_what_the_settings_print() -> None:
    assert text_of("config/worker.env.example") == example()


def test_every_reason_code_is_documented_and_no_other() -> None:
    documented = [row[0].strip("`") for row in table_of("docs/message-contract.md", "reason")]

    assert documented == [str(reason) for reason in Reason]


def test_every_command_is_documented_and_no_other() -> None:
    documented = {
        re.sub(r" [A-Z]+$", "", row[0].strip("`")) for row in table_of("docs/configuration.md", "command")
    }

    assert documented == set(commands(typer.main.get_command(app)))


def test_the_table_of_states_has_every_legal_step_and_no_other() -> None:
    rows = table_of("docs/state_machine.md", "from")
    documented = {(row[0].strip("`"), row[1].strip("`")) for row in rows if "`" in row[0]}

    assert documented == {(str(a), str(b)) for a, ends in TRANSITIONS.items() for b in ends}


def test_the_diagram_of_states_has_every_legal_step_and_no_other() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+)", text_of("docs/state_machine.md"), re.MULTILINE)

    assert set(drawn) == {(str(a), str(b)) for a, ends in TRANSITIONS.items() for b in ends}
    assert {state for step in drawn for state in step} == {str(state) for state in TaskState}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if link.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_can_be_parsed_and_run_where_it_needs_no_server(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        code = compile(ast.parse(block), str(path), "exec")
        if "asyncio.run(" not in block:
            exec(code, {"__name__": "snippet"})


@pytest.mark.parametrize(
    ("name", "most"), [("README.md", 130), ("docs/internals.md", 150), ("docs/reliability.md", 150)]
)
def test_short_documents_stay_short(name: str, most: int) -> None:
    assert len(text_of(name).splitlines()) <= most


def test_documents_that_are_named_in_code_exist() -> None:
    sources = [*ROOT.glob("broker_worker/**/*.py"), ROOT / "pyproject.toml"]
    named = {found for source in sources for found in re.findall(r"docs/[\w/-]+\.md", source.read_text())}

    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []

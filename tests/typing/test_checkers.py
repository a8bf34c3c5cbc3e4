"""What type checkers say of a user's code: nothing where it is right, else what is marked there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS_TO_CHECK = 240
MARK = re.compile(r"# E: mypy\[(?P<mypy>[\w-]+)\] pyright\[(?P<pyright>\w+(, \w+)*)\]$")

Complaint = tuple[str, int, str]  # file, line, code

# a checker reads all of pydantic and SQLAlchemy, on a machine that may be slow
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a user's code, out of reach of this repository's configuration."""
    for folder in ("accepted", "rejected"):
        shutil.copytree(HERE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def marked(project: Path, checker: str) -> set[Complaint]:
    """What the lines say of themselves: `# E: mypy[arg-type] pyright[reportArgumentType]`."""
    return {
        (str(path.relative_to(project)), number, code)
        for path in project.glob("rejected/*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (mark := MARK.search(line))
        for code in mark[checker].split(", ")
    }


def said(project: Path, *command: str) -> str:
    """What a checker writes, which ends with 1 where it complains."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_CHECK,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_mypy_accepts_what_is_right_and_finds_what_is_wrong(project: Path) -> None:
    lines = said(
        project, "mypy", "--strict", "--config-file=", "--explicit-package-bases", "--output=json", "."
    ).splitlines()

    complaints = [each for each in map(json.loads, lines) if each["severity"] == "error"]
    assert {(each["file"], each["line"], each["code"]) for each in complaints} == marked(project, "mypy")


def test_pyright_accepts_what_is_right_and_finds_what_is_wrong(project: Path) -> None:
    (project / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')

    report = json.loads(said(project, "pyright", "--outputjson", "--pythonpath", sys.executable))

    assert {
        (str(Path(each["file"]).relative_to(project)), each["range"]["start"]["line"] + 1, each.get("rule"))
        for each in report["generalDiagnostics"]
    } == marked(project, "pyright")


def test_the_wheel_says_that_it_has_types(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        timeout=SECONDS_TO_CHECK,
        check=True,
    )

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "broker_worker/py.typed" in archive.namelist()

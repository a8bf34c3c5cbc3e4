"""A task to try the handlers with: the name of the first of them, and a payload that it may well take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS_TO_IMPORT = 20.0
VALUE_BY_TYPE: dict[str, object] = {
    "string": "text",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}


@dataclass(frozen=True, slots=True)
class ExampleTask:
    """What `broker-worker publish` wants to know."""

    name: str = "NAME"
    data: str = "{}"


def example_task(environment: Mapping[str, str]) -> ExampleTask:
    """Ask another process, which imports the handlers; a general answer if it can't."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "broker_worker", "handlers", "--json"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_IMPORT,
            check=True,
        )
        first = json.loads(asked.stdout.splitlines()[0])
        return ExampleTask(first["name"], json.dumps(payload_of(first["payload"])))
    except (subprocess.SubprocessError, ValueError, IndexError):
        return ExampleTask()


def payload_of(schema: Mapping[str, object]) -> dict[str, object]:
    """Fill in what a JSON Schema requires, by the types alone: null where that says nothing."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {name: VALUE_BY_TYPE.get(properties.get(name, {}).get("type")) for name in required}

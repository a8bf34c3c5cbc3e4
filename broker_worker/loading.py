"""From the names of modules to the handlers that they hold."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable

from broker_worker.errors import ConfigurationError
from broker_worker.payload import one_line
from broker_worker.registry import Registry


def load_registries(names: Iterable[str]) -> Registry:
    """Import `module` or `module:attribute`, each with at least one `Registry`, and merge them.

    The current directory is importable. Every handler is built, so that a fault shows now.

    Raises:
        ConfigurationError: one line about the first thing that is wrong.
    """
    directory = os.getcwd()  # noqa: PTH109 - sys.path wants text
    if directory not in sys.path:
        sys.path.insert(0, directory)
    found: list[Registry] = []
    for name in names:
        found += [registry for registry in _registries(name) if not any(registry is known for known in found)]
    merged = Registry()
    for registry in found:
        merged.include(registry)
    if not merged.handlers:
        raise ConfigurationError(f"no handler is registered in {', '.join(names)}")
    return merged


def _registries(name: str) -> list[Registry]:
    module_name, _, attribute = name.partition(":")
    module = _import(module_name)
    if not attribute:
        registries = [value for value in vars(module).values() if isinstance(value, Registry)]
        if not registries:
            raise ConfigurationError(f"{name}: the module holds no Registry")
        return registries
    value: object = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Registry):
        raise ConfigurationError(f"{name}: this is not a Registry but {type(value).__name__}")
    return [value]


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigurationError(f"{name}: the module can't be imported: {what}{_origin(error)}") from error


def _origin(error: BaseException) -> str:
    """Where in the user's files an import failed."""
    if isinstance(error, SyntaxError):
        return ""  # its own text says so
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename not in (__file__, importlib.__file__)
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""

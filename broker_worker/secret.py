"""Secrets among the settings, and the files that they may come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from broker_worker.errors import ConfigurationError

Complain = Callable[[str], str | None]  # what is wrong with a value, without showing it


class Secret:
    """A setting that is never shown, and may come from a file that changes while we run."""

    __slots__ = ("_complain", "_listeners", "_path", "_told", "_value", "_variable")

    def __init__(
        self,
        variable: str,
        *,
        value: str | None = None,
        path: Path | None = None,
        complain: Complain | None = None,
    ) -> None:
        """Take a value, or the file that holds it; neither means not set.

        What `complain` objects to is not given out: a file is judged anew each time.
        """
        self._variable = variable
        self._value = value
        self._path = path
        self._complain = complain
        self._listeners: list[Callable[[str], None]] = []
        self._told: str | None = None

    @classmethod
    def read(cls, variable: str, environ: Mapping[str, str], *, complain: Complain) -> Self:
        """Take what `variable` holds, or the file that `variable`_FILE names.

        Raises:
            ConfigurationError: both are set, the file can't be read, or `complain` objects.
        """
        value = environ.get(variable, "").strip() or None
        path = environ.get(f"{variable}_FILE", "").strip() or None
        if value is not None and path is not None:
            raise ConfigurationError(f"{variable} and {variable}_FILE are both set; allowed is one of them")
        secret = cls(variable, value=value, path=Path(path) if path else None, complain=complain)
        if secret.is_set:
            secret.reveal()
        return secret

    @property
    def is_set(self) -> bool:
        return self._value is not None or self._path is not None

    def reveal(self) -> str:
        """Return the secret; one from a file is read anew each time, so ask at every connect.

        Raises:
            ConfigurationError: it is not set, its file can't be read (at the moment), or it is not allowed.
        """
        if self._path is not None:
            text = self._from_file(self._path)
        elif self._value is not None:
            text = self._value
        else:
            raise ConfigurationError(f"{self._variable} is not set, nor is {self._variable}_FILE")
        self._tell(text)  # also of what is not allowed: it must not show, either
        complaint = self._complain(text) if self._complain is not None else None
        if complaint is not None:
            raise ConfigurationError(f"{self._variable}{complaint}")
        return text

    def follow(self, listener: Callable[[str], None]) -> None:
        """Tell `listener` the secret now and whenever another one is found in its file."""
        if self._told is not None:
            listener(self._told)
        self._listeners.append(listener)
        if self.is_set:
            with suppress(ConfigurationError):  # it is told as soon as it can be read
                self.reveal()

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            for listener in self._listeners:
                listener(text)

    def _from_file(self, path: Path) -> str:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a UTF-8 text file"
            raise ConfigurationError(f"{self._variable}_FILE={str(path)!r}: {why}") from None
        if not text:
            raise ConfigurationError(f"{self._variable}_FILE={str(path)!r}: the file is empty")
        return text

    def __repr__(self) -> str:
        return f"<{self._variable}: {'***' if self.is_set else 'not set'}>"

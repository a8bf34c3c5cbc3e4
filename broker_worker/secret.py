"""Settings that are never shown, and may come from a file that changes while we run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from broker_worker.errors import ConfigurationError

# aiormq's switch, and the one of RabbitMQ's URI specification
UNVERIFIED = re.compile(
    r"[?&](no_verify_ssl=(?!0(&|,|$))|verify=(verify_none|none|0|false|no|off)\b)", re.IGNORECASE
)


class Secret:
    """A setting that is never shown, and may come from a file that changes while we run."""

    __slots__ = ("_path", "_value", "_variable")

    def __init__(self, variable: str, *, value: str | None = None, path: Path | None = None) -> None:
        """Take a value, or the file that holds it; neither means not set."""
        self._variable = variable
        self._value = value
        self._path = path

    @classmethod
    def read(cls, variable: str, environ: Mapping[str, str], *, schemes: tuple[str, ...]) -> Self:
        """Take a URL from `variable`, or from the file that `variable`_FILE names.

        Raises:
            ConfigurationError: both are set, the file can't be read, or it is no such URL.
        """
        value = environ.get(variable, "").strip() or None
        path = environ.get(f"{variable}_FILE", "").strip() or None
        if value is not None and path is not None:
            raise ConfigurationError(f"{variable} and {variable}_FILE are both set; allowed is one of them")
        secret = cls(variable, value=value, path=Path(path) if path else None)
        if secret.is_set and not secret.reveal().startswith(schemes):
            raise ConfigurationError(f"{variable}: allowed is a URL that begins with {' or '.join(schemes)}")
        return secret

    @property
    def is_set(self) -> bool:
        return self._value is not None or self._path is not None

    def reveal(self) -> str:
        """Return the secret; one from a file is read anew each time, so ask at every connect.

        Raises:
            ConfigurationError: it is not set, or its file can't be read (at the moment).
        """
        if self._path is not None:
            return self._from_file(self._path)
        if self._value is None:
            raise ConfigurationError(f"{self._variable} is not set, nor is {self._variable}_FILE")
        return self._value

    def trusts_anyone(self) -> bool:
        """Say whether this is a URL that turns the verification of certificates off."""
        return self.is_set and UNVERIFIED.search(self.reveal()) is not None

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

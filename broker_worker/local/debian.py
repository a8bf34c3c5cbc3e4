"""Installs RabbitMQ on Debian and Ubuntu, without the service that the package would start."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from broker_worker.local.errors import LocalServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = Path("/usr/sbin/policy-rc.d")  # what the maintainer scripts ask before they start a service
FORBIDDEN = 101
SECONDS_TO_INSTALL = 600.0


def install_rabbitmq() -> None:
    """Install the package `rabbitmq-server`; return at once if another process has just done it.

    Raises:
        LocalServerError: not root, not Debian, or apt-get failed.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise LocalServerError("it can be installed from here only as root on Debian or Ubuntu")
    with one_at_a_time():
        if shutil.which("rabbitmq-server"):
            return
        with no_service_starts():
            install("rabbitmq-server")


def install(package: str) -> None:
    """Install one package; refresh the lists of apt only if they do not do."""
    command = ["install", "--yes", "--no-install-recommends", package]
    if apt_get(*command) is None:
        return
    failure = apt_get("update") or apt_get(*command)
    if failure:
        raise LocalServerError(f"apt-get install {package} failed: {failure}")


def apt_get(*arguments: str) -> str | None:
    """Run apt-get; return the end of what it said if it failed."""
    try:
        done = subprocess.run(
            ["apt-get", "--quiet", "--option", "DPkg::Lock::Timeout=120", *arguments],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_INSTALL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS_TO_INSTALL:g} s"
    return None if done.returncode == 0 else " ".join(done.stderr.split())[-300:]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process install at a time; the lock is on a folder, so that no file is left of it."""
    folder = os.open(POLICY.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Forbid that an installation starts services, and put everything back afterwards."""
    if forbids_services():
        yield
        return
    kept = POLICY.with_name("policy-rc.d.before-broker-worker")
    if POLICY.exists():
        POLICY.rename(kept)
    try:
        POLICY.write_text(f"#!/bin/sh\nexit {FORBIDDEN}\n")
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if kept.exists():
            kept.rename(POLICY)


def forbids_services() -> bool:
    """Whether the policy of this machine (a container's, mostly) already says no."""
    if not os.access(POLICY, os.X_OK):
        return False
    return subprocess.run([POLICY, "rabbitmq-server", "start"], check=False).returncode == FORBIDDEN

"""`python -m broker_worker.local`: start both servers, print their addresses as one line of JSON, and stay.

It stays until SIGTERM, Ctrl-C, or the end of the process that `--while` names (its parent, if none is named),
so that several processes can share one pair of servers.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
from dataclasses import asdict

from broker_worker.local.errors import LocalServerError
from broker_worker.local.servers import local_servers


def main() -> int:
    """Serve; exit 1 with {"error": …} instead of the addresses if there are no servers to be had."""
    parser = argparse.ArgumentParser(prog="python -m broker_worker.local", description=__doc__)
    parser.add_argument("--while", dest="owner", type=int, default=os.getppid(), metavar="PID")
    parser.add_argument("--no-fsync", action="store_true", help="faster, forgetful: for tests")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with os.fdopen(os.pidfd_open(options.owner)) as owner_ended:
        try:
            with local_servers(fsync=not options.no_fsync) as servers:
                say(asdict(servers) | {"pid": os.getpid()})
                select.select([owner_ended], [], [])
        except LocalServerError as error:
            say({"error": str(error)})
            return 1
        except KeyboardInterrupt:
            return 0
    return 0


def say(line: dict[str, object]) -> None:
    """Print one line of JSON at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

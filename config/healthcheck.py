"""Ask this container's own probe, for `HEALTHCHECK`. Needs only the standard library."""  # noqa: INP001

import os
import sys
from http import HTTPStatus
from http.client import HTTPConnection

ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - where the worker listens; this asks on the loopback


def main(path: str) -> int:
    """Return the exit code for one probe."""
    bind = os.environ.get("BROKER_WORKER_HTTP_BIND", "0.0.0.0:8080").strip()
    if bind.lower() in {"", "off"}:
        return 0  # nobody to ask
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    connection = HTTPConnection("localhost" if host in ANYWHERE else host, int(port), timeout=4)
    try:
        connection.request("GET", path)
        return int(connection.getresponse().status != HTTPStatus.OK)
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

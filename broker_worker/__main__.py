"""`python -m broker_worker` is `broker-worker`."""

from broker_worker.cli import main

main()

"""How fast broker_worker is beside those who persist less: `make bench`, `python -m benchmarks --help`."""

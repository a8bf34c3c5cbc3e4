"""Background services: each has one turn, `run_once`, and is run by `every`."""

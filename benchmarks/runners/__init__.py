"""One program per contestant, `python -m benchmarks.runners.<name> work`: see benchmarks/contestant.py."""

"""One program per contestant: `python -m benchmarks.runners.<name> fill|work`; see benchmarks/contestant.py."""

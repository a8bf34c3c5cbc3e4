.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?=
VENV_READY := .venv/.ready
# more than there are cores: most of the long tests wait for a server or a clock
WORKERS ?= 6
# of `make chaos`; without a seed one is drawn and said; a few faults find nothing to be done to
MINUTES ?= 60
MESSAGES ?= 100000
FAULTS ?= 510
SEED ?=
export PYTHON

.PHONY: help setup fmt check test chaos demo bench bench-quick lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(VENV_READY) ## make .venv with everything locked; does nothing when it is up to date

$(VENV_READY): requirements/dev.txt pyproject.toml scripts/setup.sh
	@scripts/setup.sh
	@touch $@

fmt: setup ## format, and fix what the linter can fix
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

check: setup ## formatting, lint, types, import direction
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

test: setup ## the whole suite against a real RabbitMQ and Postgres; WORKERS=n, ARGS="-k name"
	.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

chaos: setup ## break everything for an hour, and judge what became of each message; MINUTES=n MESSAGES=n FAULTS=n SEED=n
	.venv/bin/python -m tests.faults --minutes $(MINUTES) --messages $(MESSAGES) --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) $(ARGS)

demo: setup ## see it work: servers, a worker, some 350 tasks
	.venv/bin/python -m examples.demo

bench: setup ## measure beside the peers, 20 minutes; ARGS="--only broker_worker,faststream --measures none"
	.venv/bin/python -m benchmarks $(ARGS)

bench-quick: setup ## the same in 2 minutes, for a first look
	.venv/bin/python -m benchmarks --quick $(ARGS)

lock: setup ## write requirements/*.txt anew; ARGS="--upgrade" takes newer versions
	scripts/lock.sh $(ARGS)

clean: ## remove .venv and all caches
	rm -rf .venv .venv-bench build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

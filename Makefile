PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINTS = $(addprefix -c ,$(wildcard constraints.txt))
PINS = pyproject.toml $(wildcard constraints.txt)

FILES = 100000
SEED = 0
BENCHMARKS = start_up transfers queueing job_overhead

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint lint-deploy test-long test-faults test-soak fuzz schema audit bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.dev.stamp ## Create .venv with everything for development

demo: .venv/.serve.stamp ## Set up, start the service, compress a real model, show before and after
	$(BIN)/levity demo

serve: .venv/.serve.stamp ## Run the service on http://127.0.0.1:8000
	$(BIN)/levity serve

test: .venv/.dev.stamp ## Run the tests (all but the three below)
	$(BIN)/pytest -m 'not long and not faults and not soak' --numprocesses auto --maxprocesses 4 --dist loadfile

lint: .venv/.dev.stamp ## Check style, formatting, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-deploy: .venv/.deploy.stamp ## Check Dockerfile, docker-compose.yml and deploy/ with the linters of their own
	$(BIN)/pytest --no-header -p no:cacheprovider tests/deploy

test-long: .venv/.dev.stamp ## Run what takes minutes: damaged and hostile files, every operation's schema, hybrids
	$(BIN)/pytest -m long --numprocesses auto --maxprocesses 4 --dist loadfile

test-faults: .venv/.dev.stamp ## Kill, stop, fill and cut what can be: all fifteen failures on both backends
	$(BIN)/pytest tests/acceptance/faults

test-soak: .venv/.dev.stamp ## Mixed jobs under random kills for LEVITY_SOAK_MINUTES (30)
	$(BIN)/pytest -m soak --capture=no

fuzz: .venv/.dev.stamp ## Send 100,000 damaged files to what reads uploads (FILES=…, SEED=…)
	$(BIN)/python -m tests.fuzz --files $(FILES) --seed $(SEED)

schema: .venv/.dev.stamp ## Send many requests for every operation of the OpenAPI document
	LEVITY_SCHEMA_EXAMPLES=200 $(BIN)/pytest tests/api/test_schema.py

audit: .venv/.dev.stamp ## Look for known vulnerabilities in the pinned versions, and for risky code
	$(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10'
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt $(AUDIT_OPTIONS)
	$(BIN)/ruff check --select S api catalog compression levity workers
	$(BIN)/pytest -q tests/test_exceptions.py

bench: .venv/.dev.stamp ## Measure what the README states
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

clean: ## Remove .venv, caches and what the demo left
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info demo-report
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What serves is enough for the demo, and much quicker to install than what develops.
.venv/.serve.stamp: .venv/.python.stamp $(PINS)
	$(PIP_INSTALL) -e '.[serve]' $(CONSTRAINTS)
	@touch $@

.venv/.dev.stamp: .venv/.python.stamp $(PINS)
	$(PIP_INSTALL) -e '.[dev]' $(CONSTRAINTS)
	@touch $@ .venv/.serve.stamp

.venv/.deploy.stamp: .venv/.dev.stamp
	$(PIP_INSTALL) -e '.[dev,deploy]' $(CONSTRAINTS)
	@touch $@

.venv/.python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Levity needs Python 3.11 to 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

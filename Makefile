# `make` lists the targets. Another interpreter: make test PYTHON=python3.12 (it gets a virtual environment of its own).

PYTHON ?= python3
VENV := $(if $(filter python3 python,$(notdir $(PYTHON))),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# A file of tests stays in one process, which shares its fixtures; most of the time is spent compiling, on one core.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
PYTEST_ARGS ?=
RUN_ARGS ?= --preset tiny
UV ?= uv
LOCK = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate $(UPGRADE)

# Compiled programs are kept in the checkout, so that the second `make test` or `make run` need not compile again.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.1

# Large pages for large arrays: a training step on a CPU spends much of its time in page faults otherwise.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help setup run test test-short test-parity test-all lint format docs docs-links bench lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  With PYTHON=python3.12 each uses that interpreter and .venv-python3.12"

setup: $(VENV)/.installed  ## Create the virtual environment with pinned packages (quick when nothing changed)

run: $(VENV)/.installed  ## Run the smallest experiment offline, in minutes (RUN_ARGS="--preset tiny --seed 1")
	$(BIN)/python -m experiments.bds_alpaca $(RUN_ARGS)

test: $(VENV)/.installed  ## Run the tests, but slow ones and torch's: float32, then float64 in a process of their own
	$(PYTEST) $(PYTEST_ARGS)
	JAX_ENABLE_X64=1 $(PYTEST) tests/float64 $(PYTEST_ARGS)

test-short: $(VENV)/.installed  ## Run the float32 tests of all but methods and experiments: a pass for another interpreter
	$(PYTEST) --ignore=tests/methods --ignore=tests/experiments $(PYTEST_ARGS)

test-parity: $(VENV)/.parity  ## Compare with torch, peft and lm-evaluation-harness (installs them first)
	$(PYTEST) tests/parity -m "parity and not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.parity  ## Run every test that needs neither accelerator nor network, compiled as users do
	$(PYTEST) --optimized -m "not gpu and not network" $(PYTEST_ARGS)
	JAX_ENABLE_X64=1 $(PYTEST) --optimized tests/float64 -m "not gpu and not network" $(PYTEST_ARGS)
	$(PYTEST) --optimized tests/parity -m parity $(PYTEST_ARGS)

lint: $(VENV)/.installed  ## Check style, formatting, import rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(VENV)/.installed  ## Sort imports and format every file
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed  ## Build the documentation into build/docs; links between pages are checked
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "open build/docs/index.html"

docs-links: $(VENV)/.installed  ## Follow every link of the documentation (needs the network)
	$(BIN)/python -m sphinx -W --keep-going -q -b linkcheck docs build/links

bench: $(VENV)/.installed  ## Measure speed and memory: every file of benchmarks/
	@set -e; for file in $(wildcard benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file; done

lock:  ## Resolve the pinned requirements again (needs uv; UPGRADE=--upgrade for newer versions)
	$(LOCK) --output-file requirements/run.txt
	$(LOCK) --extra dev --constraint requirements/run.txt --output-file requirements/dev.txt

clean:  ## Remove virtual environments, caches and build files (runs/ stays)
	rm -rf .venv .venv-* .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: $(PYTHON) is missing or older than 3.11; name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot create virtual environments; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.parity: $(VENV)/.installed requirements/parity.txt requirements/eval.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/parity.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/eval.txt
	@touch $@

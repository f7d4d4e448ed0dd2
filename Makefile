.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

PIP = $(BIN)/pip install --quiet --disable-pip-version-check
# Install what constraints.txt lists for a set of extras: these files by their digests, and nothing else.
INSTALL = awk -v set=$(1) '/^\#/ {on = index($$0 " ", " " set " ")} on' constraints.txt > $(VENV)/$(1).txt && \
	$(PIP) --require-hashes --no-deps --only-binary :all: --requirement $(VENV)/$(1).txt

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "installing what constraints.txt lists into $(VENV): 1.3 GB, a minute or two …"
	$(PYTHON) -m venv $(VENV)
	$(call INSTALL,run)
	$(PIP) --no-deps --no-build-isolation --editable .
	-$(BIN)/python -m malt.hosting.private_prefect
	@touch $@

$(VENV)/dev $(VENV)/train $(VENV)/audit: $(VENV)/ready
	@echo "installing the extra \`$(@F)\` …"
	$(call INSTALL,$(@F))
	@touch $@

train: $(VENV)/train  ## install what `malt train` needs: TRL, PEFT, transformers, torch
	$(PIP) $$(grep '^torch==' constraints.txt)

improve: train  ## two rounds of growing, training and evaluating with the embedded model
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

audit: $(VENV)/audit  ## ask for known weaknesses of everything that constraints.txt pins
	grep -oE '^[^ #]+==[^ ]+' constraints.txt > $(VENV)/pins.txt  # torch has no digest, and pip-audit takes all or none
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/pins.txt

pins: $(VENV)/audit  ## write constraints.txt anew; UPGRADE="NAME …" takes the newest of some
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python .ci/pins.py $(UPGRADE)

.PHONY: help setup train improve run test docs audit pins

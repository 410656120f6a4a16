# Everything a person types here. `make help` lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
# uv installs in a minute but does not read pip's find-links: hand them over. Without uv, plain pip does the same work.
FIND_LINKS = $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
INSTALL = -c constraints.txt -e '.[dev,real]'
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help venv lint test
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: .venv/ready  ## create .venv from constraints.txt
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	($(BIN)/pip install -q -c constraints.txt uv && UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install -q --python $(BIN)/python $(INSTALL)) \
	  || $(BIN)/pip install -q $(INSTALL)
	touch $@

lint: venv  ## ruff, format check, mypy --strict on shadowft_core
	ruff check . && ruff format --check . && mypy

test: venv  ## hermetic tests on real local servers
	pytest

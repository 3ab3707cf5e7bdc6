# Two commands need nothing but Python 3.11–3.13 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything is installed through constraints.txt, so that a fresh machine gets the versions that were tested.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check security format docs clean

demo: $(VENV)/.installed
	$(BIN)/exptilt demo --out runs/demo

# Two workers of one thread each: most tests are too small for two threads.
test: $(VENV)/.installed-dev check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright
	$(BIN)/lint-imports

# Secrets in tracked files, and known faults of the pinned packages.
security: $(VENV)/.installed-dev
	$(BIN)/python .ci/security.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html
	@echo "The pages are in docs/_build/html: open index.html."

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "exptilt needs Python 3.11 to 3.13; give another with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[docs]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) dist build docs/_build docs/_api

# Builds a virtual environment on first use, then runs the project's tools in it. pip's own settings (PIP_*) are heeded.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
EXAMPLES ?= 2000
EXTRA ?= dev
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test long third-party third-party-tests lint types fuzz benchmark docs linkcheck clean

help: ## List what can be made
	@echo "make demo, make test, ... (variables: PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS))"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-19s %s\n", $$1, $$2 }'

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "No '$(PYTHON)' here: name a Python 3.10 or later with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  v >= (3, 10) or sys.exit("bilevel-gym needs Python 3.10 or later; $(PYTHON) is %d.%d. Name another with make PYTHON=..." % v[:2])'
	@echo "==> Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) > /dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) \
	  && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } # the second where Python comes without ensurepip
	@echo "==> Installing torch (the largest download)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@echo "==> Installing bilevel-gym, editable, with the extra $(EXTRA)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRA)]"
	@touch $@

demo: $(VENV)/.installed ## Watch four leaders learn, in under two minutes
	@echo "==> Running examples/demo.py"
	@OMP_NUM_THREADS=1 $(BIN)/python examples/demo.py

test: lint types ## Check style and types, then run the tests
	@echo "==> Running the tests, $(JOBS) at a time"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not long"

long: $(VENV)/.installed ## Run the tests that learn for long, which make test leaves out
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m long

third-party: ## Put a leader over environments of other projects, in a virtual environment of its own
	@$(MAKE) --no-print-directory VENV=$(VENV)-third-party EXTRA=third-party third-party-tests

third-party-tests: $(VENV)/.installed
	@echo "==> Checking and training environments of other projects"
	@OMP_NUM_THREADS=1 SDL_VIDEODRIVER=dummy $(BIN)/python -m pytest -q -rs tests/third_party

lint: $(VENV)/.installed ## Check style, and which package imports which
	@echo "==> Checking style and imports"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }

types: $(VENV)/.installed ## Check types with mypy
	@echo "==> Checking types (about a minute the first time)"
	@$(BIN)/mypy

fuzz: $(VENV)/.installed ## Damage files and arguments for long (EXAMPLES=2000 a test)
	@echo "==> Fuzzing, $(EXAMPLES) examples a test"
	@OMP_NUM_THREADS=1 FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q -n $(JOBS) tests/fuzz

benchmark: $(VENV)/.installed ## Reproduce figures and tables, measure speed
	@echo "==> Running the benchmarks"
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

docs: $(VENV)/.installed ## Build the documentation in docs/_build/html
	@echo "==> Building the documentation (warnings, links within it that lead nowhere among them, are errors)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

linkcheck: $(VENV)/.installed ## Ask the web whether the documentation's links to other sites still lead somewhere
	@echo "==> Following the documentation's links to other sites"
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

clean: ## Remove the virtual environment, caches and build outputs
	@echo "==> Removing the virtual environment, caches and build outputs"
	@for venv in $(VENV) $(VENV)-third-party; do if [ -f $$venv/pyvenv.cfg ]; then rm -rf $$venv; fi; done
	@rm -rf build dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo   a virtual environment, then the quickstart recipe: raw text to an aligned chat, with a report
# make test   lint, types, tests
# make bench  the project's own measurements
# make screenshots   pictures of the page for docs/page.md; needs Chromium and a finished run (RUN=runs/quickstart)
# make clean  removes what the above made, but neither runs/ nor .venv (make distclean removes those too)
#
# PYTHON=python3.12 make test     chooses the interpreter of a fresh .venv (3.10 or newer)
# PIP_FLAGS='...' make demo       is passed to pip, for example another package index

PYTHON ?= python3
PIP_FLAGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/quickstart
TESTS ?= tests

.PHONY: demo test lint types bench screenshots clean distclean

demo: $(INSTALLED)
	$(BIN)/jielong run recipes/quickstart.toml --out $(RUN)
	@echo
	@echo "Report:  $(RUN)/report.html"
	@echo "Chat:    $(BIN)/jielong chat $(RUN)"

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)  # one thread each: two workers share two cores

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/jielong bench products attention memory
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/decode_speed.py

screenshots: $(INSTALLED)
	$(BIN)/python benchmarks/screenshots.py $(RUN) --out docs/page

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) runs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "jielong needs Python 3.10 or newer; this is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A new install only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

# Needs Python 3.11 or newer, make and a package index; nothing else.
#
#   make reproduce          the paper's experiments and the comparisons of codes
#                           and of sketches, into results/
#   make reproduce QUICK=1  the same with few runs
#   make test               every test
#   make help               the rest
#
# Variables: PYTHON (the interpreter to build the environment with), VENV (where
# the environment lies), RESULTS, SITE, RUNS, SEED, PYTEST_FLAGS.

PYTHON ?=
VENV ?= .venv
RESULTS ?= results
SITE ?= site
QUICK ?=
RUNS ?=
SEED ?=
PYTEST_FLAGS ?= -n 2

# mkdocs-material's advertisement about the next mkdocs.
export NO_MKDOCS_2_WARNING := 1

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

ifneq ($(filter-out 0 no false,$(QUICK)),)
ifeq ($(RUNS),)
override RUNS := 4
endif
endif
EXPERIMENT_FLAGS := $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED)) --out $(RESULTS)

# An environment whose interpreter is gone (moved, upgraded) is built anew.
VENV_WORKS := $(shell $(BIN)/python -c 'import pip, sys; print(sys.version_info >= (3, 11))' 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce test lint format types docs serve benchmark measure clean

help:
	@echo 'make reproduce   run the experiments (QUICK=1: few runs)'
	@echo 'make test        run the tests'
	@echo 'make lint        ruff: lint and format check'
	@echo 'make format      ruff: fix and format'
	@echo 'make types       pyright'
	@echo 'make docs        build the documentation, strictly, into site/'
	@echo 'make serve       serve the documentation while editing it'
	@echo 'make benchmark   time the library and its peers'
	@echo 'make measure     measure every number of README and docs anew'
	@echo 'make clean       remove the environment and everything built'

reproduce: $(STAMPS)/experiments
	$(BIN)/python -m experiments mnist $(EXPERIMENT_FLAGS)
	$(BIN)/python -m experiments linear-regression $(EXPERIMENT_FLAGS)
	$(BIN)/python -m experiments figure2 $(EXPERIMENT_FLAGS)
	$(BIN)/python -m experiments codes $(EXPERIMENT_FLAGS)
	$(BIN)/python -m experiments sketching $(EXPERIMENT_FLAGS)
	@echo
	@echo "Tables and figures are in $(abspath $(RESULTS)):"
	@find "$(RESULTS)" -type f ! -name '.*' | sort | sed 's/^/  /'

# One thread a process: two processes with two threads each spin more than they work.
# Nearly all of the time goes into compiling, which takes half as long without LLVM's
# optimisations; XLA_FLAGS= tests with them.
test: XLA_FLAGS ?= --xla_backend_optimization_level=0
test: $(STAMPS)/test
	OPENBLAS_NUM_THREADS=1 XLA_FLAGS="$(XLA_FLAGS)" $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMPS)/dev
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMPS)/docs
	$(BIN)/mkdocs build --strict --site-dir "$(abspath $(SITE))"

serve: $(STAMPS)/docs
	$(BIN)/mkdocs serve

benchmark: $(STAMPS)/experiments
	$(BIN)/python -m experiments benchmark --out $(RESULTS)

# Every number in the README and the documentation, measured anew.
measure:
	$(MAKE) reproduce RESULTS=docs/results
	$(MAKE) benchmark RESULTS=docs/results
	$(BIN)/python docs/hooks/readme.py

clean:
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf results site build dist .pytest_cache .ruff_cache .hypothesis
	find jaxwgc experiments tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a set of extras; pyproject.toml newer than the stamp reinstalls it.
$(STAMPS)/experiments: EXTRAS := experiments
$(STAMPS)/test: EXTRAS := test,experiments
$(STAMPS)/docs: EXTRAS := docs
$(STAMPS)/dev: EXTRAS := dev

$(STAMPS)/experiments $(STAMPS)/test $(STAMPS)/docs $(STAMPS)/dev: pyproject.toml $(STAMPS)/venv
	@echo "Installing .[$(EXTRAS)] into $(VENV); the first time takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@touch $@

ifneq ($(VENV_WORKS),True)
.PHONY: $(STAMPS)/venv
endif
$(STAMPS)/venv:
	@if [ "$(VENV_WORKS)" = True ]; then mkdir -p "$(STAMPS)" && touch $@ && exit 0; fi; \
	if [ -e "$(VENV)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ] && [ -n "$$(ls -A "$(VENV)")" ]; then \
	  echo "error: $(VENV) exists and is no virtual environment; move it, or set VENV" >&2; exit 1; \
	fi; \
	usable='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; \
	candidates="$(PYTHON)"; \
	[ -n "$$candidates" ] || candidates="python3.13 python3.12 python3.11 python3 python"; \
	for python in $$candidates; do \
	  if "$$python" -c "$$usable" >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "error: no Python >= 3.11 with venv and pip among: $$candidates" >&2; \
	  echo "Install one (on Debian and Ubuntu python3-venv too), or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$found ($$($$found --version))"; \
	"$$found" -m venv --clear "$(VENV)" && mkdir -p "$(STAMPS)" && touch $@

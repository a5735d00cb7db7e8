# Needs Python 3.11 or newer, make and a package index; nothing else.
#
#   make reproduce          the paper's experiments and the comparisons of codes
#                           and of sketches, into results/
#   make reproduce QUICK=1  the same with few runs
#   make test               every test
#   make help               the rest
#
# Variables: PYTHON (the interpreter to build the environment with), VENV (where
# the environment lies), LOWEST_PYTHON and LOWEST_VENV (those of `make test-lowest`),
# RESULTS, SITE, DIST, RUNS, SEED, PYTEST_FLAGS.

PYTHON ?=
VENV ?= .venv
LOWEST_PYTHON ?= python3.11
LOWEST_VENV ?= .venv-lowest
RESULTS ?= results
SITE ?= site
DIST ?= dist
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
.PHONY: help reproduce test coverage test-lowest lint format types docs serve package
.PHONY: benchmark measure clean

help:
	@echo 'make reproduce   run the experiments (QUICK=1: few runs)'
	@echo 'make test        run the tests'
	@echo 'make coverage    run the tests, print which lines and branches none runs'
	@echo 'make test-lowest run a core of the tests on the lowest versions supported'
	@echo 'make lint        ruff: lint and format check'
	@echo 'make format      ruff: fix and format'
	@echo 'make types       pyright'
	@echo 'make docs        build the documentation, strictly, into site/'
	@echo 'make serve       serve the documentation while editing it'
	@echo 'make package     build wheel and sdist into dist/, check and try them'
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

# Lines and branches of jaxwgc that the tests run, and the lines that none of them does.
coverage: XLA_FLAGS ?= --xla_backend_optimization_level=0
coverage: $(STAMPS)/dev
	OPENBLAS_NUM_THREADS=1 XLA_FLAGS="$(XLA_FLAGS)" $(BIN)/python -m pytest $(PYTEST_FLAGS) --cov=jaxwgc

# A core of the tests with the lowest versions that pyproject.toml declares.
LOWEST_TESTS := $(addprefix tests/,test_rounds.py test_gradients.py test_aggregate_checks.py \
  decoders/test_decoder.py stragglers/test_equal_models.py sketching/test_sparse_scores.py)

test-lowest: XLA_FLAGS ?= --xla_backend_optimization_level=0
test-lowest: $(LOWEST_VENV)/.stamp
	OPENBLAS_NUM_THREADS=1 XLA_FLAGS="$(XLA_FLAGS)" $(LOWEST_VENV)/bin/python -m pytest $(PYTEST_FLAGS) $(LOWEST_TESTS)

$(LOWEST_VENV)/.stamp: pyproject.toml
	@if ! "$(LOWEST_PYTHON)" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  echo "error: $(LOWEST_PYTHON) is not Python 3.11 with venv and pip, the lowest supported" >&2; \
	  echo "Install one (apt install python3.11-venv, pyenv install 3.11, uv python install 3.11)," >&2; \
	  echo "or name it: make test-lowest LOWEST_PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi
	@if [ -e "$(LOWEST_VENV)" ] && [ ! -f "$(LOWEST_VENV)/pyvenv.cfg" ]; then \
	  echo "error: $(LOWEST_VENV) exists and is no virtual environment" >&2; exit 1; \
	fi
	@echo "Installing the lowest versions into $(LOWEST_VENV)."
	"$(LOWEST_PYTHON)" -m venv --clear "$(LOWEST_VENV)"
	$(LOWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST_VENV)/bin/uv pip install --quiet --python $(LOWEST_VENV)/bin/python \
	  --resolution lowest-direct --editable ".[test]"
	@touch $@

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

# What would be published, tried in an empty environment and from another folder.
package: $(STAMPS)/dev
	rm -rf "$(DIST)"
	$(BIN)/python -m build --outdir "$(DIST)"
	$(BIN)/twine check --strict "$(DIST)"/*
	@set -e; try=$$(mktemp -d); trap 'rm -rf "$$try"' EXIT; \
	awk '/^```/ {if (on) exit; on = /python/; next} on' README.md > "$$try/example.py"; \
	$(BIN)/python -m venv "$$try/venv"; \
	"$$try/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(DIST)"/*.whl; \
	(cd "$$try" && venv/bin/python example.py); \
	echo "The README's first example runs on the wheel alone."

benchmark: $(STAMPS)/experiments
	$(BIN)/python -m experiments benchmark --out $(RESULTS)

# Every number in the README and the documentation, measured anew.
measure:
	$(MAKE) reproduce RESULTS=docs/results
	$(MAKE) benchmark RESULTS=docs/results
	$(BIN)/python docs/hooks/readme.py

clean:
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	@if [ -f "$(LOWEST_VENV)/pyvenv.cfg" ]; then rm -rf "$(LOWEST_VENV)"; fi
	rm -rf results site build dist .pytest_cache .ruff_cache .hypothesis .coverage*
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

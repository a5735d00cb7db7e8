# Needs Python 3.11 or newer, make and a package index; nothing else.
#
#   make reproduce          the paper's tables and figure, into results/
#   make test               everything a change can break; FAST=1 a core of it
#   make test-all           every test, thoroughly
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
FAST ?=
RUNS ?=
SEED ?=
PYTEST_FLAGS ?= -n auto --dist loadgroup

# mkdocs-material's advertisement about the next mkdocs.
export NO_MKDOCS_2_WARNING := 1

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

is_on = $(filter-out 0 no false,$(1))

ifneq ($(call is_on,$(QUICK)),)
ifeq ($(RUNS),)
override RUNS := 4
endif
endif
# How long, on two cores: with all runs, and with few.
about = @echo "About $(if $(RUNS),$(2),$(1)) minutes on two cores."
# With RUNS, or as many runs as are named, or the default.
flags = $(addprefix --runs ,$(or $(RUNS),$(1))) $(if $(SEED),--seed $(SEED)) --out $(RESULTS)

# An environment whose interpreter is gone (moved, upgraded) is built anew.
VENV_WORKS := $(shell $(BIN)/python -c 'import pip, sys; print(sys.version_info >= (3, 11))' 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce compare benchmark measure test test-all coverage test-lowest test-variants
.PHONY: mutations lint format types docs serve package clean

help:
	@echo 'make reproduce   the tables and the figure of the paper, 3 minutes (QUICK=1: few runs)'
	@echo 'make compare     all codes and all sketches compared, 16 minutes (QUICK=1: few runs)'
	@echo 'make benchmark   time the library and its peers, 11 minutes'
	@echo 'make measure     every number of README and docs anew, real workers too, 115 minutes'
	@echo 'make test        run the tests of every day (FAST=1: a core of them, in 90 seconds)'
	@echo 'make test-all    run every test, with many more random examples'
	@echo 'make coverage    run the tests, print which lines and branches none runs'
	@echo 'make test-lowest run that core on the lowest versions supported'
	@echo 'make test-variants numerical tests as on other processors, BLAS kernels, seeds, 3 hours'
	@echo 'make mutations   put 120 small faults into the core, print those that tests miss, 2 hours'
	@echo 'make lint        ruff: lint and format check'
	@echo 'make format      ruff: fix and format'
	@echo 'make types       pyright'
	@echo 'make docs        build the documentation, strictly, into site/'
	@echo 'make serve       serve the documentation while editing it'
	@echo 'make package     build wheel and sdist into dist/, check and try them'
	@echo 'make clean       remove the environment and everything built'

reproduce: $(STAMPS)/experiments
	$(call about,3,1)
	$(BIN)/python -m experiments mnist $(call flags,80)
	$(BIN)/python -m experiments linear-regression $(call flags,800)
	$(BIN)/python -m experiments figure2 $(call flags,500)
	@for name in table1 table2 figure2; do echo; $(BIN)/python -m rich.markdown "$(RESULTS)/$$name.md"; done
	$(list_results)

compare: $(STAMPS)/experiments
	$(call about,16,3)
	$(BIN)/python -m experiments codes $(call flags)
	$(BIN)/python -m experiments sketching $(call flags)
	$(list_results)

benchmark: $(STAMPS)/experiments
	$(call about,11,11)
	$(BIN)/python -m experiments benchmark --out $(RESULTS)

# Every number in the README and the documentation, measured anew with all runs.
measure: $(STAMPS)/experiments
	@echo "An hour or two on two cores, which nothing else should use."
	@for name in mnist linear-regression figure2 codes sketching stability weights report step-times plan delays time slow-workers asynchronous \
	  wrong-answers benchmark cluster chaos language-model local-steps wrong-workers; do \
	  $(BIN)/python -m experiments $$name --out docs/results || exit; \
	done
	$(BIN)/python docs/hooks/tables.py

define list_results
@echo
@echo "Tables and figures are in $(abspath $(RESULTS)):"
@find "$(RESULTS)" -type f ! -name '.*' | sort | sed 's/^/  /'
endef

# A first answer, and what the lowest versions that pyproject.toml declares have to pass.
CORE_TESTS := $(addprefix tests/,coding/test_coding.py test_gradients.py test_modules.py \
  aggregate/test_aggregate_checks.py traces/test_table_files.py decoders/test_decoder.py stragglers/test_models.py \
  sketching/test_traced_arguments.py)

# One thread a process: two processes with two threads each spin more than they work.
# Nearly all of the time goes into compiling, which takes half as long without LLVM's
# optimisations (XLA_FLAGS= tests with them); what is compiled is kept beside the
# environment's packages for the next time.
test test-all coverage test-lowest test-variants mutations: export OPENBLAS_NUM_THREADS := 1
test test-all coverage test-lowest mutations: export XLA_FLAGS ?= --xla_backend_optimization_level=0
test test-all coverage test-lowest test-variants mutations: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test test-all coverage test-variants: export JAX_COMPILATION_CACHE_DIR ?= $(abspath $(VENV))/jax-cache
mutations: export JAX_COMPILATION_CACHE_DIR ?= $(abspath $(VENV))/mutations-cache
test-lowest: export JAX_COMPILATION_CACHE_DIR ?= $(abspath $(LOWEST_VENV))/jax-cache

test: $(STAMPS)/test
	$(BIN)/python -m pytest -m "not weekly" $(PYTEST_FLAGS) $(if $(call is_on,$(FAST)),$(CORE_TESTS))

test-all: $(STAMPS)/test
	$(BIN)/python -m pytest --hypothesis-profile=thorough $(PYTEST_FLAGS)

# Lines and branches of jaxwgc that the tests run, and the lines that none of them does.
coverage: $(STAMPS)/dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --cov=jaxwgc

test-lowest: $(LOWEST_VENV)/.stamp
	$(LOWEST_VENV)/bin/python -m pytest $(PYTEST_FLAGS) $(CORE_TESTS)

test-variants: $(STAMPS)/test $(LOWEST_VENV)/.stamp
	$(BIN)/python -m tests.variants --lowest $(LOWEST_VENV)/bin/python

# COUNT faults; SEED draws others, WHERE names folders, files or lines, FAULTS an earlier
# run. What tests execute is kept: remove $(VENV)/executed after large changes.
mutations: $(STAMPS)/test
	$(BIN)/python -m tests.mutations $(or $(COUNT),120) $(or $(SEED),0) $(WHERE) \
	  --kept $(VENV)/executed $(addprefix --faults ,$(FAULTS))

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

# Runs the tutorials, on the kernel of this environment whatever else is installed; while
# pages are edited they are shown without their outputs, which would take a minute a time.
docs: export JUPYTER_PREFER_ENV_PATH := 1
docs: export XLA_FLAGS ?= --xla_backend_optimization_level=0
docs: $(STAMPS)/docs
	$(BIN)/mkdocs build --strict --site-dir "$(abspath $(SITE))"
	@echo "The documentation is in $(abspath $(SITE))/index.html."

serve: export EXECUTE_TUTORIALS := false
serve: $(STAMPS)/docs
	$(BIN)/mkdocs serve

# What would be published, tried in an empty environment and from another folder.
package: $(STAMPS)/dev
	rm -rf "$(DIST)"
	$(BIN)/python -m build --outdir "$(DIST)"
	$(BIN)/twine check --strict "$(DIST)"/*
	@set -e; try=$$(mktemp -d); trap 'rm -rf "$$try"' EXIT; \
	awk '/end:example/ {exit} on && !/^```/; /start:example/ {on = 1}' README.md > "$$try/example.py"; \
	$(BIN)/python -m venv "$$try/venv"; \
	"$$try/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(DIST)"/*.whl; \
	(cd "$$try" && venv/bin/python example.py); \
	echo "The README's first example runs on the wheel alone."

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

# Before anything is installed: the tutorials take minutes to fail.
$(STAMPS)/docs: $(STAMPS)/python-of-docs
$(STAMPS)/python-of-docs: $(STAMPS)/venv
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
	  echo "error: the tutorials of the documentation need Python 3.12 or newer; $(VENV) has" \
	    "$$($(BIN)/python --version)" >&2; \
	  echo "Build with a newer one: make docs VENV=.venv-docs PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
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

# Everything a developer runs. Each target does its own set-up: `make test` on a fresh clone is enough.

VENV   := .venv
BIN    := $(VENV)/bin
# Two stages of one .venv, each with a stamp: what a study needs (quickstart), and the tools of developers on top of it.
RUNS   := $(VENV)/.installed-services
STAMP  := $(VENV)/.installed
IMPORTED := $(VENV)/.imported
# The oldest supported Python comes first: the pinned versions are tested on it. Shims that cannot run are passed over.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$python; break; }; done)
# Four keep two cores busy: some tests wait for other processes; each more takes 10 s of a processor to collect.
WORKERS ?= 4
TESTS   ?= tests
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export NO_MKDOCS_2_WARNING := 1
# The tests start a hundred processes, each of which would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-end-to-end test-faults test-gpu check format docs dist clean
.NOTPARALLEL: # two pips in one .venv would undo each other's work

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## build .venv with the tested versions and all tools; does nothing when it is up to date

# Both stamps are taken away first and those that hold are written last: a .venv with neither is what an interrupted
# install left behind. Without --no-compile pip compiles every module of 2 GB, on one core; Python does that itself, at
# the first import, for the few that are used.
# $(1): the extra; $(2): the stamps that hold afterwards.
define build_venv
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, none is on the PATH; or name one: make install PYTHON=/path/to/python" >&2; exit 1; }
	@if [ -d $(VENV) ] && [ ! -f $(RUNS) ] && [ ! -f $(STAMP) ]; then echo "$(VENV) was not finished: building it again"; rm -rf $(VENV); fi
	@rm -f $(RUNS) $(STAMP)
	@echo "Installing the extra '$(1)' into $(VENV) with $$($(PYTHON) --version): one to three minutes, about 2 GB"
	@[ -d $(VENV) ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[$(1)]'
	@touch $(2)
endef

$(RUNS): pyproject.toml constraints.txt
	$(call build_venv,services,$(RUNS))

$(STAMP): pyproject.toml constraints.txt
	$(call build_venv,dev,$(RUNS) $(STAMP))

quickstart: $(RUNS) ## the whole of it on small data: search, learn, compare, export, report
	@$(BIN)/nas-blockout run quickstart

# pip compiles nothing, so that each worker would compile what all of them import, for 40 s of a processor. One process
# does it, beside another that begins with what the first comes to last; what is wrong with a test the test run says.
$(IMPORTED): $(STAMP)
	@echo "Compiling what the tests import, once an installation: about half a minute"
	@$(BIN)/python -W ignore -c 'import scipy.stats, sklearn, mlflow, optuna, ray.tune, schemathesis' & \
	$(BIN)/python -m pytest --collect-only -qq tests >/dev/null 2>&1; wait
	@touch $@

# Whoever names some tests means them, whatever they are.
CHOSEN := $(if $(filter tests,$(TESTS)),not end_to_end and )not faults and not gpu
RUN_TESTS = $(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: install $(IMPORTED) ## every test but those of whole studies (WORKERS=0 for one process, TESTS=... for some)
	@$(RUN_TESTS) -m '$(CHOSEN)' $(TESTS)

test-end-to-end: install $(IMPORTED) ## whole studies through Ray, MLflow, queue and API, killed and resumed
	@$(RUN_TESTS) -m 'end_to_end' tests/services/end_to_end tests/services/topology

test-faults: install ## kill, stall and fill what the service stands on; writes docs/results/faults.md (FAULT_SECONDS=60)
	@FAULTS_REPORT=docs/results/faults.md $(BIN)/python -m pytest --quiet -m faults --capture=no tests/services/topology

# With a Python of yours, which has a torch for your card: of this project it needs the library alone.
GPU_PYTHON ?= $(PYTHON)
GPU_DEVICE ?= cuda
test-gpu: ## the library on a card, with your own torch (GPU_PYTHON=python3, GPU_DEVICE=cuda:1)
	@$(GPU_PYTHON) -c 'import torch, pytest, sklearn, scipy' || { echo "error: tests on a card need torch, torchvision, pytest, hypothesis, scikit-learn and scipy in $(GPU_PYTHON); name another: make test-gpu GPU_PYTHON=/path/to/python" >&2; exit 1; }
	@PYTHONPATH=$(CURDIR) $(GPU_PYTHON) -m pytest --quiet -ra -o addopts=--import-mode=importlib -W ignore::pytest.PytestConfigWarning --device $(GPU_DEVICE) tests/gpu

check: install ## format, lint, types, layout, docs: what must hold before a commit
	@$(BIN)/ruff format --check --quiet . || { echo "error: not formatted, see above; run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_layout.py tests/test_layout_rules.py tests/test_docs.py
	@$(BIN)/mkdocs build --quiet --strict --site-dir site

format: install ## rewrite the code as the formatter and the linter want it
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

docs: install ## write the generated reference pages and build the docs into site/
	@if [ -f docs/generate_reference.py ]; then $(BIN)/python docs/generate_reference.py; fi
	@$(BIN)/mkdocs build --quiet --strict --site-dir site
	@echo "site/index.html"

dist: install ## build the sdist and the wheel into dist/, as docs/guides/releasing.md tells
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist

clean: ## remove what the tools wrote (not .venv, not runs/)
	@rm -rf build dist site htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

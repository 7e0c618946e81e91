# make help lists what there is. Everything runs in the active virtual environment, or in .venv.

PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),$(CURDIR)/.venv)
INSTALLED := $(VENV)/.instant-soup-installed
export PATH := $(VENV)/bin:$(PATH)
# This checkout, even where the environment was set up by another one.
export PYTHONPATH := $(CURDIR)/src
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
# Off, where it is on: dozens of stage processes would compile the same thousand modules each.
export PYTHONDONTWRITEBYTECODE :=

# params.yaml as it is, or changed to one family's packaged model and data.
ifeq ($(FAMILY),clip)
SETTINGS = -S model=clip-glyph -S dataset=mnist-sample
else ifeq ($(FAMILY),bert)
SETTINGS = -S model=minilm -S dataset=reviews-sentiment
else ifeq ($(FAMILY),lm)
SETTINGS = -S model=llama-snippets -S dataset=reviews-text
else ifneq ($(FAMILY),)
$(error FAMILY=$(FAMILY): allowed: bert, clip, lm)
endif

# One stage after another, or JOBS of them at once.
REPRO = $(if $(SETTINGS),dvc exp run $(SETTINGS),dvc repro)
ifneq ($(JOBS),)
REPRO = $(if $(SETTINGS),dvc exp run $(SETTINGS) plan &&) python -m instant_soup.pipeline.jobs --jobs $(JOBS)
endif

.PHONY: help setup repro quick test smoke pipeline tutorial settings tables numbers runs bench ui docs
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# Not compiled: most of what comes along is never imported; the rest is, once, at its first import.
$(INSTALLED): requirements.txt pyproject.toml
	@test -x "$(VENV)/bin/python" || $(PYTHON) -m venv "$(VENV)"
	@python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed (make PYTHON=python3.12 …)"; exit 1; }
	python -m pip install --quiet --no-compile -r requirements.txt
	@touch "$@"

setup: $(INSTALLED)  ## create .venv, install the pinned requirements, make MLflow's database
	@python -m instant_soup.pipeline.tracking init

repro: setup  ## set up, run the whole pipeline (dvc repro), print the table; FAMILY=clip, =bert, =lm; JOBS=n
	@python -m instant_soup.pipeline.mend
	-@python -m instant_soup.reports.forecast $(SETTINGS)
	$(REPRO)
	@python stages/tables.py --show

quick: setup  ## set up and run linters, type checks and the tests not marked slow (two minutes)
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" --numprocesses logical --dist loadfile --no-loadscope-reorder

test: setup  ## set up and run linters, type checks and tests
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

smoke: setup  ## run the real pipeline and the tutorial on a little real data, in temporary copies
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 --output-sync=target pipeline tutorial

pipeline tutorial: setup
	bash tests/$@.sh

settings: setup  ## render params.yaml (its values stay) and docs/settings.md from the methods' settings
	python -m instant_soup.pipeline.params_text

tables: $(INSTALLED)  ## make tables, figures and reports/index.html from the ledger and experiments
	python stages/tables.py

numbers: $(INSTALLED)  ## render the numbers in README.md and docs from the ledger
	python -m instant_soup.reports.parts

# Of hundreds of columns those that differ, and of the scores METRIC alone. Cost is in cost.md.
METRIC ?= accuracy
SCORES = accuracy|f1|matthews|pearson|spearman|steps|seconds|tera_flops|sparsity
runs: $(INSTALLED)  ## list experiments: the settings that differ, and each method's accuracy (METRIC=…)
	dvc exp show --only-changed --hide-queued --no-pager \
	  --drop '.*/|params.yaml$$|stages$$|(?!pretraining)\w+\.(?!$(METRIC)$$)($(SCORES))$$'

bench: setup  ## measure everything in benchmarks/ again: reports/benchmarks.md (an hour)
	failed=; for name in startup pipeline_overhead between_stages against_reference throughput features pruners mask_work memory streaming scaling inference precision; do \
	  python benchmarks/$$name.py || failed="$$failed $$name"; done; \
	python benchmarks/report.py; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

docs: setup  ## build the docs as a site in site/, and check its links (installs its packages)
	@python -c 'import mkdocs, material, mkdocstrings' 2> /dev/null || \
	  python -m pip install --quiet --no-compile -r docs/site/requirements.txt
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build
	@echo 'Site: site/index.html; with its search: python -m http.server -d site'

ui: setup  ## show the runs in MLflow on http://127.0.0.1:5000; prints the address of the list
	python -m instant_soup.pipeline.tracking flush
	mlflow ui --workers 1 --host 127.0.0.1 --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

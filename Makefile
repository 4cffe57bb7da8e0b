# From a bare machine with python3 (3.11 or newer) and make to a trained, measured model: `make demo`.
#
# PYTHON    the interpreter that .venv is made of, e.g. `make setup PYTHON=/opt/python3.12/bin/python3`
# PIP_ARGS  more arguments for pip; a much smaller installation without CUDA is
#           `make setup PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'`
# WORKERS   test processes of `make test`

.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Paths stay relative, so that a clone below a folder with spaces in its name works.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CONSTRAINTS := requirements/constraints.txt
EXTRAS := train,eval,demo,transformers,tensorboard,export,dev
PIP_ARGS ?=
WORKERS ?= 2
SLOW_EXTRAS := s3-test,docs
SITE := site
SLOW_STAMP := $(VENV)/.installed-slow
DEMO_DATA := data/openmoji

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,$(shell \
	command -v $(name) >/dev/null 2>&1 && $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(name))))

say = @printf '\033[1m==>\033[0m %s\n'

.PHONY: help setup demo test test-slow lint format docs site clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "Example: make demo PYTHON=python3.12 PIP_ARGS='--extra-index-url URL'"

setup: $(STAMP) ## Make .venv and install the package with all that demo and tests need

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer among python3, python3.13, python3.12, python3.11. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { \
		echo "PYTHON=$(PYTHON) does not run, or is older than 3.11: $$("$(PYTHON)" --version 2>&1 || true)" >&2; exit 1; }
	$(say) "setup: $$("$(PYTHON)" --version) in $(VENV)"
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) || { \
		echo "Could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(say) "setup: installing cloc-pretrain [$(EXTRAS)]; PyTorch is large, so this takes minutes the first time"
	@$(PY) -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@

# A conversion that is stopped leaves no folder that looks complete.
$(DEMO_DATA): | $(STAMP)
	$(say) "demo: drawing the OpenMoji scenes into $@"
	@rm -rf data/.partial
	@$(PY) -m cloc data convert openmoji data/.partial/$(@F) --workers 2
	@mv data/.partial/$(@F) $@ && rmdir data/.partial

demo: $(STAMP) | $(DEMO_DATA) ## Draw data, train CLIP and CLOC on it, compare them in runs/demo
	$(say) "demo: training the CLIP baseline and CLOC, side by side, one core each"
	@export TTY_COMPATIBLE=0; $(PY) train.py experiment=demo_clip & clip=$$!; \
	trap 'kill $$clip 2>/dev/null || true' EXIT INT TERM; \
	$(PY) train.py experiment=demo_cloc; wait $$clip
	$(say) "demo: measuring both"
	@$(PY) eval.py checkpoint=runs/demo/cloc 'baseline=[runs/demo/clip]' 'data=[openmoji]' out=runs/demo
	$(say) "demo: done; open runs/demo/report/index.html, numbers in runs/demo/metrics.json"
	@echo "next: your own data, see README.md: $(PY) -m cloc data convert --help"

# One thread in each test process: the processes share the cores, and results do not depend on their number.
test test-slow: export OMP_NUM_THREADS := 1

test: $(STAMP) ## Run ruff and the quick tests
	$(say) "test: ruff"
	@$(PY) -m ruff check -q .
	$(say) "test: quick tests in $(WORKERS) processes"
	@$(PY) -m pytest -q -n $(WORKERS)

$(SLOW_STAMP): $(STAMP)
	$(say) "test-slow: installing what only the slow tests need [$(SLOW_EXTRAS)]"
	@$(PY) -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[$(EXTRAS),$(SLOW_EXTRAS)]'
	@touch $@

test-slow: $(SLOW_STAMP) ## Run the long and the distributed tests
	$(say) "test-slow: long and distributed tests"
	@$(PY) -m pytest -q -m "slow or distributed"

lint: $(STAMP) ## Check style, format and types, change nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(STAMP) ## Sort imports, fix what can be fixed, format
	@$(PY) -m ruff check -q --fix-only .
	@$(PY) -m ruff format .

docs: $(STAMP) ## Write the key tables of docs/ from the schema
	@$(PY) -m cloc.config.docs --write

site: $(SLOW_STAMP) ## Build the documents with the API as pages in site/, strictly
	$(say) "site: building the pages of docs/ and of docstrings; any warning ends it"
	@$(PY) -m sphinx -q -W --keep-going -b html -c docs -d build/doctrees . $(SITE)
	@$(PY) -m tests.kit.links $(SITE)
	$(say) "site: done; open $(SITE)/index.html"

clean: ## Remove .venv, caches and build products; keep data and runs
	$(say) "clean: $(VENV), caches, build products"
	@rm -rf $(VENV) build dist $(SITE) docs/api .pytest_cache .ruff_cache .mypy_cache .hypothesis ./*.egg-info data/.partial
	@for folder in cloc benchmarks tests; do \
		[ ! -d $$folder ] || find $$folder -name __pycache__ -type d -prune -exec rm -rf {} +; done
	@rm -rf __pycache__

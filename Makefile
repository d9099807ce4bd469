# Needs make and Python 3.11 or newer; everything else is installed into .venv from the package registry.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)
READY   = $(VENV)/.ready

.PHONY: help demo test test-all lint check conf bench clean
help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train five strategies with five seeds each on the embedded digits, and compare them
	$(BIN)/bnlab train -m norm=none,batch,ghost,instance,layer seed=0,1,2,3,4 \
		optim.lr=0.5 trainer.epochs=3 eval.every=0.5 name=demo $(ARGS)
	$(BIN)/bnlab compare

# one more at a time than there are cores: many tests wait for processes of their own
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(os.cpu_count() + 1)') --dist worksteal

test: $(READY) ## run the tests, without the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY) ## run all tests: launchers, clusters, kills, torchrun and the wheel too
	$(PYTEST) $(ARGS)

lint: $(READY) ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test-all ## everything that CI runs

conf: $(READY) ## write the options of conf/ from their classes
	$(BIN)/python tests/conf_files.py

bench: $(READY) ## measure speed side by side: the loop against others, strategies against none, start-up
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is touched last: an interrupted set-up is done again, a finished one is not.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bnlab needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 ..."; exit 1; }
ifdef UV
	@test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV)
	uv pip install -q --python $(BIN)/python -e . --group dev
else
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: install python3-venv, or uv (https://docs.astral.sh/uv)"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
	@echo "installing into $(VENV): torch and its libraries are several GB the first time"
	$(BIN)/python -m pip install -q --disable-pip-version-check -e . --group dev
endif
	@touch $@

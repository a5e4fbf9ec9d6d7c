# make demo | make test | make check: each sets up what it needs in .venv (pip, pinned by constraints.txt).
PYTHON ?= python3
BIN := .venv/bin
# Some machines say that no bytecode is to be kept. Every process of Ray would compile all that it imports, which takes longer than its work.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test check clean
.DEFAULT_GOAL := demo

# Modules are compiled where they are first imported: most of what comes along never is.
setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt tests/review-tools.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cataloger needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt "torch>=2.11"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --upgrade --target .venv/review-tools --requirement tests/review-tools.txt
	touch $@

demo: setup
	@$(BIN)/python jobs/demo.py

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf demo sample-catalog checkpoints mlartifacts mlruns mlflow.db

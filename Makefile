# Two commands: `make demo` runs the main job on a real model, `make test` passes every check. Both set up first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test setup lint types layers check system clean

setup: $(VENV)/.ready

# torch comes first and alone: every later package finds it satisfied and none brings a CUDA build.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "edgekit needs Python 3.10 or newer"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	@touch $@

demo: setup
	$(BIN)/python -m samples.demo --out $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

test: setup lint types layers
	$(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

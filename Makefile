# `make demo` and `make test` need Python 3.11 or newer and nothing else; each makes .venv and fills it by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-gpu bench check docs lock clean

$(BIN)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tuyi needs Python 3.11 or newer, found " + sys.version.split()[0] + "; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(BIN)/.ready  ## train, predict and judge a model on the built-in sample; five minutes on two cores
	$(BIN)/tuyi demo --out $(or $(OUT),demo)

test: $(BIN)/.ready  ## the tests that every change must pass
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: $(BIN)/.ready  ## also the slow ones
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: $(BIN)/.ready  ## those that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu

bench: $(BIN)/.ready  ## the benchmarks at tiny size; two minutes on two cores
	$(BIN)/python benchmarks/vision.py --tiny
	$(BIN)/python benchmarks/predict.py --tiny
	$(BIN)/python benchmarks/train.py --tiny

check: $(BIN)/.ready  ## format, lint, types, docs drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/commands.py --check

docs: $(BIN)/.ready  ## write docs/commands.md from --help
	$(BIN)/python docs/commands.py

lock:  ## pin the dependencies anew; needs uv
	uv pip compile pyproject.toml --group dev --python-version 3.11 --python-platform linux --no-header --no-annotate -q -o requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

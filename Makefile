# The first target to run creates .venv from requirements.lock (exact versions, checked by hash).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check

.PHONY: demo test test-slow bench lint notebooks lock setup

demo: $(READY)  ## render lunar pairs, distil the embedded teacher, evaluate, write demo/report.html
	$(BIN)/lunar-distill demo --workdir demo

test: $(READY)  ## the tests; no network, under 12 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

bench: $(READY)  ## timings, each as a ratio against a named peer in the same run
	$(BIN)/python tools/bench.py

lint: $(VENV)/.lint  ## format, lint, types: what pre-commit runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

notebooks: $(VENV)/.notebooks  ## runs every notebook of colab/ on embedded data, keeps their outputs
	$(BIN)/python tools/run_notebooks.py

setup: $(READY)

lock:  ## resolves requirements.lock anew from pyproject.toml; needs uv
	uv pip compile pyproject.toml --extra test --extra baselines --extra sweep --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --quiet --output-file requirements.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

# Tools that only their own target needs: the plain environment stays small.
$(VENV)/.lint: $(READY)
	$(PIP) "ruff>=0.15" "pyright[nodejs]>=1.1.400"
	touch $@

$(VENV)/.notebooks: $(READY)
	$(PIP) "nbclient>=0.10" "ipykernel>=6.29"
	touch $@

# The first target to run creates .venv from requirements.lock (exact versions, checked by hash).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check

.PHONY: demo test test-slow test-export bench export lint notebooks lock setup

demo: $(READY)  ## render lunar pairs, distil the embedded teacher, evaluate, write demo/report.html
	$(BIN)/lunar-distill demo --workdir demo

test: $(READY)  ## the tests; no network, under 12 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-export: $(VENV)/.export  ## every architecture as ONNX in onnxruntime
	$(BIN)/python -m pytest -m slow tests/test_export_onnx.py

export: $(VENV)/.export  ## what `lunar-distill export --format onnx` needs

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

# jax2onnx asks for an older orbax than training does, and for more than this needs.
$(VENV)/.export: $(READY)
	$(PIP) "onnx==1.23.2" "onnx-ir==1.1.0" "onnxruntime==1.32.0"
	$(PIP) --no-deps "jax2onnx==0.17.1"
	touch $@

$(VENV)/.notebooks: $(READY)
	$(PIP) "nbclient>=0.10" "ipykernel>=6.29"
	touch $@

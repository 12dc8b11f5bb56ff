# The first target to run creates .venv from requirements.lock (exact versions, checked by hash).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow bench lint notebooks lock clean setup

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(READY)  ## render lunar pairs, distil the embedded teacher, evaluate, write demo/report.html
	$(BIN)/lunar-distill demo --workdir demo

test: $(READY)
	$(BIN)/python -m pytest

# Two commands do all the set-up: `make run` and `make test`. Both make the environment first, where it is missing or
# older than what it is made from. PYTHON chooses the interpreter, VENV the environment's folder, OUT where results go.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := canonize tests examples benchmarks

.PHONY: run test lint types tests format env clean

run: $(READY)
	@mkdir -p $(OUT)
	$(BIN)/canonize examples/digits/densenet.pt --input 1x1x32x32 -o $(OUT)/canonical.pt

test: lint types tests

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports --no-logo --no-cache

types: $(READY)
	$(BIN)/mypy

tests: $(READY)
	$(BIN)/python -m pytest

format: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

env: $(READY)

# torch goes first and by its exact version: a range may bring several gigabytes of another build.
$(READY): pyproject.toml constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints-dev.txt torch==2.13.0
	$(PIP) install --quiet --constraint constraints-dev.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OUT)

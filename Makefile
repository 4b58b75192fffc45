# make install   a virtual environment in .venv with the package and its development tools
# make demo      install, then the five-minute tour
# make test      the fast tests            make test-all   the long ones too
# make check     style and types
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: install demo test test-all check wheel clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/cascade-clip quickstart

test: install
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv dist build

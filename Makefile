# make install   a virtual environment in .venv with the package and its development tools
# make demo      install, then the five-minute tour
# make test      the fast tests            make test-all   the long ones too
# make check     style, types and the order of the rooms
# make trust     measure every promise of docs/trust.md again and write that page (hours, 30 GB); make trust ONLY="faults leaks" for some
# make test-oldest   the fast tests with the oldest supported version of every dependency, in .venv-oldest (6 GB)
# make environments  .venv-oldest and an environment for each other supported Python that is found here, as make trust needs them
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: install demo test test-all check trust test-oldest environments wheel clean

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
	$(BIN)/lint-imports

trust: environments
	$(BIN)/python tests/trust/collect.py $(ONLY)

test-oldest: install
	$(BIN)/python tests/environments.py oldest
	.venv-oldest/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

environments: install
	$(BIN)/python tests/environments.py oldest pythons

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv .venv-* dist build

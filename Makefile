# Every command of a developer and of CI. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More arguments for pytest: make test ARGS="tests/server -k drain"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-wire libero test lint format types check ci build prometheus nginx clean

help:
	@echo "make demo        the closed loop: a daemon, a simulated arm, three instructions, a film"
	@echo "make demo-wire   without the simulator: a client replaying real observations, a plot"
	@echo "make test        the test suite                     (ARGS=... goes to pytest)"
	@echo "make check       lint and types                     (make lint, make types, make format)"
	@echo "make ci          everything that CI runs"
	@echo "make build       sdist and wheels in dist/"
	@echo "make prometheus  promtool and prometheus in build/, for the tests of deploy/ (Debian, Ubuntu)"
	@echo "make nginx       nginx in build/, likewise"
	@echo "make clean       remove what the above made, except the virtual environment"
	@echo "PYTHON=python3.12 chooses the interpreter, VENV=path the virtual environment."

# Silent and fast once done: scripts/set_up.py keeps a stamp keyed on the pyproject files.
setup:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vlad needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@$(PYTHON) scripts/set_up.py $(VENV)

demo: libero
	@$(BIN)/python scripts/demo_libero.py

demo-wire: setup
	@$(BIN)/python scripts/demo.py

# The simulator without what its packages require and never import, see docs/libero.md.
libero: setup
	@$(BIN)/python -c 'import libero, robosuite, mujoco' 2>/dev/null || { \
	    $(BIN)/python -m pip install --quiet -e '.[libero]' && \
	    $(BIN)/python -m pip install --quiet --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1; }

test: setup
	@$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: setup
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

types: setup
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy scripts deploy/container
	$(BIN)/python -m mypy benchmarks

check: lint types

ci:
	@.ci/run

build: setup
	$(BIN)/python scripts/packages.py build dist

prometheus:
	@scripts/get_debian_package.sh prometheus usr/bin/promtool build/prometheus

nginx:
	@scripts/get_debian_package.sh nginx usr/sbin/nginx build/nginx

clean:
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis

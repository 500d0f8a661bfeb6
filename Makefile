# make install | test | demo | lint | clean. Needs Python 3.11 or newer; another one: make test PYTHON=python3.13

PYTHON ?= python3
VENV := .venv
ARGS :=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Empty when $(PYTHON) will do, otherwise one line that says what is wrong with it.
CHECK_PYTHON = $(shell $(PYTHON) -c 'import sys; v = ".".join(map(str, sys.version_info[:3])); \
	print("Python 3.11 or newer is needed, but $(PYTHON) is %s; name another: make install PYTHON=python3.13" % v \
	if sys.version_info < (3, 11) else "")' 2>/dev/null \
	|| echo 'Python 3.11 or newer is needed, but $(PYTHON) does not run; name another: make install PYTHON=python3.13')
CHECK_VENV = $(shell $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	|| echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv')
or_stop = $(if $(strip $(1)),$(error $(strip $(1))))

.PHONY: help install test demo lint clean

help:
	@echo 'make install   .venv with everything that demo and tests need'
	@echo 'make test      install, then the whole test suite; some of it: make test ARGS="-k wheel"'
	@echo 'make demo      install, then train text, images and audio and write runs/demo/report.html'
	@echo 'make lint      install, then style, types and the direction of imports'
	@echo 'make clean     remove caches and build outputs; runs/ and .venv/ stay'

install: $(STAMP)
	@:

# The package is installed editable, so only a change of its dependencies installs again.
$(STAMP): pyproject.toml
	$(call or_stop,$(CHECK_PYTHON))$(call or_stop,$(CHECK_VENV))@echo 'Installing into $(VENV): about 3 minutes and 6 GB the first time.'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[all,dev]'
	@touch $@

test: install
	@$(BIN)/python -m pytest -n 2 $(ARGS)

demo: install
	@$(BIN)/armm demo $(ARGS)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

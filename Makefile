# The two commands of the README are `make demo` and `make test`. Each makes .venv and installs all that it
# needs on a machine that has a Python 3.10 to 3.12 and a package index; run again, it goes straight to work.
#   make PYTHON=/path/to/python ...   builds on that interpreter
#   make TORCH="torch==X.Y.Z" ...     takes another torch build than the pinned one

export PYTHON TORCH
VENV   := .venv
python := $(VENV)/bin/python
# Tests import the built wheel from here, not the sources: what is tested is what is shipped.
site   := build/wheel-site

.DEFAULT_GOAL := help
.PHONY: help demo dev test lint format check pytest slow clients wheel wheel-site recipe bench lock clean distclean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: ## search the standard library's documentation by meaning (no model hub needed)
	@bash scripts/setup_env.sh demo
	$(python) -m bgekit demo

dev: ## the environment that the tests use, in .venv, without running them
	@bash scripts/setup_env.sh dev

test: lint pytest ## build the wheel, check style and types, run every test against the wheel

lint: dev ## style, formatting, types and the order of the rooms
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/lint-imports

format: dev ## mend what ruff can mend
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

wheel: dev ## build dist/bgekit-*.whl
	@rm -rf dist
	$(python) -m pip wheel -q --no-deps --no-build-isolation -w dist .

wheel-site: wheel
	@rm -rf $(site)
	$(python) -m pip install -q --no-deps --no-index --target $(site) dist/bgekit-*.whl

# Two processes, as many tests wait for others; threads that wait must not keep a core from those that work.
pytest: wheel-site ## every test, against the wheel; ARGS="-k name" narrows it
	PYTHONPATH="$(CURDIR)/$(site)" BGEKIT_TEST_WHEEL="$(CURDIR)/$(site)" OMP_WAIT_POLICY=PASSIVE \
	    $(python) -m pytest -n 2 --dist loadfile --durations=15 $(ARGS)

slow: wheel-site ## the tests that take minutes: published scores, 2,000 texts against plain transformers
	PYTHONPATH="$(CURDIR)/$(site)" BGEKIT_TEST_WHEEL="$(CURDIR)/$(site)" \
	    $(python) -m pytest -m slow --durations=15 $(ARGS)

clients: wheel-site ## real clients of other makers against the server, each in an environment of its own
	@mkdir -p build/clients; rm -f build/clients/table.md
	PYTHONPATH="$(CURDIR)/$(site)" BGEKIT_TEST_WHEEL="$(CURDIR)/$(site)" BGEKIT_CLIENTS_TABLE="$(CURDIR)/build/clients/table.md" \
	    $(python) -m pytest -m slow tests/serving/test_clients.py $(ARGS)
	@cat build/clients/table.md

recipe: dev ## the small recipe, end to end (docs/recipes.md)
	$(python) -m bgekit recipe run recipes/small-demo.yaml $(ARGS)

bench: dev ## speed against the machine's own limit (benchmarks/encode.py; ARGS are passed on)
	$(python) benchmarks/encode.py $(ARGS)

lock: ## resolve constraints.txt anew
	bash scripts/lock.sh

clean: ## remove what builds and tests left, keep .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

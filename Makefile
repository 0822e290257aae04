# `make run` and `make test` are all a newcomer needs: both set the environment up first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lab bench clean

run: .venv/.installed
	$(BIN)/xrd run --profile quick

# Three steps, cheapest first: units and notebook form; every notebook as a user runs it; the command line end to end.
# XRD_RUNS keeps what the tests write out of the user's runs/.
test: .venv/.installed
	$(BIN)/python -m pytest
	rm -rf .pytest_cache/runs
	XRD_RUNS=$(CURDIR)/.pytest_cache/runs TQDM_DISABLE=1 $(BIN)/python -m pytest -x --nbval-lax --nbval-current-env --nbval-cell-timeout 600 notebooks
	XRD_RUNS=$(CURDIR)/.pytest_cache/runs TQDM_DISABLE=1 $(BIN)/xrd run --profile smoke

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/structure_factors.py

clean:
	rm -rf .venv runs .pytest_cache *.egg-info

# Installed again only when the list of packages or their versions changed.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "XRD Phase needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run make with PYTHON=/path/to/a/newer/python" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/.installed-bench: .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,bench]'
	touch $@

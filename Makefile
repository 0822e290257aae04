# `make run` and `make test` are all a newcomer needs: both set the environment up first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run check test test-browser lab docs bench clean

run: .venv/.installed
	$(BIN)/xrd run --profile quick

# TEST_ENV keeps what the tests write out of the user's runs/, and another "python3" kernel out of the way, and makes
# warnings in notebooks errors. One thread: on a busy machine two that wait for each other take several times as long.
TEST_ENV := XRD_RUNS="$(CURDIR)/.pytest_cache/runs" JUPYTER_PREFER_ENV_PATH=1 OMP_NUM_THREADS=1 PYTHONSTARTUP="$(CURDIR)/tests/startup.py"

# For daily work: style, and the unit tests that take less than two seconds each.
check: .venv/.installed
	$(BIN)/ruff check
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow"

# Four steps, cheapest first: style; units and notebook form; every notebook as a user runs it; the command line end to end.
test: .venv/.installed
	$(BIN)/ruff check
	$(TEST_ENV) $(BIN)/python -m pytest
	rm -rf .pytest_cache/runs
	$(TEST_ENV) TQDM_DISABLE=1 $(BIN)/python -m pytest -x --nbval-lax --nbval-current-env --nbval-cell-timeout 600 notebooks
	$(TEST_ENV) $(BIN)/xrd run --profile smoke

# In a real browser, which has to be there (Debian: apt-get install chromium). PICTURES=notebooks/figures makes those of the README.
test-browser: .venv/.installed-browser
	$(TEST_ENV) $(BIN)/python -m pytest tests/browser

lab: .venv/.installed
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url="/lab/tree/README.md"

# The notebooks of the site are those of `make run`, which is resumed first; PROFILE=smoke is quicker, with numbers that mean nothing.
docs: export PROFILE ?= quick
docs: .venv/.installed-docs
	$(BIN)/xrd run --profile $(PROFILE) --resume
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "docs/_build/html/index.html"

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/structure_factors.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/shifted_crystals.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/kill_training.py
	$(BIN)/python benchmarks/phasing.py

# runs/ stays: a full run takes hours.
clean:
	rm -rf .venv .pytest_cache build docs/_build docs/generated *.egg-info

# Installed again only when the list of packages or their versions changed.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "XRD Phase needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run make with PYTHON=/path/to/a/newer/python" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/.installed-%: .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,$*]'
	touch $@

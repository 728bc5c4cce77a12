# Targets for people and for CI. Each installs what it needs; you need only Python >= 3.10 and make.
# Everything is installed into `.venv`, which is updated when pyproject.toml changes.

PYTHON ?= python3
# Processes that run the tests, one thread each.
TEST_WORKERS ?= 2
# Extra arguments, as in: make test ARGS="-k rank_sort"; make quickstart ARGS="--epochs 1"
ARGS =

BIN = .venv/bin
INSTALLED = .venv/installed

.DEFAULT_GOAL = help
.PHONY: help quickstart test doctest gpu lint types format bench docs site build release-check clean

help:
	@echo "make quickstart  generate a small data set, train a detector on it in minutes, show its detections"
	@echo "make test        run the tests and the docstring examples"
	@echo "make doctest     run the docstring examples"
	@echo "make gpu         test and measure the losses and detectors on a GPU"
	@echo "make lint        check style and formatting"
	@echo "make types       check the type annotations"
	@echo "make format      fix style and formatting"
	@echo "make bench       compare the cost of the losses with focal loss"
	@echo "make docs        redraw the figures and rewrite the tables of docs/"
	@echo "make site        build the documentation into site/; open site/index.html"
	@echo "make build       build the sdist and the wheel into dist/"
	@echo "make release-check  build both and try them in empty environments, with the oldest and the newest PyTorch"
	@echo "make clean       remove caches, dist/ and site/ (never .venv, data or runs)"

quickstart: $(INSTALLED)
	$(BIN)/ranksort quickstart $(ARGS)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not slow" -n $(TEST_WORKERS) --dist worksteal $(ARGS)
	$(if $(ARGS),,@$(MAKE) --no-print-directory doctest)

# Modules that need an extra which is not installed are skipped.
doctest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(TEST_WORKERS) --doctest-modules --doctest-ignore-import-errors src/ranksort

gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)
	$(BIN)/python benchmarks/loss_speed.py $(ARGS)

docs: $(INSTALLED)
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/tables.py

site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "site/index.html"

build: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build

release-check: build
	$(BIN)/python tests/release/check.py dist $(ARGS)

clean:
	rm -rf dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# One call of pip, so that torch and torchvision are resolved together.
$(INSTALLED): pyproject.toml | $(BIN)/pip
	@echo "Installing ranksort and what it needs into .venv: a few minutes and about 6 GB the first time."
	$(BIN)/python -m pip install --editable ".[detection,calibration,lite0,dev]"
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON) here: install Python 3.10 or newer, or name one as in 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { \
		echo "ranksort needs Python 3.10 or newer, but $(PYTHON) is older: name another, as in 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
		echo "$(PYTHON) lacks the module venv: install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv

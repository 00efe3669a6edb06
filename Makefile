# make demo: set up, and run the main job.   make test: set up, and run the tests.   make lint: style, types and docs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := act_kit tests benchmarks examples docs/griffe_folders.py
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: setup demo test test-e2e test-all test-slow lint docs format gl chromium clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "act_kit needs Python 3.11, 3.12 or 3.13; $(PYTHON) is another. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || ./scripts/apt-install python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Videos need an OpenGL library; without one everything else still runs.
gl: setup
	@$(BIN)/python -m act_kit.sim.render >/dev/null 2>&1 || ./scripts/apt-install libegl1 libopengl0 libgl1-mesa-dri || true

# Tests of pages need a browser; without one they are skipped.
chromium:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome || \
	   command -v google-chrome-stable; } >/dev/null || ./scripts/apt-install chromium || true

demo: setup gl
	$(BIN)/act demo --overwrite

test: setup gl chromium
	$(BIN)/pytest -n 2 --dist loadgroup

test-e2e: setup gl chromium
	$(BIN)/pytest -n 2 --dist loadgroup -m "e2e and not slow"

test-all: test test-e2e

test-slow: setup gl
	$(BIN)/pytest -m slow

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy -p act_kit
	$(BIN)/mypy --explicit-package-bases benchmarks tests examples
	$(BIN)/mkdocs build --quiet --strict

# Builds the documentation site in site/.
docs: setup
	$(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache

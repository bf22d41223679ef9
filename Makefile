# `make demo` and `make test` need Python 3.11 or newer with pip, and nothing else.
# Another interpreter: make test PYTHON=python3.12. Other pip options (an index of CPU builds of torch, say): PIP_OPTIONS=...
PYTHON ?= python3
PIP_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: demo test clean

demo: $(VENV)/.installed-video
	$(BIN)/lwm demo --out demo.mp4

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache demo.mp4

$(VENV)/.installed-%: pyproject.toml | $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --editable ".[$*]"
	@touch $@

$(VENV):
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'lwm-env needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '. Name another one: make demo PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

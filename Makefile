# Two commands for a new machine: `make demo` does the main job, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test soak lint bench

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/saelab demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -m "not soak and not gpu" -n 2 --durations=15

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak -s

bench: $(INSTALLED)
	$(BIN)/saelab bench $(if $(PEERS),--peer-python $(PEERS))
	$(BIN)/saelab bench --d-in 768 --d-sae 16384 $(if $(PEERS),--peer-python $(PEERS))

lint: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

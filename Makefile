# Each target sets up what it needs in .venv, and runs again quickly.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv/bench

.PHONY: demo test lint format bench clean

demo: .venv/experiments  ## Train on Latin, Greek and Cyrillic letters, recognise Armenian and Georgian ones.
	$(BIN)/python -m experiments glyphs --workdir runs/glyphs

test: .venv/development  ## All tests, on two processes.
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --quiet

lint: .venv/development  ## Format check, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH)/installed  ## Speed beside Keras and PyTorch: all tables of benchmarks/README.md.
	for name in train_step inference record_step sweep start_up time_to_accuracy; do \
		$(BENCH)/bin/python -m benchmarks.$$name --json benchmarks/results/$$name.json \
			|| exit 1; \
	done
	$(BENCH)/bin/python -m benchmarks.results

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/experiments: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments]'
	touch $@

.venv/development: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,test,lint]'
	touch $@ .venv/experiments

# an environment of its own: the rivals' frameworks stay out of the tests
$(BENCH)/installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --editable '.[experiments,bench]'
	touch $@

clean:
	rm -rf .venv .cache runs

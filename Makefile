# Each target sets up what it needs in .venv, and runs again quickly.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv/bench
RESULTS := benchmarks/results

.PHONY: demo test quick lint format docs bench clean

demo: .venv/experiments  ## Train on Latin, Greek and Cyrillic letters, recognise Armenian and Georgian ones.
	$(BIN)/python -m experiments glyphs --workdir runs/glyphs

test: .venv/development  ## All tests, on two processes.
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --quiet

quick: .venv/development  ## The quick tests, in two minutes on two cores.
	$(BIN)/python -m pytest -m quick --numprocesses 2 --quiet

lint: .venv/development  ## Format check, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/documentation  ## The documentation site, docs/_build/html/index.html; every warning is an error.
	$(BIN)/python -m sphinx --builder html --fresh-env --nitpicky --fail-on-warning \
		--keep-going docs docs/_build/html

# The newest JAX beside it, with a newer Python:
# make bench PYTHON=python3.13 BENCH=.venv/bench-newest RESULTS=benchmarks/results/newest
bench: $(BENCH)/installed  ## Measure the speed beside Keras and PyTorch, and write the tables of benchmarks/README.md.
	for name in train_step inference record_step sweep retrieval start_up time_to_accuracy; do \
		$(BENCH)/bin/python -m benchmarks.$$name --json $(RESULTS)/$$name.json \
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

.venv/documentation: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,docs]'
	touch $@ .venv/experiments

# in a separate environment, which keeps the other frameworks out of the tests
$(BENCH)/installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --editable '.[experiments,bench]'
	touch $@

clean:
	rm -rf .venv .cache runs docs/_build docs/api

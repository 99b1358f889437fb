# Each target sets up what it needs in .venv, and runs again quickly.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format clean

demo: .venv/experiments  ## Train on Latin, Greek and Cyrillic letters, recognise Armenian and Georgian ones.
	$(BIN)/python -m experiments.glyphs --workdir runs/glyphs

test: .venv/development  ## All tests, on two processes.
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --quiet

lint: .venv/development  ## Format check, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/experiments: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments]'
	touch $@

.venv/development: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,test,lint]'
	touch $@ .venv/experiments

clean:
	rm -rf .venv runs

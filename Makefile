# Each target sets up what it needs in .venv and skips what is done. Stamps in .venv record what is installed;
# a change of pyproject.toml or constraints.txt makes them stale.

PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

demo: .venv/.installed-demo  ## index files, ask questions, compare answers with and without virtual tokens
	$(BIN)/spring-rag demo

test: .venv/.installed-dev  ## run the tests
	$(BIN)/python -m pytest

lint: .venv/.installed-dev  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing spring-rag and Chroma into .venv (some minutes the first time) …"
	$(PIP) --editable '.[chroma]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing spring-rag with everything that its tests need into .venv (some minutes the first time) …"
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/.installed-demo

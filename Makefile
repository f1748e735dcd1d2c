# `make demo` and `make test` are all that a newcomer needs; both make the virtual environment when it is missing.
# Another interpreter: make demo PYTHON=python3.12. Another place for the environment: make test VENV=/tmp/env.
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
# PyTorch without CUDA, from the index for CPUs that pytorch.org names: make demo CPU_INDEX=URL.
CPU_INDEX ?=
WORKERS ?= 2
bin := $(VENV)/bin
# Threads that spin while they wait starve the data loaders and each other.
export OMP_WAIT_POLICY := passive

.PHONY: demo test lint docs gpu help

help:
	@echo "make demo    train a detector on drawn shapes for some minutes, evaluate it, write a report"
	@echo "make test    run the tests"
	@echo "make lint    run ruff and mypy"
	@echo "make docs    build the site of the documentation into build/docs, look at its links"
	@echo "make gpu     on a machine with a GPU: tests, steps, resumption, speed and accuracy; results in runs/drill"

demo: $(VENV)/.demo
	$(bin)/python -m tasks.detect --config shapes

test: $(VENV)/.dev
	$(bin)/python -m pytest -q -n $(WORKERS) --durations=40 --durations-min=4 -m "not slow and not gpu and not network"

lint: $(VENV)/.dev
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --quiet
	$(bin)/python docs/links.py build/docs

# Where no environment can be made, the machine's own packages do: make gpu PYTHON_GPU=python3.
PYTHON_GPU ?= $(bin)/python
gpu: $(if $(filter $(bin)/python,$(PYTHON_GPU)),$(VENV)/.dev)
	$(PYTHON_GPU) benchmarks/drill.py $(DRILL)

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: effbackbones needs Python 3.11 or newer; make ... PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# What pip installs by default on Linux is made for NVIDIA's GPUs, whether there is one or not.
define torch
	@command -v nvidia-smi > /dev/null || [ -n "$(CPU_INDEX)" ] || [ "$$(uname)" != Linux ] || echo "No GPU is seen here, and the \
	default PyTorch brings about 6 GB of CUDA libraries: for one without, make ... CPU_INDEX=URL, the index for CPUs that pytorch.org names"
	$(if $(CPU_INDEX),$(bin)/python -m pip install --index-url $(CPU_INDEX) torch torchvision)
endef

# The stamps say which extras are installed for this pyproject.toml; `dev` includes what `demo` needs.
$(VENV)/.demo: pyproject.toml | $(bin)/python
	$(torch)
	@[[ $(VENV)/.dev -nt pyproject.toml ]] || $(bin)/python -m pip install --editable '.[lite]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(bin)/python
	$(torch)
	$(bin)/python -m pip install --editable '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(bin)/python
	$(torch)
	$(bin)/python -m pip install --editable '.[dev]'
	@touch $@

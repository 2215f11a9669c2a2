# Every target makes its own environment in .venv; all that is needed is Python 3.11 or newer, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test timm-suite lint format bench figures clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Making the environment in $(VENV): a few minutes and several GB the first time (PyTorch with CUDA on Linux)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP) ## make the environment in .venv

demo: $(STAMP) ## train on handwritten digits, evaluate, predict; classify photos: about 4 minutes on 2 cores
	rm -rf $(DEMO)
	$(BIN)/conformer-vision train --recipe quick --data digits --output $(DEMO)
	$(BIN)/conformer-vision evaluate $(DEMO) --data digits
	$(BIN)/python examples/write_images.py digits $(DEMO)/images --count 12
	$(BIN)/conformer-vision predict $(DEMO) $(DEMO)/images
	$(BIN)/python examples/write_photos.py $(DEMO)/photos
	$(BIN)/conformer-vision predict $(DEMO)/photos
	@echo "The images are in $(DEMO)/images, named after what they show; the confusion matrix is $(DEMO)/confusion_matrix.png."

test: $(STAMP) ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

timm-suite: $(STAMP) ## timm's own model tests over every Conformer (fetches timm's source distribution)
	OMP_NUM_THREADS=1 $(BIN)/python tests/timm_suite/run.py -n $(JOBS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

format: $(STAMP) ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## parameters, multiply-adds, speed and memory beside the plain formulation and timm; speed of reading
	$(BIN)/python benchmarks/macs.py
	$(BIN)/python benchmarks/compare.py --batch 1 8
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/loader.py

figures: $(STAMP) ## draw the figures of docs/ again
	$(BIN)/python docs/figures/architecture.py

clean: ## remove the environment, the demo's run and all caches
	rm -rf $(VENV) $(DEMO) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

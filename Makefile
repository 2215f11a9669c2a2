# Every target makes the environment it needs. All you need is Python 3.11 or newer, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
JOBS ?= 2
RUN_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# The oldest libraries that the metadata allows, which need Python 3.11 or 3.12.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
# The libraries that use Conformers as a backbone or read its exports; constraints-clients.txt has their versions.
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed
CLIENT_LIBRARIES := accelerate captum fastai grad-cam lightly-train peft pycocotools segmentation-models-pytorch \
	transformers
# What has to work with all libraries that the metadata allows: models, weights, prediction, training.
SHORT_TESTS := tests/models/test_variants.py tests/models/test_checkpoints.py tests/models/test_recompute.py \
	tests/models/test_compilers.py tests/test_weights.py tests/inference/test_predictor.py tests/training/test_run.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-short test-oldest test-clients test-cluster timm-suite lint format bench figures package clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Making the environment in $(VENV). The first time takes a few minutes and 7 GB (PyTorch with CUDA on Linux)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	@$(PYTHON) -c 'import sys; sys.exit("The oldest libraries need Python 3.11 or 3.12: make test-oldest PYTHON=/path/to/python3.11" if sys.version_info >= (3, 13) else 0)'
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[train,check]' hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

$(CLIENTS_STAMP): pyproject.toml constraints.txt constraints-clients.txt
	@echo "Making the environment in $(CLIENTS). The first time takes a few minutes and 7 GB."
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -c constraints.txt -c constraints-clients.txt -e '.[train,explain]' \
		hypothesis pytest pytest-timeout pytest-xdist $(CLIENT_LIBRARIES)
	@touch $@

install: $(STAMP) ## make the environment in .venv

demo: $(STAMP) ## train on handwritten digits, evaluate, predict; classify photos (about 4 minutes on 2 cores)
	rm -rf $(DEMO)
	$(BIN)/conformer-vision train --recipe quick --data digits --output $(DEMO)
	$(BIN)/conformer-vision evaluate $(DEMO) --data digits
	$(BIN)/python examples/write_images.py digits $(DEMO)/images --count 12
	$(BIN)/conformer-vision predict $(DEMO) $(DEMO)/images
	$(BIN)/python examples/write_photos.py $(DEMO)/photos
	$(BIN)/conformer-vision predict $(DEMO)/photos
	@echo "The images in $(DEMO)/images are named after their classes. The report is $(DEMO)/report.html."

test: $(STAMP) ## run the whole test suite
	$(RUN_TESTS)

test-short: $(STAMP) ## run the tests of models, weights, prediction and training (other Pythons: PYTHON=python3.13 VENV=.venv-3.13)
	$(RUN_TESTS) $(SHORT_TESTS)

test-oldest: $(OLDEST_STAMP) ## run the same tests with the oldest libraries that the metadata allows, in .venv-oldest
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(JOBS) --dist loadgroup $(SHORT_TESTS)

test-clients: $(CLIENTS_STAMP) ## run the tests with transformers, fastai, smp and the others, in .venv-clients
	OMP_NUM_THREADS=1 $(CLIENTS)/bin/python -m pytest -n $(JOBS) --timeout 300 tests/clients tests/explain/test_localization.py

test-cluster: $(STAMP) ## predict with a Ray cluster on this machine, processes of which are killed
	CLUSTER_TESTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/scale/test_cluster.py

timm-suite: $(STAMP) ## run timm's own model tests on every Conformer (downloads timm's source distribution)
	OMP_NUM_THREADS=1 $(BIN)/python tests/timm_suite/run.py -n $(JOBS)

lint: $(STAMP) ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

format: $(STAMP) ## format the sources and apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure multiply-adds, speed and memory beside the plain formulation and timm, and reading speed
	$(BIN)/python benchmarks/macs.py
	$(BIN)/python benchmarks/compare.py --batch 1 8
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/loader.py

figures: $(STAMP) ## draw the figures of docs/ again, risk_coverage.png with DATA=tiny20-val.parquet (docs/weights.md)
	$(BIN)/python docs/figures/architecture.py
	$(BIN)/python docs/figures/where.py
	$(BIN)/python docs/figures/page.py
	$(if $(DATA),$(BIN)/python docs/figures/risk_coverage.py $(DATA),@echo "Without DATA, risk_coverage.png stays as it is.")

package: $(STAMP) ## build the wheel into dist/ and check what is in it
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

clean: ## remove the environments, the demo's run and all caches
	rm -rf $(VENV) .venv-* $(DEMO) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Counterlens: everything a reader needs, from a machine with Python 3.11+, git and make.
# "make" alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Processor cores and GPUs that one workflow run may use.
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c . | grep -v '^0$$')
# Without a GPU the counter stands for the jobs that run side by side on the CPU, one thread each.
GPU ?= $(or $(GPUS),$(CORES))
# Further words for Snakemake, e.g. ARGS="--dry-run".
ARGS ?=
# Further words for pytest, e.g. PYTEST_ARGS="tests/runtime -x".
PYTEST_ARGS ?=
# The targets whose files "make prune" keeps.
PRUNE_TARGETS ?= all demo

export PATH := $(CURDIR)/.venv/bin:$(PATH)

RUN = snakemake --cores $(CORES) --resources gpu=$(GPU) $(if $(GPUS),,--config threads=1) $(1) $(ARGS)

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  variables    CORES=$(CORES) GPU=$(GPU) ARGS=\"--dry-run\" PYTEST_ARGS=\"-x\" PYTHON=python3.12"

.PHONY: setup
setup: ## make .venv from envs/requirements.lock (does nothing when it is up to date)
	@bash envs/setup.sh

.PHONY: demo
demo: setup ## the digits experiment: no download, minutes on two cores
	$(call RUN,demo)

.PHONY: all
all: setup ## every experiment, table and figure that config/config.yaml names
	$(call RUN,all)

.PHONY: test
test: setup lint-quick ## quick lints, then the tests
	OMP_NUM_THREADS=1 pytest -n $(CORES) --dist loadfile $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: setup ## the tests that take minutes
	OMP_NUM_THREADS=1 pytest -n $(CORES) --dist loadfile -m "slow and not gpu and not paper" $(PYTEST_ARGS)

.PHONY: lint-quick
lint-quick: setup
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules

.PHONY: lint
lint: lint-quick ## ruff, snakefmt, pyright, snakemake --lint
	pyright
	snakemake --lint

.PHONY: format
format: setup ## rewrite Python and Snakemake files in the house style
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

.PHONY: bench
bench: ## seconds per counterfactual, PGD beside torchattacks (BENCH="--experiment c3lt-mnist --pair 4-9")
	@bash envs/bench.sh --threads $(CORES) $(BENCH)

.PHONY: lock
lock: ## resolve pyproject.toml into envs/requirements.lock; keeps versions unless UPGRADE=1
	@bash envs/lock.sh

.PHONY: unlock
unlock: setup ## release the workflow folder after a run was killed
	snakemake --unlock

.PHONY: prune
prune: setup ## list result files that no target makes any more, then ask before deleting (YES=1: do not ask)
	@bash envs/prune.sh $(PRUNE_TARGETS)

.PHONY: clean
clean: ## remove tool caches; results, data and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	find src tests rules -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# What depends on `setup` makes .venv ready first, from a complete, hashed lock: minutes once and when the lock changes.
.DEFAULT_GOAL := help
# A file's tests stay on one worker, and the files in their order: the long ones come first. Many wait more than they work.
PARALLEL ?= -n 3 --dist loadfile --no-loadscope-reorder
.PHONY: help setup demo demo-controls study-lag test test-fast check doctor lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## check the machine, then make .venv (CWM_RL_LOCK=cuda for GPUs, PYTHON=... for another Python 3.11)
	@deploy/setup.sh

demo: setup ## a tiny model from nothing learns four domains, on this machine, in a quarter of an hour
	@.venv/bin/cwm-rl train deploy/configs/nano.toml

demo-controls: setup ## the same run with learning rate 0, and with shuffled rewards: neither may learn
	@.venv/bin/cwm-rl controls deploy/configs/nano.toml

study-lag: setup ## reward by lag, correction and cache at a swap: 51 runs, for hours; goes on where it was ended
	@.venv/bin/cwm-rl study-lag deploy/configs/study-lag.toml

test: setup ## the whole test suite
	@.venv/bin/pytest $(PARALLEL)

test-fast: setup ## those of a minute: of single parts, without Ray, vLLM and container engines
	@.venv/bin/pytest -n 2 --dist loadfile -m 'not slow' tests/unit

check: setup ## lint, formatting and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

doctor: setup ## what is there, and what brings the rest
	@.venv/bin/cwm-rl doctor

lock: ## resolve deploy/requirements/*.in into locks again
	@deploy/lock.sh

clean: ## remove .venv and caches; runs/ stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -path ./runs -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -prune -exec rm -rf {} +

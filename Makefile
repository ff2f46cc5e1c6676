# Everything starts here; `make help` lists it. Needs GNU make and Python 3.10 or newer.
# Each target first makes the environment if there is none, and again when pyproject.toml has changed.

PYTHON ?= python3
# An active virtual environment is used as it is; otherwise .venv is made. VENV=$CONDA_PREFIX uses a conda environment.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
# Where to take torch and torchvision from, if not from pip's usual index: for instance the CPU-only wheels (see `make help`).
TORCH_INDEX ?=
# How many seconds one notebook cell may take in `make test`.
CELL_TIMEOUT ?= 900
# How many tests run at once; each worker needs about 2 GB.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count()))")

# Where `make kit` puts what a machine without a network needs, and what pip downloads for it (setuptools builds the package there).
KIT ?= runs/kit
KIT_PACKAGES ?= ".[dev]" pip setuptools wheel

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO := runs/demo

# No debugger notes from the Jupyter kernels in the log.
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lab lint data kit clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=python3.12     the Python to make .venv with (default: python3)"
	@echo "  VENV=path             another environment (default: the active one, else .venv)"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "                        CPU-only torch: for machines without an NVIDIA GPU, saves several GB; give it at the first make"

install: $(STAMP) ## make .venv and install everything into it

# A folder whose python has no working pip is a half-made environment: it is made again.
$(STAMP): pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV)"; $(PYTHON) -c \
	  'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "$(PYTHON) is Python %d.%d, but 3.10 or newer is needed: make PYTHON=python3.12" % v[:2])' \
	  && $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV) (some minutes the first time: PyTorch is large)"
ifneq ($(TORCH_INDEX),)
	$(PY) -m pip install torch torchvision --index-url "$(TORCH_INDEX)"
endif
	$(PY) -m pip install --editable ".[dev]"
	@touch $@

data: $(STAMP) ## prepare the embedded emoji benchmark in data/ (quick when it is there)
	$(PY) -m trex2_mini data emoji

demo: $(STAMP) ## run notebooks/00_quickstart.ipynb on the shipped checkpoint; leaves it and an HTML page in runs/demo/
	@rm -rf $(DEMO)
	$(PY) -m trex2_mini demo --out $(DEMO)

# One thread a worker: more would only get into each other's way. A worker that is free takes the next file; the notebooks, which take longest, come first.
test: lint data ## ruff, the tests, and every notebook from top to bottom; the times of both at the end
	MPLBACKEND= OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --nbmake --nbmake-timeout=$(CELL_TIMEOUT) --durations=60 --durations-min=3 $(wildcard notebooks) tests

lint: $(STAMP) ## ruff on the package, the tests and the notebooks; who may import whom
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(dir $(PY))lint-imports --no-cache

lab: data ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks/00_quickstart.ipynb $(LAB_ARGS)

kit: data ## pack wheels, the repository and the prepared sets for machines without a network (KIT=folder, TORCH_INDEX; several GB)
	@mkdir -p "$(KIT)/wheels"
ifneq ($(TORCH_INDEX),)
	$(PY) -m pip download --dest "$(KIT)/wheels" torch torchvision --index-url "$(TORCH_INDEX)"
endif
	$(PY) -m pip download --dest "$(KIT)/wheels" --find-links "$(KIT)/wheels" $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") $(KIT_PACKAGES)
	git archive --prefix trex2_mini/ --output "$(KIT)/trex2_mini.tar.gz" HEAD
	tar czf "$(KIT)/data.tar.gz" data/emoji-*/
	@printf '%s\n' 'On a machine without a network, of the same system and Python version ($(shell $(PY) -c "import platform, sys; print(platform.platform(), sys.version.split()[0])" 2>/dev/null)), in this folder:' '' \
	  '    tar xzf trex2_mini.tar.gz && tar xzf data.tar.gz -C trex2_mini && cd trex2_mini' \
	  '    PIP_NO_INDEX=1 PIP_FIND_LINKS="$$PWD/../wheels" make lab' > "$(KIT)/INSTALL.txt"
	@du -sh "$(KIT)"/* && cat "$(KIT)/INSTALL.txt"

clean: ## remove what can be made again: the demo's output, the embedded sets, caches (trained runs and .venv stay)
	rm -rf $(DEMO) data/emoji-*/ data/.emoji-*.lock .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -not -path './.venv/*' -prune -exec rm -rf {} +

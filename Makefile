# `make demo` and `make test` need Python and nothing else; the first of them installs into .venv, later ones use it.

# The versions that can have every dependency, newest first: the first that is here and can make environments is taken.
PYTHONS := 3.12 3.11
chosen := $(PYTHON)
PYTHON ?= $(shell for v in $(PYTHONS); do python$$v -c 'import ensurepip' 2>/dev/null && echo python$$v && break; done)
# Of the tests: two processes that have a core each. Each may hold up to 4 GB.
TEST_WORKERS ?= 2
TEST_THREADS ?= 1

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench gpu clean

help:
	@echo "make demo   install, write synthetic drives, train, evaluate every sensor subset, draw the pictures"
	@echo "make test   install, then ruff, mypy, import-linter and pytest"
	@echo "make bench  install, then time the fast parts against their peers, and training of configs/tiny.yaml"
	@echo "make gpu    check and time everything on this machine's GPU; installs nothing (docs/gpu.md)"
	@echo "make clean  remove .venv, runs/ and every cache"

# The stamp holds the folder it was made in: scripts in an environment that was moved or copied point elsewhere.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
# PYTHON=... asks for another interpreter than the environment has.
version := -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null
ifneq ($(chosen),)
ifneq ($(shell $(chosen) $(version)),$(shell $(BIN)/python $(version)))
.PHONY: $(STAMP)
remake := yes
endif
endif

$(STAMP): pyproject.toml constraints.txt
	@PYTHON='$(PYTHON)'; $${PYTHON:-false} -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "RobustBEV needs one of Python $(PYTHONS) with venv; got: $${PYTHON:-none on the PATH}" >&2; \
	  echo "Install it (Debian and Ubuntu: python3.12 and python3.12-venv; or uv, pyenv, conda) or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 1; }
	@rm -f $(STAMP)
	@if [ -z "$(remake)" ] && grep -qsF ' $(CURDIR)/.venv' .venv/pyvenv.cfg && $(BIN)/python -m pip --version >/dev/null 2>&1; then :; \
	  else echo "making .venv"; $(PYTHON) -m venv --clear .venv; fi
	@# torch first and by its version: left to the resolver, a newer build with another CUDA may come in its place.
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[all]'
	@echo '$(CURDIR)' > $(STAMP)

venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/robustbev demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: export OMP_NUM_THREADS ?= $(TEST_THREADS)
test: export RAY_USAGE_STATS_ENABLED ?= 0
# Ray's workers are nice to other processes by default, and those beside them are the other half of the tests.
test: export RAY_worker_niceness ?= 0
test: export MLFLOW_DISABLE_TELEMETRY ?= true
test: lint
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder

# One thread for the peers: the ratio is of algorithms, not of how well each is parallelised.
bench: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks -o python_files='bench_*.py' -o python_functions='bench_*' --benchmark-only
	$(BIN)/python -m tests.benchmarks.throughput
	$(BIN)/python -m tests.benchmarks.processors

# For a bare machine with CUDA torch, which keeps its own Python: WHEELS names a folder with wheels of what it lacks,
# REAL a nuScenes root with real frames and SPLIT theirs. See docs/gpu.md.
GPU_PYTHON ?= $(if $(wildcard $(STAMP)),$(BIN)/python,python3)
OUT ?= .
gpu:
	$(if $(WHEELS),$(GPU_PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/gpu $(WHEELS)/*.whl)
	PYTHONPATH=build/gpu:. PYTHONUNBUFFERED=1 $(GPU_PYTHON) -m tests.gpu --out $(OUT)/gpu.json $(if $(REAL),--real $(REAL)) $(if $(SPLIT),--split $(SPLIT)) $(GPU_FLAGS)

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

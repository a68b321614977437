# make demo    the main job: makes data, trains, plans, evaluates, writes a report (FULL=1: at published size)
# make test    lint, types, tests
#
# Each makes .venv first. python3 with venv and pip is all that must be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The release of torch that we develop with; any from 2.11 on is allowed.
TORCH_SPEC ?= torch==2.13.0
# The triton that belongs to it: torch's wheels for CUDA pin it, the CPU wheel leaves it to us. It has wheels for Linux only.
TRITON_SPEC ?= $(if $(filter Linux,$(shell uname -s)),triton==3.7.1)
# Where torch comes from, beside pip's own sources. On Linux the usual wheel brings CUDA along (gigabytes), so a machine
# without an NVIDIA driver takes the CPU wheel. `make demo TORCH_INDEX=` takes the usual wheel, another address another.
ifeq ($(shell uname -s)$(shell command -v nvidia-smi 2>/dev/null),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
else
TORCH_INDEX ?=
endif

PYTEST_ARGS ?=
# Processes that test side by side, where no GPU is shared: a number, or as many as there are cores, eight at most.
WORKERS ?= auto
SIDE_BY_SIDE := -n $(WORKERS) --maxprocesses 8

.PHONY: venv demo test check test-all gpu-test lint types tests bench clean

venv: $(VENV)/.installed

# torch alone first, so that only torch is ever looked for in its index; one that cannot be reached is given up quickly,
# and pip's own sources serve.
$(VENV)/.installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-deps "$(TORCH_SPEC)" \
	    $(if $(TORCH_INDEX),--retries 1 --timeout 15 --extra-index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -e ".[dev]" $(TRITON_SPEC)
	touch $@

demo: venv
	$(BIN)/sgp-fast demo $(if $(FULL),--full)

test: lint types tests
check: test

lint: venv
	$(BIN)/ruff check .

types: venv
	$(BIN)/pyright

tests: venv
	$(BIN)/python -m pytest -q -m "not slow and not gpu" $(SIDE_BY_SIDE) $(PYTEST_ARGS)

# Everything that can run here, the slow ones and, where there is a GPU, those too.
test-all: lint types
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

gpu-test: venv
	$(BIN)/python -c "import torch; assert torch.cuda.is_available(), 'gpu-test needs a CUDA device; torch sees none'"
	$(BIN)/python -m pytest -q -m gpu $(PYTEST_ARGS)

bench: venv
	$(BIN)/sgp-fast bench run $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

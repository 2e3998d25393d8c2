# Each target sets up what it needs. VENV= (empty) uses the current environment as it is; VENV=<path> another one.
VENV ?= .venv
PYTHON ?= python3

ifeq ($(VENV),)
BIN :=
READY :=
else
BIN := $(VENV)/bin/
READY := $(VENV)/.installed
endif

.PHONY: demo test lint bench results

demo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)torchrun --nproc-per-node 2 scripts/train.py norm=sync trainer=ddp

test: $(READY)
	$(BIN)pytest -q

lint: $(READY)
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

bench: $(READY)
	$(BIN)python -m benchmarks

# Every claim of docs/results, on 2 cores, for hours; what is done already isn't done again.
results: $(READY)
	for plan in science/plans/*.yaml; do \
		$(BIN)python scripts/reproduce.py $$(basename $$plan .yaml) || exit 1; \
	done
	$(BIN)python scripts/reproduce.py summary

# For the CPU build of torch, which is smaller, install it into the environment first, from PyTorch's CPU index.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# Each target sets up what it needs. VENV= (empty) uses the current environment as it is; VENV=<path> another one.
# make test TORCH=2.11.0 (or LIGHTNING=2.5.0, or PYTHON=python3.12) builds an environment of its own, runs the tests
# there, all or those of TESTS=..., and adds the row to docs/versions.md.
VENV ?= .venv
PYTHON ?= python3
TORCH ?=
LIGHTNING ?=
TESTS ?=
# Processes that run the tests; each file's stay together.
WORKERS ?= 2

PINS := $(if $(TORCH),torch==$(TORCH)) $(if $(LIGHTNING),lightning==$(LIGHTNING))
ROW :=
ifneq ($(strip $(PINS))$(filter-out python3,$(PYTHON)),)
VENV := .venv-$(subst $(eval ) ,-,$(strip $(subst ==,-,$(PINS)) $(notdir $(PYTHON))))
ROW := -p tests.plugins.versions --row docs/versions.csv
endif

ifeq ($(VENV),)
BIN :=
READY :=
else
BIN := $(VENV)/bin/
READY := $(VENV)/.installed
endif

.PHONY: demo test lint bench results tables zoo site

demo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)torchrun --nproc-per-node 2 scripts/train.py norm=sync trainer=ddp

# Files in order, not those with few tests last: these are the long ones, and one process would wait for the other's.
test: $(READY)
	$(BIN)python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ROW) $(TESTS); status=$$?; \
	$(if $(ROW),$(BIN)python -m tests.plugins.versions;) exit $$status

lint: $(READY)
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

bench: $(READY)
	$(BIN)python -m benchmarks

# Every claim of docs/results, on 2 cores, for hours; what is done already isn't done again. A plan that fails leaves the
# others to run; Ctrl-C and SIGTERM end it.
results: $(READY)
	@failed=; \
	for name in $$(basename -s .yaml science/plans/*.yaml) summary; do \
		$(BIN)python scripts/reproduce.py $$name; status=$$?; \
		case $$status in 0) ;; 130|143) exit $$status ;; *) failed="$$failed $$name" ;; esac; \
	done; \
	if [ -n "$$failed" ]; then echo "error: failed:$$failed" >&2; exit 1; fi

# For the CPU build of torch, which is smaller, install it into the environment first, from PyTorch's CPU index.
# PIP_CONSTRAINT, not -c: it also takes the place of a constraints file that this machine's pip may have.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	grep -v $(foreach pin,$(PINS),-e '^$(firstword $(subst ==, ,$(pin)))==') -e '^$$' constraints.txt > $(VENV)/constraints.txt
	printf '%s\n' $(PINS) >> $(VENV)/constraints.txt
	PIP_CONSTRAINT=$(VENV)/constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# The tables of options in docs/, from the options' declarations.
tables: $(READY)
	$(BIN)python docs/option_tables.py

# docs/zoo.md: networks of other packages, in an environment of their own, for hours. What has a cell in docs/zoo.csv
# isn't done again, unless by make zoo ZOO="name=timm*"; ZOO=jobs=4 does more at a time.
ZOO ?=
zoo: .venv-zoo/.installed
	OMP_NUM_THREADS=1 .venv-zoo/bin/torchrun --nproc-per-node 2 -m tests.zoo.example examples/timm_loop.py
	OMP_NUM_THREADS=1 .venv-zoo/bin/python -m tests.zoo $(ZOO)

.venv-zoo/.installed: tests/zoo/requirements.txt
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	PIP_CONSTRAINT=tests/zoo/requirements.txt .venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check \
		-r tests/zoo/requirements.txt -e .
	touch $@

# The site, in build/site: strictly, so that a dead link or a name without documentation ends it.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)mkdocs build --strict

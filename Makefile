# make demo    set everything up in .venv and run the main job
# make test    set everything up and run the tests and doctests
# make check   lint, types, slow tests
# make lab     every experiment at full size into docs/lab; cut off, it goes on where it was
# make phases  what each phase of the kernels takes, below Python
# make docs    the tables and pages that are made from docs/lab, and those of the torch door and of statistics
# Another package index: PIP_INDEX_URL=... make demo (pip reads its own environment variables).

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(RUN)/python -m pip install --quiet --constraint constraints.txt
# Python files are used from src/ as they are. The installation knows their names: it is done again where one has moved.
FILES  := $(VENV)/.files
INSTALLED_FROM := $(FILES) pyproject.toml CMakeLists.txt constraints.txt $(wildcard native/*)

.PHONY: demo test check bench phases lab docs clean always
demo: $(READY)
	$(RUN)/normwright demo

test: $(READY)
	$(RUN)/python -m pytest

check: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/python -m pytest -m slow

bench: $(READY)
	$(RUN)/normwright bench

# Timings below Python, for work on the kernels: make phases ONLY="32x64x56x56 NCHW"
phases: $(READY)
	$(RUN)/cmake --build $(firstword $(wildcard build/cp*)) --target phases
	$(firstword $(wildcard build/cp*))/phases "$(ONLY)"

lab: $(READY)
	$(RUN)/normwright lab all --out docs/lab

TABLE := $(RUN)/normwright table docs/lab/results.json
BENCH := $(RUN)/normwright table $(firstword $(wildcard benchmarks/results/*.json))
docs: $(READY)
	$(BENCH) --into README.md
	$(BENCH) --into README.zh-CN.md --lang zh
	$(BENCH) --part cells --into docs/performance.md
	$(BENCH) --figure docs/performance.svg
	$(TABLE) --into README.md
	$(TABLE) --into README.zh-CN.md --lang zh
	$(TABLE) --part report --into docs/laboratory.md
	$(TABLE) --part questions --into docs/questions.md
	$(RUN)/normwright behaviour --into docs/pytorch.md
	$(RUN)/normwright latency --into docs/pytorch.md
	$(RUN)/normwright populations --into docs/statistics.md
	$(RUN)/normwright averages --into docs/statistics.md
	$(RUN)/normwright synchronized --into docs/distributed.md
	$(RUN)/normwright scaling --into docs/distributed.md --figure docs/distributed.svg
	$(RUN)/python -m normwright.bench.models --page docs/models.md

$(READY): $(INSTALLED_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "normwright needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Setting up $(VENV): packages are fetched and the kernels compiled. This takes a few minutes, once."
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) cmake nanobind ninja scikit-build-core setuptools wheel
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(FILES): always
	@mkdir -p $(VENV)
	@find src -name '*.py' | LC_ALL=C sort > $@.now
	@cmp -s $@.now $@ && rm $@.now || mv $@.now $@

clean:
	rm -rf build $(VENV)

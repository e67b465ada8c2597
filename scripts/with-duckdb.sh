#!/usr/bin/env bash
# Runs cargo or maturin with the target folder and the DuckDB library that this project builds with.
#
#     scripts/with-duckdb.sh FEATURES TOOL SUBCOMMAND [ARGUMENT...]     (FEATURES may be "")
#
# Without a prebuilt library the feature `bundled` is added, which compiles DuckDB. PYTHON is the interpreter to
# build for.
set -euo pipefail
features=$1 tool=$2 subcommand=$3
shift 3

cache=${XDG_CACHE_HOME:-$HOME/.cache}/parquet-analytics
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
mkdir -p "$CARGO_TARGET_DIR/release"

if [ -z "${DUCKDB_LIB_DIR:-}" ]; then
    status=0
    DUCKDB_LIB_DIR=$("${PYTHON:-python3}" "$(dirname "$0")/duckdb.py") || status=$?
    if [ "$status" -eq 3 ]; then
        echo "DuckDB is compiled from source instead, once per machine: this takes up to an hour." >&2
        unset DUCKDB_LIB_DIR
        features=${features:+$features,}bundled
    elif [ "$status" -ne 0 ]; then
        exit "$status"
    else
        export DUCKDB_LIB_DIR
    fi
fi

# Clones share the target folder, so that dependencies compile once per machine. Cargo writes our library under
# one name for all of them and takes another clone's for its own: it is removed when another clone was last.
owner=$CARGO_TARGET_DIR/release/.parquet-analytics-clone
if [ "$(cat "$owner" 2>/dev/null)" != "$PWD" ]; then
    rm -f "$CARGO_TARGET_DIR"/release/{,deps/}libparquet_analytics.{so,dylib,rlib}
    echo "$PWD" >"$owner"
fi

if [[ ,$features, == *,python,* ]]; then
    # What maturin sets: with other values pyo3 and all above it would compile anew at each change of tool.
    PYO3_ENVIRONMENT_SIGNATURE=$("$PYTHON" -c \
        'import struct, sys; print("cpython-%d.%d-%dbit" % (*sys.version_info[:2], struct.calcsize("P") * 8))')
    export PYO3_ENVIRONMENT_SIGNATURE PYO3_PYTHON=$PYTHON PYTHON_SYS_EXECUTABLE=$PYTHON PYO3_BUILD_EXTENSION_MODULE=1
fi

exec "$tool" "$subcommand" ${features:+--features "$features"} "$@"

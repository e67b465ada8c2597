#!/usr/bin/env python3
"""Changes the Rust code in one small way after another and looks whether a test notices: mutation testing with
cargo-mutants, of the code that decides whether rows are written over, go, or are called verified.

    python scripts/mutants.py                              every mutant of the files below: hours
    python scripts/mutants.py src/file/position.rs --shard 0/4  of one file; what is no file is for `cargo mutants`

To be run within `python -m tests.services run --`, so that the servers start once. cargo-mutants asks cargo for tests.
It is given this script as its cargo, which builds the extension and runs the tests that are about the changed file,
most of them Python's. Mutants that no test can notice, and why, stand in .cargo/mutants.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

VERSION = "27.1.0"
# In a file that cargo-mutants has changed.
MARK = "~ changed by cargo-mutants ~"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parquet-analytics"

# Tests of each file, by module: Rust's in tests/core, Python's in tests/test_*.py. The first failure ends a run, so
# those come first that find most in the least time.
TESTS = {
    "src/file/position.rs": "core/position identity merge row_identity",
    "src/file/remaining.rs": "core/remaining row_identity delete merge",
    "src/archive/stored.rs": "merge row_identity delete identity export verify conditional_reads",
    "src/archive/stamp.rs": "delete identity row_identity",
    "src/archive/merge.rs": "merge row_identity bad_rows core/merge",
    "src/archive/publish.rs": "core/publish export conditional_reads faults",
    "src/archive/verify.rs": "verify delete row_identity",
    "src/archive/delete.rs": "delete row_identity identity conditional_reads effects",
    "src/archive/delete/elsewhere.rs": "row_identity django_moved_rows delete",
    "src/archive/delete/stamp.rs": "delete row_identity concurrency",
    "src/archive/erase.rs": "erasure_owners erasure_list django_erasure django_erasure_stored",
    "src/archive/claim.rs": "erasure_owners erasure_list",
    "src/archive/copies/stale.rs": "erased_rows erasure_owners erasure_list django_erasure django_erasure_stored",
    "src/archive/erase/record.rs": "erasure_list erasure_owners django_erasure_stored",
    "src/archive/erase/look.rs": "erased_rows erasure_owners erasure_list django_erasure_stored",
}
FILES = "PARQUET_ANALYTICS_MUTANTS"


def main(given: list[str]) -> int:
    files = [each for each in given if each in TESTS] or list(TESTS)
    arguments = [each for each in given if each not in TESTS]
    environment = {
        **os.environ,
        "CARGO": str(Path(__file__).resolve()),
        "PYTHON": sys.executable,
        FILES: " ".join(files),
    }
    tree = Path(__file__).resolve().parent.parent
    chosen = [word for file in files for word in ("--file", file)]
    command: list[str | Path] = [
        installed(),
        "mutants",
        "--dir",
        tree,
        "--output",
        CACHE,
        "--timeout",
        "600",
        *chosen,
        *arguments,
    ]
    return subprocess.run(command, env=environment).returncode


def installed() -> Path:
    program = CACHE / "tools" / "bin" / "cargo-mutants"
    if not program.exists() or VERSION not in subprocess.check_output([program, "mutants", "--version"], text=True):
        install = ["cargo", "install", "cargo-mutants", "--locked", "--version", VERSION, "--quiet"]
        subprocess.run([*install, "--root", program.parent.parent], check=True)
    return program


def cargo(arguments: list[str]) -> int:
    """What cargo-mutants wants of cargo, in the folder that it has copied the tree to."""
    if arguments[0] != "test":
        os.execvp("cargo", ["cargo", *arguments])
    return build() if "--no-run" in arguments else test()


def build() -> int:
    """Compiles the extension and puts it where the copied package finds it."""
    if failed := with_duckdb("python", "build", "--lib"):
        return failed
    package = Path("python/parquet_analytics")
    target = Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "target"))
    shutil.copy(target / "release" / "libparquet_analytics.so", package / "_native.abi3.so")
    duckdb = subprocess.check_output([os.environ["PYTHON"], "scripts/duckdb.py"], text=True).strip()
    for library in Path(duckdb).glob("libparquet_analytics_duckdb.*"):
        shutil.copy(library, package)
    return 0


def test() -> int:
    changed = [file for file in TESTS if MARK in Path(file).read_text()]
    names = dict.fromkeys(name for file in changed or os.environ[FILES].split() for name in TESTS[file].split())
    here = Path.cwd()
    environment = {**os.environ, "PYTHONPATH": f"{here / 'python'}{os.pathsep}{here}"}
    pytest = [os.environ["PYTHON"], "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    for in_rust, some in groupby(names, key=lambda name: name.startswith("core/")):
        if in_rust:
            modules = [f"{name.removeprefix('core/')}::" for name in some]
            failed = with_duckdb("", "test", "--test", "core", "--", *modules)
        else:
            failed = subprocess.run([*pytest, *(f"tests/test_{name}.py" for name in some)], env=environment).returncode
        if failed:
            return failed
    return 0


def with_duckdb(features: str, subcommand: str, *arguments: str) -> int:
    """Only this crate compiles anew, unoptimised."""
    quick = ("profile.release.package.parquet-analytics.opt-level=0", "profile.release.incremental=true")
    configured = [word for each in quick for word in ("--config", each)]
    command = ["scripts/with-duckdb.sh", features, "cargo", subcommand, "--release", "--locked", *configured]
    return subprocess.run([*command, *arguments]).returncode


if __name__ == "__main__":
    as_cargo = os.environ.get("CARGO") == str(Path(__file__).resolve())
    sys.exit((cargo if as_cargo else main)(sys.argv[1:]))

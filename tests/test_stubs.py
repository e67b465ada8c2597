"""The type stub of the native module says what the built module has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from parquet_analytics import _native

ROOT = Path(__file__).parent.parent


def test_the_stub_matches_the_built_module() -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "parquet_analytics._native"]
    command += ["--mypy-config-file", str(ROOT / "pyproject.toml")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Success: no issues found in 1 module" in result.stdout


def test_the_stub_is_a_file_beside_the_module_and_the_package_is_marked_as_typed() -> None:
    package = Path(_native.__file__).parent
    assert (package / "_native.pyi").stat().st_size > 0
    assert (package / "py.typed").exists()

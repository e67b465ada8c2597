"""The wheel works where there is no compiler, Rust or npm, in the oldest and the newest Python of this machine."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

# Building the wheel may compile the extension; `make test` has done it before.
pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parent.parent
DUCKDB = "libparquet_analytics_duckdb.so"
TOOLS = ("cc", "gcc", "clang", "cargo", "rustc", "npm", "patchelf")

# Exports two rows to an in-memory store and asks for them.
EXPORT_AND_QUERY = """
import datetime, pyarrow as pa
import parquet_analytics
day = datetime.date(2026, 7, 1)
rows = pa.table({
    "id": pa.array([1, 2], pa.int64()),
    "project_id": pa.array([7, 7], pa.int32()),
    "project_slug": ["docs", "docs"],
    "version_id": pa.array([None, 3], pa.int32()),
    "version_slug": pa.array([None, "latest"], pa.string()),
    "path": ["/a", "/b"],
    "full_path": pa.array([None, "/en/latest/b"], pa.string()),
    "view_count": pa.array([5, 9], pa.int32()),
    "date": pa.array([day, day], pa.date32()),
    "status": pa.array([200, 200], pa.int16()),
})
exporter = parquet_analytics.ParquetAnalyticsExporter("memory://wheel", source=rows)
assert exporter.export_daily_pageviews(day)["total_records"] == 2
querier = parquet_analytics.ParquetAnalyticsQuerier("memory://wheel")
top = querier.top_pages("docs", day, day).to_pylist()
assert top == [{"path": "/b", "count": 9}, {"path": "/a", "count": 5}], top
"""

IMPORT = """
import os, sys
import pyarrow
threads = set(os.listdir("/proc/self/task"))
import parquet_analytics
assert set(os.listdir("/proc/self/task")) == threads, "importing starts a thread"
django = [name for name in sys.modules if name.partition(".")[0] in ("django", "celery")]
assert not django, django
print(parquet_analytics.__file__)
"""

ASK_DUCKDB = """
import duckdb
assert duckdb.sql("SELECT sum(i) FROM range(10) t(i)").fetchall() == [(45,)]
"""


@functools.cache
def interpreters() -> dict[tuple[int, int], str]:
    """The Pythons from 3.11 on, by version."""
    found: dict[tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    candidates = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))]
    for candidate in filter(None, candidates):
        probe = "import ensurepip, sys; print(*sys.version_info[:2]) if sys.implementation.name == 'cpython' else None"
        result = subprocess.run([candidate, "-c", probe], capture_output=True, text=True)
        if result.returncode == 0 and (numbers := re.findall(r"\d+", result.stdout)):
            found.setdefault((int(numbers[0]), int(numbers[1])), candidate)
    return {version: path for version, path in sorted(found.items()) if version >= (3, 11)}


@pytest.fixture(scope="module")
def wheel() -> Path:
    """dist/'s wheel; built first when a source is newer."""
    sources = [path for folder in ("src", "python") for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"]
    sources = [path for path in sources if path.is_file() and path.suffix != ".so"]
    sources += [ROOT / name for name in ("Cargo.toml", "Cargo.lock", "build.rs", "pyproject.toml")]
    newest = max(path.stat().st_mtime for path in sources)
    wheels = list((ROOT / "dist").glob("parquet_analytics-*.whl"))
    if len(wheels) != 1 or wheels[0].stat().st_mtime < newest:
        subprocess.run([sys.executable, ROOT / "scripts" / "wheel.py"], check=True)
        wheels = list((ROOT / "dist").glob("parquet_analytics-*.whl"))
    assert len(wheels) == 1
    return wheels[0]


class FreshEnvironment:
    """A virtual environment with the wheel and what it depends on, and a PATH without tools."""

    def __init__(self, python: str, folder: Path, wheel: Path) -> None:
        subprocess.run([python, "-m", "venv", folder], check=True)
        self.binaries = folder / "bin"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
        self.environment["PATH"] = str(self.binaries)
        assert not [tool for tool in TOOLS if shutil.which(tool, path=self.environment["PATH"])]
        self.install(str(wheel))

    def install(self, requirement: str) -> None:
        command = [self.binaries / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", requirement]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def run(self, script: str) -> str:
        command = [self.binaries / "python", "-c", script]
        result = subprocess.run(command, env=self.environment, cwd="/", capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture(scope="module")
def oldest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    version, python = next(iter(interpreters().items()))
    return FreshEnvironment(python, tmp_path_factory.mktemp("venv") / "{}.{}".format(*version), wheel)


@pytest.fixture(scope="module")
def newest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    if len(interpreters()) == 1:
        pytest.skip("this machine has only one Python from 3.11 on")
    version, python = list(interpreters().items())[-1]
    return FreshEnvironment(python, tmp_path_factory.mktemp("venv") / "{}.{}".format(*version), wheel)


def test_the_wheel_says_which_python_and_glibc_it_needs_and_ships_duckdb(wheel: Path) -> None:
    if sys.platform == "linux":
        assert re.search(r"-cp311-abi3-manylinux_2_\d+_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "parquet_analytics/_native.abi3.so" in names
    assert "parquet_analytics/py.typed" in names
    assert [name for name in names if "libduckdb" in name or ".libs/" in name] == [], "a second copy of a library"
    if (ROOT / "python" / "parquet_analytics" / DUCKDB).exists():  # not when DuckDB was compiled in
        assert f"parquet_analytics/{DUCKDB}" in names
        assert any(name.endswith("DuckDB.txt") for name in names), "DuckDB's licence"
    runtime = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(runtime) == 1
    assert runtime[0].startswith("Requires-Dist: pyarrow")


@pytest.mark.parametrize("environment", ["oldest", "newest"])
def test_a_fresh_environment_exports_and_queries_without_tools(
    environment: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(environment).run(EXPORT_AND_QUERY)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_importing_needs_no_django_and_starts_no_thread(oldest: FreshEnvironment) -> None:
    imported_from = oldest.run(IMPORT)
    assert Path(imported_from).is_relative_to(oldest.binaries.parent), "not the installed package"


@pytest.mark.parametrize("version", ["1.5", "2.0"])
def test_duckdbs_own_package_works_in_the_same_process_in_either_order(version: str, oldest: FreshEnvironment) -> None:
    oldest.install(f"duckdb=={version}.*")
    for first, second in ((ASK_DUCKDB, EXPORT_AND_QUERY), (EXPORT_AND_QUERY, ASK_DUCKDB)):
        oldest.run(f"{first}\n{second}")
    # Both loaded before either is used, and both used again afterwards.
    oldest.run(f"import duckdb, parquet_analytics\n{EXPORT_AND_QUERY.replace('//wheel', '//again')}\n{ASK_DUCKDB}")
    shown = oldest.run("import parquet_analytics, duckdb; print(duckdb.__version__)")
    assert shown.startswith(version)

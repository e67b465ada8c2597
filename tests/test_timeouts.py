"""Time limits that a role has for other purposes end neither an export nor a deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsExporter, SampleData

from tests.archives import DAY, execute, rows_of
from tests.services import Postgres


@pytest.fixture
def hasty(embedded_postgres: Postgres) -> Iterator[Any]:
    """Makes a role of PostgreSQL 18 with such settings, and gives its URL of a database with rows."""
    url = embedded_postgres.create_database()
    name = url.rsplit("/", 1)[1] + "_hasty"
    SampleData(rows_per_day=30_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(url, DAY, DAY)
    execute(embedded_postgres.url, f"CREATE ROLE {name} LOGIN PASSWORD '{embedded_postgres.password}'")
    execute(url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")

    def with_settings(**settings: str) -> str:
        for setting, value in settings.items():
            execute(embedded_postgres.url, f"ALTER ROLE {name} SET {setting} = '{value}'")
        return embedded_postgres.database_url(url.rsplit("/", 1)[1], user=name)

    yield with_settings
    execute(url, f"DROP OWNED BY {name}")
    execute(embedded_postgres.url, f"DROP ROLE {name}")
    embedded_postgres.drop_database(url)


def test_a_roles_limit_for_transactions_ends_no_export_and_no_deletion(hasty: Any, tmp_path: Path) -> None:
    url = hasty(transaction_timeout="20ms", idle_in_transaction_session_timeout="20ms")
    with psycopg.connect(url) as connection, pytest.raises(psycopg.Error):
        connection.execute("SELECT pg_sleep(0.2)")
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=url)
    assert exporter.export_daily_pageviews(DAY)["total_records"] == 30_000
    assert exporter.delete_exported_pageviews(DAY, allow_local_delete=True)["deleted"] == 30_000


def test_a_connection_that_was_idle_for_too_long_is_made_anew_between_two_batches(hasty: Any, tmp_path: Path) -> None:
    url = hasty(idle_session_timeout="150ms")
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=url)
    exporter.export_daily_pageviews(DAY)
    result = exporter.delete_exported_pageviews(DAY, allow_local_delete=True, batch_rows=10_000, pause=0.5)
    assert (result["deleted"], result["batches"]) == (30_000, 3)
    assert rows_of(url, "SELECT count(*) FROM analytics_pageview") == [(0,)]

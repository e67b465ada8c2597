"""Exporting a day: what is written, what a second run does, and which sources are taken."""

from __future__ import annotations

import datetime
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_analytics import PostgresSource, SampleData
from parquet_analytics.exceptions import (
    BadRow,
    DayHasNoRows,
    InvalidInput,
    SourceError,
    SourceSchemaError,
)

from tests.archives import DAY, KEY, SCHEMA, Place, execute, rows_of, saying, views
from tests.services import PgBouncer, Postgres

ADD = """
    INSERT INTO projects_project (id, name, slug) VALUES (7, 'Docs', 'docs') ON CONFLICT DO NOTHING;
    INSERT INTO builds_version (id, project_id, slug) VALUES (5, 7, 'latest') ON CONFLICT DO NOTHING;
    INSERT INTO analytics_pageview (id, path, full_path, view_count, date, status, project_id, version_id) VALUES
        (1, '/index.html', '/en/latest/index.html', 10, '2026-07-01', 200, 7, 5),
        (2, '/install.html', '/en/latest/install.html', 4, '2026-07-01', 200, 7, 5),
        (3, '/lost.html', NULL, 1, '2026-07-01', 404, 7, NULL),
        (4, '/index.html', '/en/latest/index.html', 99, '2026-07-02', 200, 7, 5);
"""


def stored(place: Place, key: str = KEY) -> pa.Table:
    return pq.read_table(io.BytesIO(place.read(key))).replace_schema_metadata()


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


def test_only_the_days_rows_are_exported(place: Place, filled: str) -> None:
    result = place.exporter(filled).export_daily_pageviews("2026-07-01")
    assert (result["total_records"], result["total_views"], result["files"]) == (3, 15, {KEY: 3})
    assert stored(place).equals(views().cast(SCHEMA))


EXPORT = """
import json, sys
from parquet_analytics import ParquetAnalyticsExporter
given = json.loads(sys.argv[1])
exporter = ParquetAnalyticsExporter(given["url"], source=given["source"], storage_options=given["options"])
print(exporter.export_daily_pageviews(given["day"])["total_records"])
"""


def test_processes_export_in_turn_through_a_pooler_in_transaction_mode(
    place: Place, filled: str, pgbouncer: PgBouncer
) -> None:
    source = pgbouncer.database_url(filled.rsplit("/", 1)[1])
    written = []
    for day in ("2026-07-01", "2026-07-02"):
        given = json.dumps({"url": place.url, "options": place.options(), "source": source, "day": day})
        run = subprocess.run([sys.executable, "-c", EXPORT, given], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        written.append(int(run.stdout))
    assert written == [3, 1]
    assert len(place.keys()) == 2


def test_the_newest_postgresql_is_exported_as_well(place: Place, embedded_postgres: Postgres) -> None:
    database = embedded_postgres.create_database()
    sample = SampleData(rows_per_day=20_000, projects=30, growth=0, weekly_rhythm=False)
    assert sample.load_postgres(database, DAY, DAY) == 20_000
    result = place.exporter(database).export_daily_pageviews(DAY)
    rows = stored(place, next(iter(result["files"]))).sort_by("id")
    assert rows.equals(sample.day(DAY).read_all().sort_by("id").cast(rows.schema))


def test_a_source_with_other_names_gives_the_same_file(place: Place, filled: str) -> None:
    execute(
        filled,
        'CREATE SCHEMA "My Schema"',
        'CREATE TABLE "My Schema"."Hits ""today""" AS SELECT id, path AS "select", full_path, view_count AS "Views", '
        'date AS "Day", status, project_id, version_id FROM analytics_pageview',
        'CREATE TABLE "My Schema".sites AS SELECT id, slug AS "the slug" FROM projects_project',
        'CREATE TABLE "My Schema".builds_version AS SELECT * FROM builds_version',
    )
    source = PostgresSource(
        filled,
        schema="My Schema",
        table='Hits "today"',
        projects_table="sites",
        columns={"path": "select", "view_count": "Views", "date": "Day", "project_slug": "the slug"},
    )
    place.exporter(source).export_daily_pageviews(DAY)
    assert stored(place).equals(views().cast(SCHEMA))


def test_of_many_first_exports_at_once_one_is_stored_and_the_others_merge_into_it(place: Place) -> None:
    together = threading.Barrier(8)
    met = set()

    def export(number: int) -> dict[str, Any]:
        def source(day: datetime.date) -> pa.Table:
            if number not in met:
                met.add(number)
                together.wait(10)  # each has seen by now that the day is not stored
            return views(id=[10 * number, 10 * number + 1, 10 * number + 2])

        return place.exporter(source).export_daily_pageviews(DAY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(export, range(8)))
    # One that is overtaken before it has read its file back begins again, and finds nothing to do.
    outcomes = [answer["outcome"] for answer in answers]
    assert set(outcomes) <= {"created", "merged", "unchanged"}
    assert outcomes.count("created") <= 1
    assert all(answer["verified"] for answer in answers)
    assert sorted(stored(place)["id"].to_pylist()) == sorted(10 * n + k for n in range(8) for k in range(3))
    assert place.keys() == [KEY]


def test_a_replacement_that_would_lose_stored_rows_is_refused_with_their_number(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    before = place.read(KEY)
    execute(filled, "DELETE FROM analytics_pageview WHERE id IN (1, 2)")
    with pytest.raises(InvalidInput, match=saying(KEY, "2 rows", "discard_stored=True")):
        exporter.export_daily_pageviews(DAY, replace=True)
    assert place.read(KEY) == before
    exporter.export_daily_pageviews(DAY, replace=True, discard_stored=True)
    assert stored(place)["id"].to_pylist() == [3]


def test_a_day_without_rows_is_written_only_when_asked_for(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    with pytest.raises(DayHasNoRows, match=saying("2026-06-30", "allow_empty=True")) as caught:
        exporter.export_daily_pageviews("2026-06-30")
    assert caught.value.day == datetime.date(2026, 6, 30)
    assert place.keys() == []
    [key] = exporter.export_daily_pageviews("2026-06-30", allow_empty=True)["files"]
    assert stored(place, key).equals(SCHEMA.empty_table())
    assert place.querier().query_pageviews("docs", since="2026-06-30", until="2026-06-30").equals(SCHEMA.empty_table())


def test_a_dry_run_counts_and_writes_nothing(place: Place, filled: str) -> None:
    result = place.exporter(filled).export_daily_pageviews(DAY, dry_run=True)
    assert (result["dry_run"], result["total_records"], result["files"]) == (True, 3, {KEY: 3})
    assert place.keys() == []


def test_yesterday_in_utc_is_the_default_and_today_is_refused(place: Place, database: str) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    execute(database, ADD, f"UPDATE analytics_pageview SET date = '{today}'::date - 1 WHERE id < 4")
    exporter = place.exporter(database)
    assert exporter.export_daily_pageviews()["date"] == (today - datetime.timedelta(days=1)).isoformat()
    for day, why in ((today, "not over yet"), (today + datetime.timedelta(days=1), "future")):
        with pytest.raises(InvalidInput, match=saying(day.isoformat(), why)):
            exporter.export_daily_pageviews(day)


def test_rows_that_do_not_fit_into_memory_are_sorted_by_way_of_files(place: Place, tmp_path: Any) -> None:
    sample = SampleData(rows_per_day=150_000, projects=50, weekly_rhythm=False, growth=0)
    hashes = []
    for memory in (512 << 20, 4 << 20):
        exporter = place.exporter(sample.day, prefix=f"memory-{memory}", sort_memory=memory, temp_dir=tmp_path)
        [key] = exporter.export_daily_pageviews(DAY)["files"]
        hashes.append(stored(place, key))
    assert hashes[0].equals(hashes[1])
    assert list(tmp_path.iterdir()) == []


WIDER = {
    "id": pa.uint32(),
    "project_id": pa.int64(),
    "project_slug": pa.large_string(),
    "version_id": pa.decimal128(12, 0),
    "version_slug": pa.string_view(),
    "path": pa.large_string(),
    "full_path": pa.string(),
    "view_count": pa.uint64(),
    "date": pa.timestamp("us"),
    "status": pa.int64(),
}

SOURCES: dict[str, Callable[[pa.Table], Any]] = {
    "pyarrow table": lambda table: table,
    "pyarrow reader": lambda table: lambda day: table.to_reader(max_chunksize=1),
    "pyarrow, wider types": lambda table: pa.table({name: table[name].cast(kind) for name, kind in WIDER.items()}),
    "pyarrow, other order and more columns": lambda table: table.select(table.schema.names[::-1]).append_column(
        "browser", [["a", "b", "c"]]
    ),
    "pyarrow, dictionaries": lambda table: pa.table(
        {
            name: column.dictionary_encode() if name.endswith("slug") else column
            for name, column in zip(table.schema.names, table.columns, strict=True)
        }
    ),
    "polars": pl.from_arrow,
    "polars, categorical": lambda table: pl.from_arrow(table).with_columns(pl.col("project_slug").cast(pl.Categorical)),
    "pandas, nullable": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "duckdb": lambda table: duckdb.from_arrow(table),
}


@pytest.mark.parametrize("name", SOURCES)
def test_any_arrow_stream_gives_the_same_file(name: str, place: Place) -> None:
    source = SOURCES[name](views())
    place.exporter(source).export_daily_pageviews(DAY)
    assert stored(place).equals(views().cast(SCHEMA))


def test_columns_that_may_be_missing_are_null_and_the_status_200(place: Place) -> None:
    source = views(version_id=None, version_slug=None, full_path=None, status=None)
    place.exporter(source).export_daily_pageviews(DAY)
    table = stored(place)
    assert table["status"].to_pylist() == [200] * 3
    for name in ("version_id", "version_slug", "full_path"):
        assert table[name].null_count == 3


@pytest.mark.parametrize(
    ("column", "values", "kind", "fragment"),
    [
        ("id", None, SourceSchemaError, "no column id"),
        ("path", None, SourceSchemaError, "no column path"),
        ("id", pa.array([1.0, 2.0, 3.0]), SourceSchemaError, "whole numbers"),
        ("view_count", ["10", "4", "1"], SourceSchemaError, "utf8"),
        ("path", pa.array([b"/a", b"/b", b"/c"]), SourceSchemaError, "text is needed"),
        ("status", pa.array([True, False, True]), SourceSchemaError, "bool"),
        ("date", ["2026-07-01"] * 3, SourceSchemaError, "a date is needed"),
        ("version_id", pa.array([1.5, 2.0, None]), SourceSchemaError, "floating point"),
        ("date", pa.array([datetime.datetime(2026, 7, 1, 12)] * 3), BadRow, "midnight"),  # noqa: DTZ001
        ("date", pa.array([DAY, DAY, datetime.date(2026, 7, 2)]), BadRow, "2026-07-02"),
    ],
)
def test_a_column_that_would_lose_something_is_refused_by_name(
    column: str, values: Any, kind: type[SourceError], fragment: str, place: Place
) -> None:
    with pytest.raises(kind, match=f"(?i){saying(column, fragment)}") as caught:
        place.exporter(views(**{column: values})).export_daily_pageviews(DAY)
    assert (caught.value.column, caught.value.day) == (column, DAY)
    assert place.keys() == []


def test_rows_of_another_day_are_refused_and_counted(place: Place) -> None:
    other = datetime.date(2026, 6, 30)
    with pytest.raises(BadRow, match=saying("id 1", "2026-06-30", "3 of the first 3 rows")) as caught:
        place.exporter(views(date=[other] * 3)).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (1, "date")
    assert place.keys() == []


def test_an_error_of_the_source_keeps_its_cause(place: Place) -> None:
    def broken(day: datetime.date) -> pa.Table:
        raise LookupError(f"nothing for {day}")

    with pytest.raises(SourceError, match="nothing for 2026-07-01") as caught:
        place.exporter(broken).export_daily_pageviews(DAY)
    assert isinstance(caught.value.__cause__, LookupError)
    assert place.keys() == []


def test_an_export_leaves_the_database_as_it_was(place: Place, filled: str) -> None:
    table = "SELECT xmin, xmax, v.* FROM analytics_pageview v ORDER BY id"
    before = rows_of(filled, table)
    place.exporter(filled).export_daily_pageviews(DAY)
    assert rows_of(filled, table) == before
    [[others]] = rows_of(
        filled,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
        "AND pid <> pg_backend_pid()",
    )
    assert others == 0


def test_a_reader_without_rights_to_write_is_enough(place: Place, filled: str) -> None:
    name = f"reader_{psycopg.conninfo.conninfo_to_dict(filled)['dbname']}"
    server = psycopg.conninfo.conninfo_to_dict(filled)
    execute(
        filled, f"CREATE ROLE {name} LOGIN PASSWORD 'reading'", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"
    )
    url = f"host={server['host']} port={server['port']} dbname={server['dbname']} user={name} password=reading"
    try:
        assert place.exporter(url).export_daily_pageviews(DAY)["total_records"] == 3
    finally:
        execute(filled, f"DROP OWNED BY {name}", f"DROP ROLE {name}")

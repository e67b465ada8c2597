"""What was exported from PostgreSQL to S3, read back by pyarrow, polars, DuckDB and pandas and compared row by row."""

from __future__ import annotations

import datetime
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import parquet_analytics
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.archives import DAY, KEY, ORDER, SCHEMA, SELECT, Exported, rows_of

Row = tuple[object, ...]
SORTED_BY = ["project_slug", "status", "path", "version_slug", "id"]


def by_pyarrow(file: Path) -> list[Row]:
    table = pq.read_table(file)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def by_polars(file: Path) -> list[Row]:
    return pl.read_parquet(file).rows()


def by_duckdb(file: Path) -> list[Row]:
    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet(?)", [str(file)]).fetchall()


@pytest.fixture(scope="module")
def stored(big_day: Exported) -> bytes:
    return big_day.place.read(KEY)


@pytest.fixture(scope="module")
def file(stored: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("day") / "day.parquet"
    path.write_bytes(stored)
    return path


@pytest.fixture(scope="module")
def in_database(big_day: Exported) -> list[Row]:
    """The day in the order that a file promises."""
    return rows_of(big_day.database, f"{SELECT} ORDER BY {ORDER}")


@pytest.mark.parametrize("read", [by_pyarrow, by_polars, by_duckdb])
def test_every_column_of_every_row_is_as_in_the_database(
    read: Callable[[Path], list[Row]], file: Path, in_database: list[Row]
) -> None:
    rows = read(file)
    assert len(rows) == len(in_database) == 200_000
    different = [number for number, pair in enumerate(zip(rows, in_database, strict=True)) if pair[0] != pair[1]]
    assert not different, f"row {different[0]}: {rows[different[0]]} instead of {in_database[different[0]]}"
    # The comparison looked at NULLs and at both statuses.
    for column in (3, 4, 6):
        assert 0 < sum(row[column] is None for row in rows) < 200_000
    assert {row[9] for row in rows} == {200, 404}


def test_pandas_reads_it(file: Path, in_database: list[Row]) -> None:
    frame = pd.read_parquet(file)
    assert list(frame.columns) == SCHEMA.names
    assert frame["view_count"].sum() == sum(row[7] for row in in_database)
    assert frame["path"].tolist() == [row[5] for row in in_database]
    assert frame["version_slug"].isna().tolist() == [row[4] is None for row in in_database]


def test_columns_and_types_are_the_ten_promised(file: Path) -> None:
    schema = pq.read_schema(file)
    assert schema.remove_metadata().equals(SCHEMA)
    with duckdb.connect() as connection:
        described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(file)]).fetchall()
    types = ["BIGINT", "INTEGER", "VARCHAR", "INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "INTEGER", "DATE", "SMALLINT"]
    assert [row[1] for row in described] == types


def test_the_footer_tells_the_order_and_the_rows_are_in_it(file: Path) -> None:
    footer = pq.read_metadata(file)
    assert footer.num_row_groups == 2
    for group in range(footer.num_row_groups):
        order = footer.row_group(group).sorting_columns
        assert [SCHEMA.names[column.column_index] for column in order] == SORTED_BY
        assert all(column.nulls_first and not column.descending for column in order)
    rows = by_pyarrow(file)
    keys = [
        (row[2].encode(), row[9], row[5].encode(), b"" if row[4] is None else b"\0" + row[4].encode(), row[0])
        for row in rows
    ]
    assert keys == sorted(keys)


def test_encodings_statistics_and_page_index_are_those_that_keep_files_small_and_fast(file: Path) -> None:
    group = pq.read_metadata(file).row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert all(column.is_stats_set for column in columns.values())
    assert all(column.has_offset_index for column in columns.values())
    for name in ("project_slug", "project_id", "status"):
        assert columns[name].has_column_index, name
    assert "DELTA_BYTE_ARRAY" in columns["path"].encodings
    assert "DELTA_BYTE_ARRAY" in columns["full_path"].encodings
    assert "DELTA_BINARY_PACKED" in columns["id"].encodings
    for name in ("path", "full_path", "id"):
        assert columns[name].dictionary_page_offset is None, name
    slugs = pq.read_table(file, columns=["project_slug"])["project_slug"][: group.num_rows].to_pylist()
    assert (columns["project_slug"].statistics.min, columns["project_slug"].statistics.max) == (slugs[0], slugs[-1])
    # pyarrow's writer, with its defaults, as a yardstick.
    plain = io.BytesIO()
    pq.write_table(pq.read_table(file), plain)
    assert file.stat().st_size < 0.7 * plain.tell()


def test_the_file_says_where_it_comes_from(file: Path, stored: bytes, big_day: Exported) -> None:
    [result] = big_day.results
    said = {key.decode(): value.decode() for key, value in pq.read_metadata(file).metadata.items()}
    said = {key.removeprefix("parquet_analytics."): value for key, value in said.items() if key != "ARROW:schema"}
    assert said["format"] == "1"
    assert said["version"] == parquet_analytics.__version__
    assert said["day"] == result["date"] == "2026-07-01"
    assert said["run_id"] == result["run_id"]
    assert said["rows"] == str(result["total_records"]) == "200000"
    [[views]] = rows_of(big_day.database, "SELECT sum(view_count) FROM analytics_pageview")
    assert said["views"] == str(result["total_views"]) == str(views)
    server = psycopg.conninfo.conninfo_to_dict(big_day.database)
    place = f"postgresql://127.0.0.1:{server['port']}/{server['dbname']}/analytics_pageview"
    assert said["source"] == result["source"] == place
    assert server["password"] not in str(said)
    assert said["snapshot_time"] == result["snapshot_time"]
    taken = datetime.datetime.fromisoformat(said["snapshot_time"])
    assert abs(datetime.datetime.now(datetime.UTC) - taken) < datetime.timedelta(hours=1)
    assert result["files"] == {KEY: 200_000}
    assert result["bytes"] == len(stored)
    assert result["sha256"] == hashlib.sha256(stored).hexdigest()
    assert big_day.place.keys() == [KEY]


def test_readers_find_the_day_by_a_glob(big_day: Exported) -> None:
    # The layout's promise to other engines: days are */*/*/pageviews_*.parquet below the prefix.
    [key] = big_day.place.keys()
    assert Path(key).match("analytics/pageviews/*/*/*/pageviews_*.parquet")
    assert key == big_day.place.exporter(big_day.database).get_parquet_path(DAY)
    assert pa.BufferReader(big_day.place.read(key)).read(4) == b"PAR1"

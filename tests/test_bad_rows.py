"""Tables, columns and values that cannot be exported: named in the error, and the store is still empty."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pyarrow as pa
import pytest
from parquet_analytics import PostgresSource, SampleData
from parquet_analytics.exceptions import BadRow, SourceSchemaError

from tests.archives import DAY, Place, execute, saying, views

ROW = """
    INSERT INTO projects_project (id, name, slug) VALUES (7, 'Docs', 'docs');
    INSERT INTO builds_version (id, project_id, slug) VALUES (5, 7, 'latest');
    INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id, version_id)
    VALUES (41, '/a', 1, '2026-07-01', 200, 7, 5), (42, '/b', 1, '2026-07-01', 200, 7, 5);
"""


@pytest.fixture
def place(place: Place) -> Iterator[Place]:
    yield place
    assert place.keys() == [], "something was written"


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ROW)
    return database


@pytest.mark.parametrize("table", ["analytics_pageview", "projects_project", "builds_version"])
def test_a_missing_table(table: str, place: Place, filled: str) -> None:
    execute(filled, f"ALTER TABLE {table} RENAME TO something_else")
    with pytest.raises(SourceSchemaError, match=saying("no table", table)) as caught:
        place.exporter(filled).export_daily_pageviews(DAY)
    assert caught.value.day == DAY


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(
            ("analytics_pageview", name)
            for name in ("id", "path", "full_path", "view_count", "date", "status", "version_id")
        ),
        ("analytics_pageview", "project_id"),
        ("projects_project", "slug"),
        ("builds_version", "slug"),
    ],
)
def test_a_missing_column(table: str, column: str, place: Place, filled: str) -> None:
    execute(filled, f"ALTER TABLE {table} RENAME COLUMN {column} TO something_else")
    with pytest.raises(SourceSchemaError, match=saying(table, "no column", column)) as caught:
        place.exporter(filled).export_daily_pageviews(DAY)
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("view_count", "double precision"),
        ("view_count", "numeric"),
        ("id", "text"),
        ("path", "bytea"),
        ("status", "text"),
    ],
)
def test_a_column_of_a_wrong_type(column: str, kind: str, place: Place, filled: str) -> None:
    using = "convert_to(path, 'utf8')" if kind == "bytea" else f"{column}::{kind}"
    execute(
        filled,
        f"CREATE TABLE other AS SELECT * FROM analytics_pageview",  # noqa: F541
        f"ALTER TABLE other ALTER COLUMN {column} TYPE {kind} USING {using}",
    )
    with pytest.raises(SourceSchemaError, match=saying("other", column, kind)) as caught:
        place.exporter(PostgresSource(filled, table="other")).export_daily_pageviews(DAY)
    assert caught.value.column == column


REQUIRED = ["id", "project_id", "path", "view_count", "status"]


@pytest.mark.parametrize("column", REQUIRED)
def test_null_in_a_required_column_of_the_database(column: str, place: Place, filled: str) -> None:
    execute(
        filled,
        "CREATE TABLE loose AS SELECT * FROM analytics_pageview ORDER BY id",
        f"UPDATE loose SET {column} = NULL WHERE id = 42",
    )
    with pytest.raises(BadRow, match=saying(column, "NULL")) as caught:
        place.exporter(PostgresSource(filled, table="loose")).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (None if column == "id" else 42, column)


@pytest.mark.parametrize("column", [*REQUIRED, "project_slug", "date"])
def test_null_in_a_required_column_of_a_stream(column: str, place: Place) -> None:
    values = views()[column].to_pylist()
    source = views(**{column: pa.array([*values[:2], None], views()[column].type)})
    with pytest.raises(BadRow, match=saying(column, "NULL")) as caught:
        place.exporter(source).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (None if column == "id" else 3, column)


@pytest.mark.parametrize(
    ("column", "value"), [("view_count", 2**31), ("view_count", -1), ("status", 32_768), ("status", -1)]
)
def test_a_number_out_of_range_in_the_database(column: str, value: int, place: Place, filled: str) -> None:
    execute(
        filled,
        "CREATE TABLE wide AS SELECT * FROM analytics_pageview",
        f"ALTER TABLE wide ALTER COLUMN {column} TYPE bigint",
        f"UPDATE wide SET {column} = {value} WHERE id = 42",
    )
    with pytest.raises(BadRow, match=saying("42", column, str(value))) as caught:
        place.exporter(PostgresSource(filled, table="wide")).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column, caught.value.day) == (42, column, DAY)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("view_count", 2**31),
        ("view_count", -1),
        ("status", 32_768),
        ("status", -1),
        ("project_id", 2**31),
        ("version_id", -(2**31) - 1),
    ],
)
def test_a_number_out_of_range_in_a_stream(column: str, value: int, place: Place) -> None:
    with pytest.raises(BadRow, match=saying("id 2", column, str(value))) as caught:
        place.exporter(views(**{column: pa.array([1, value, 1], pa.int64())})).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (2, column)


def test_an_id_beyond_64_bits_and_an_empty_slug(place: Place) -> None:
    with pytest.raises(BadRow, match=saying("id", str(2**63))):
        place.exporter(views(id=pa.array([1, 2**63, 3], pa.uint64()))).export_daily_pageviews(DAY)
    with pytest.raises(BadRow, match=saying("project_slug", "empty")) as caught:
        place.exporter(views(project_slug=["docs", "", "docs"])).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (2, "project_slug")


def test_a_bad_row_at_the_very_end_of_a_large_day(place: Place) -> None:
    sample = SampleData(rows_per_day=100_000, projects=20, weekly_rhythm=False, growth=0)

    def source(day: datetime.date) -> pa.Table:
        table = sample.day(day).read_all()
        bad = table.slice(table.num_rows - 1)
        bad = bad.set_column(7, "view_count", pa.array([-1], pa.int32()))
        return pa.concat_tables([table.slice(0, table.num_rows - 1), bad.cast(table.schema)])

    with pytest.raises(BadRow, match=saying("view_count", "-1")):
        place.exporter(source, sort_memory=1 << 20).export_daily_pageviews(DAY, per_project=True)

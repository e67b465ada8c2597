"""Bad input to a question: hostile names, impossible spans, SQL that is no read, stored objects that are not ours."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsQuerier
from parquet_analytics.exceptions import CorruptFile, InvalidInput, QueryError

from tests.archives import DAY, KEY, Place, saying, views

HOSTILE = ["", "../x", "a/b", "it's", 'a"b', "100%", "a\0b", "a\nb", "x" * 5_000, " a", "a;b", "*"]
SPAN: dict[str, Any] = {"since": DAY, "until": DAY}


@pytest.fixture
def querier(place: Place) -> Iterator[ParquetAnalyticsQuerier]:
    """Of a store that holds one day, and has to hold just that afterwards."""
    place.exporter(views()).export_daily_pageviews(DAY)
    before = place.read(KEY)
    yield place.querier()
    assert place.keys() == [KEY]
    assert place.read(KEY) == before


def test_hostile_slugs(querier: ParquetAnalyticsQuerier) -> None:
    for slug in HOSTILE:
        for ask in (
            lambda slug: querier.query_pageviews(slug, **SPAN),
            lambda slug: querier.iter_pageviews(slug, **SPAN),
            lambda slug: querier.top_pages(slug, **SPAN),
            lambda slug: querier.daily_totals(slug, **SPAN),
            lambda slug: querier.get_top_pages_from_parquet(slug),
            lambda slug: querier.get_daily_totals_from_parquet(slug),
            lambda slug: querier.explain(slug, **SPAN),
            lambda slug: querier.sql("SELECT 1 FROM pageviews", projects=["docs", slug], **SPAN),
        ):
            with pytest.raises(InvalidInput, match="slug") as caught:
                ask(slug)
            assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"since": "2026-07-02", "until": "2026-07-01"}, ["2026-07-02", "2026-07-01", "after"]),
        ({"since": "2999-01-01"}, ["2999-01-01", "after"]),
        ({"since": "0001-01-01", "until": "9999-12-31"}, ["0001-01-01", "days"]),
        ({"since": "2026-02-30"}, ["2026-02-30"]),
        ({"until": "tomorrow"}, ["tomorrow"]),
        ({"since": datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC)}, ["since", "datetime.date"]),
        ({"limit": -1}, ["limit", "-1"]),
        ({"offset": -1}, ["offset", "-1"]),
        ({"limit": 2**63}, ["limit", str(2**63)]),
        ({"limit": 1.5}, ["limit", "1.5"]),
        ({"limit": True}, ["limit", "True"]),
        ({"limit": "10"}, ["limit", "'10'"]),
        ({"status": -1}, ["status", "-1"]),
        ({"status": 32_768}, ["status", "32768"]),
        ({"status": "200"}, ["status", "'200'"]),
        ({"project_id": 2**31}, ["project_id", str(2**31)]),
        ({"project_id": "7"}, ["project_id", "'7'"]),
    ],
)
def test_impossible_arguments(
    arguments: dict[str, Any], fragments: list[str], querier: ParquetAnalyticsQuerier
) -> None:
    with pytest.raises(InvalidInput, match=saying(*fragments)):
        querier.top_pages("docs", **arguments)


def test_projects_and_columns_that_are_not_what_they_should_be(querier: ParquetAnalyticsQuerier) -> None:
    for slug in (7, b"docs", ["docs"]):
        with pytest.raises(InvalidInput, match="slug"):
            querier.top_pages(slug, **SPAN)
    with pytest.raises(InvalidInput, match=saying("no column", "password")):
        querier.query_pageviews("docs", columns=["path", "password"], **SPAN)
    with pytest.raises(InvalidInput, match="list"):
        querier.query_pageviews("docs", columns="path", **SPAN)
    with pytest.raises(InvalidInput, match="list"):
        querier.sql("SELECT 1 FROM pageviews", projects="docs", **SPAN)


MORE_THAN_A_READ = [
    "COPY pageviews TO '{file}'",
    "COPY (SELECT * FROM pageviews) TO '{file}' (FORMAT csv)",
    "CREATE TABLE t AS SELECT * FROM pageviews",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "INSERT INTO pageviews VALUES (1)",
    "UPDATE pageviews SET path = ''",
    "DELETE FROM pageviews",
    "DROP VIEW pageviews",
    "ATTACH '{file}' AS other",
    "EXPORT DATABASE '{file}'",
    "INSTALL httpfs",
    "LOAD '{file}'",
    "PRAGMA database_list",
    "SET memory_limit = '1TB'",
    "RESET threads",
    "CALL pragma_version()",
    "VACUUM",
    "CHECKPOINT",
    "BEGIN",
    "SELECT 1 FROM pageviews; SELECT 2 FROM pageviews",
    "SELECT 1 FROM pageviews; COPY (SELECT 1) TO '{file}'",
    "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "",
    "   ;  ",
    "SELEC path FROM pageviews",
    "SELECT no_such_column FROM pageviews",
    "SELECT * FROM no_such_table",
]

READS_FILES = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_csv_auto('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT path FROM pageviews WHERE path IN (SELECT content FROM read_text('{file}'))",
    "SELECT getenv('HOME') FROM pageviews",
    "SELECT * FROM query('SELECT * FROM read_text(''{file}'')')",
]


@pytest.mark.parametrize("query", MORE_THAN_A_READ)
def test_sql_that_is_not_one_read(query: str, querier: ParquetAnalyticsQuerier, tmp_path: Path) -> None:
    with pytest.raises(QueryError) as caught:
        querier.sql(query.format(file=tmp_path / "out"), **SPAN)
    assert not caught.value.retryable
    assert list(tmp_path.iterdir()) == []
    assert querier.sql("SELECT count(*) AS n FROM pageviews", **SPAN).to_pylist() == [{"n": 3}]


@pytest.mark.parametrize("query", READS_FILES)
def test_sql_that_reads_files_or_the_environment(query: str, querier: ParquetAnalyticsQuerier, tmp_path: Path) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("canary\n1\n")
    with pytest.raises(QueryError) as caught:
        querier.sql(query.format(file=file, folder=tmp_path), **SPAN)
    assert "canary" not in str(caught.value)


def test_duckdb_knows_no_secret_and_no_file_of_ours(querier: ParquetAnalyticsQuerier) -> None:
    assert querier.sql("SELECT * FROM duckdb_secrets()", **SPAN).num_rows == 0
    paths = querier.sql("SELECT path FROM duckdb_databases() WHERE path IS NOT NULL", **SPAN)
    assert paths.num_rows == 0


def test_wrong_values_for_a_query(querier: ParquetAnalyticsQuerier) -> None:
    with pytest.raises(QueryError, match=r"(?i)param|value"):
        querier.sql("SELECT ? FROM pageviews", [], **SPAN)
    with pytest.raises(InvalidInput, match="64 bits"):
        querier.sql("SELECT ? FROM pageviews", [2**64], **SPAN)
    with pytest.raises(InvalidInput, match="object"):
        querier.sql("SELECT ? FROM pageviews", [object()], **SPAN)
    with pytest.raises(InvalidInput, match="query"):
        querier.sql(b"SELECT 1", **SPAN)


def test_values_are_never_sql(querier: ParquetAnalyticsQuerier) -> None:
    hostile = "' OR 1=1; DROP VIEW pageviews --"
    table = querier.sql("SELECT $1 AS said FROM pageviews WHERE path = '/index.html' OR path = $1", [hostile], **SPAN)
    assert table.to_pylist() == [{"said": hostile}]


def _file(table: pa.Table, metadata: dict[str, str] | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


@pytest.fixture
def ours(place: Place) -> bytes:
    """A file as it should be."""
    elsewhere = Place(place.s3, place.bucket, f"{place.location}-ours")
    elsewhere.exporter(views()).export_daily_pageviews(DAY)
    return elsewhere.read(KEY)


NOT_OURS = {
    "empty": lambda ours: b"",
    "a few bytes": lambda ours: b"PAR1",
    "text": lambda ours: b"<html>not found</html>" * 1000,
    "cut at its end": lambda ours: ours[:-100],
    "cut at its beginning": lambda ours: ours[200:],
    "without its middle": lambda ours: ours[:100] + ours[-1500:],
    "damaged inside": lambda ours: ours[:4] + b"\xff" * 600 + ours[604:],
    "another schema": lambda ours: _file(pa.table({"a": [1]})),
    "a column of another type": lambda ours: _file(views(view_count=pa.array([1.0, 2.0, 3.0]))),
    "a column too few": lambda ours: _file(views(path=None)),
    "a newer format": lambda ours: _file(pq.read_table(io.BytesIO(ours)), {"parquet_analytics.format": "2"}),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_stored_object_that_is_no_file_of_ours(name: str, place: Place, ours: bytes) -> None:
    place.write(KEY, NOT_OURS[name](ours))
    querier = place.querier()
    for ask in (
        lambda: querier.top_pages("docs", status=None, **SPAN),
        lambda: querier.daily_totals("docs", status=None, fill=True, **SPAN),
        lambda: querier.query_pageviews("docs", **SPAN),
        lambda: querier.iter_pageviews("docs", **SPAN).read_all(),
        lambda: querier.sql("SELECT sum(view_count), max(path) FROM pageviews", **SPAN),
    ):
        with pytest.raises(CorruptFile, match=saying(KEY)) as caught:
            ask()
        assert caught.value.key == KEY
    if name == "a newer format":
        assert "2" in str(caught.value).replace(KEY, "")
        assert "format" in str(caught.value)


def test_a_stored_object_that_was_put_right_is_read_again(place: Place, ours: bytes) -> None:
    place.write(KEY, b"PAR1 garbage PAR1")
    querier = place.querier()
    with pytest.raises(CorruptFile):
        querier.top_pages("docs", **SPAN)
    place.write(KEY, ours)
    assert querier.top_pages("docs", **SPAN)["count"].to_pylist() == [10, 4]

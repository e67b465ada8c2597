"""Places in the S3 server that a test has to itself, and days of page views that are exported once a session."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData

from tests.services import S3, Postgres, S3Identity

DAY = datetime.date(2026, 7, 1)
KEY = "analytics/pageviews/2026/07/01/pageviews_2026-07-01.parquet"
MANIFEST = "_derived/manifest.json"
"""How the key of the manifest ends."""

# The ten columns of a day's file as PostgreSQL knows them, in the order of the file.
SELECT = """
    SELECT v.id, v.project_id, p.slug AS project_slug, v.version_id, b.slug AS version_slug, v.path, v.full_path,
           v.view_count, v.date, v.status
    FROM analytics_pageview v
    JOIN projects_project p ON p.id = v.project_id
    LEFT JOIN builds_version b ON b.id = v.version_id
"""
ORDER = 'p.slug COLLATE "C", v.status, v.path COLLATE "C", b.slug COLLATE "C" NULLS FIRST, v.id'

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("project_id", pa.int32(), nullable=False),
        pa.field("project_slug", pa.string(), nullable=False),
        pa.field("version_id", pa.int32()),
        pa.field("version_slug", pa.string()),
        pa.field("path", pa.string(), nullable=False),
        pa.field("full_path", pa.string()),
        pa.field("view_count", pa.int32(), nullable=False),
        pa.field("date", pa.date32(), nullable=False),
        pa.field("status", pa.int16(), nullable=False),
    ]
)


@dataclass
class Place:
    """A location in a bucket, empty when it is made."""

    s3: S3
    bucket: str
    location: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.location}".rstrip("/")

    def options(self, identity: S3Identity | None = None, **more: str) -> dict[str, str]:
        options = {"endpoint_url": self.s3.endpoint_url, "region": self.s3.region, "allow_http": "true"}
        return options | (identity or self.s3.admin).as_json() | more

    def exporter(self, source: Any, *, identity: S3Identity | None = None, **settings: Any) -> ParquetAnalyticsExporter:
        return ParquetAnalyticsExporter(self.url, source=source, storage_options=self.options(identity), **settings)

    def querier(self, *, identity: S3Identity | None = None, **settings: Any) -> ParquetAnalyticsQuerier:
        return ParquetAnalyticsQuerier(self.url, storage_options=self.options(identity), **settings)

    def keys(self) -> list[str]:
        """All keys below the location, as the server lists them, but the manifest, which whoever writes a day keeps."""
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._full(""))
        keys = [found["Key"].removeprefix(self._full("")) for page in pages for found in page.get("Contents", ())]
        return [key for key in keys if not key.endswith(MANIFEST)]

    def read(self, key: str) -> bytes:
        return self.s3.client().get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()

    def write(self, key: str, body: bytes) -> None:
        self.s3.client().put_object(Bucket=self.bucket, Key=self._full(key), Body=body)

    def _full(self, key: str) -> str:
        return f"{self.location}/{key}" if self.location else key


@pytest.fixture
def place(s3: S3) -> Place:
    return Place(s3, s3.bucket, f"test-{uuid.uuid4()}")


def rows_of(url: str, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql, parameters).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def views(**columns: Any) -> pa.Table:
    """Three rows of DAY; a column given as a list or an array replaces that column, and None leaves it out."""
    count = 3
    table = {
        "id": pa.array([1, 2, 3], pa.int64()),
        "project_id": pa.array([7] * count, pa.int32()),
        "project_slug": pa.array(["docs"] * count),
        "version_id": pa.array([5, 5, None], pa.int32()),
        "version_slug": pa.array(["latest", "latest", None]),
        "path": pa.array(["/index.html", "/install.html", "/lost.html"]),
        "full_path": pa.array(["/en/latest/index.html", "/en/latest/install.html", None]),
        "view_count": pa.array([10, 4, 1], pa.int32()),
        "date": pa.array([DAY] * count),
        "status": pa.array([200, 200, 404], pa.int16()),
    }
    return pa.table({name: column for name, column in (table | columns).items() if column is not None})


def saying(*parts: str) -> str:
    """A pattern for messages that hold all the parts, in any order."""
    return "(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts)


@dataclass
class Exported:
    """Days that are in a database, and in the store."""

    sample: SampleData
    database: str
    place: Place
    days: list[datetime.date]
    results: list[dict[str, Any]]


@pytest.fixture(scope="session")
def big_day(postgres: Postgres, s3: S3) -> Exported:
    """200,000 rows of one day."""
    sample = SampleData(rows_per_day=200_000, projects=300, weekly_rhythm=False, growth=0)
    database = postgres.create_database()
    assert sample.load_postgres(database, DAY, DAY) == 200_000
    place = Place(s3, s3.bucket, f"big-day-{uuid.uuid4()}")
    return Exported(sample, database, place, [DAY], [place.exporter(database).export_daily_pageviews(DAY)])


# Slugs of the projects that `week` adds to the sample's.
TIES = "ties"
REUSED = "reused"


@pytest.fixture(scope="session")
def week(postgres: Postgres, s3: S3) -> Exported:
    """Six of the last seven days; the fourth is neither in the database nor in the store.

    The project `ties` has pages whose views tie in sum. The slug `reused` belongs to one project in the
    first days and to another in the last two.
    """
    sample = SampleData(rows_per_day=6_000, projects=64, weekly_rhythm=False, growth=0)
    database = postgres.create_database()
    today = datetime.datetime.now(datetime.UTC).date()
    days = [today - datetime.timedelta(days=back) for back in (7, 6, 5, 3, 2, 1)]
    for day in days:
        sample.load_postgres(database, day, day)
    with psycopg.connect(database, autocommit=True) as connection:
        add = _adder(connection)
        add(900_001, TIES, [900_001, 900_002], days, ["/b", "/a", "/A", "/_", "/a/", "/é", "/\U0001f600", "/\uffee"])
    place = Place(s3, s3.bucket, f"week-{uuid.uuid4()}")
    exporter = place.exporter(database)
    results = []
    for number, day in enumerate(days):
        with psycopg.connect(database, autocommit=True) as connection:
            add = _adder(connection)
            if number == 0:
                add(900_002, REUSED, [], days[:4], ["/old-owner"])
            if number == 4:
                connection.execute("UPDATE projects_project SET slug = 'given-up' WHERE id = 900002")
                add(900_003, REUSED, [], days[4:], ["/new-owner"])
        results.append(exporter.export_daily_pageviews(day))
    return Exported(sample, database, place, days, results)


def _adder(connection: psycopg.Connection) -> Callable[[int, str, list[int], list[datetime.date], list[str]], None]:
    def add(project: int, slug: str, versions: list[int], days: list[datetime.date], paths: list[str]) -> None:
        connection.execute("INSERT INTO projects_project (id, name, slug) VALUES (%s, %s, %s)", (project, slug, slug))
        for version in versions:
            connection.execute(
                "INSERT INTO builds_version (id, project_id, slug) VALUES (%s, %s, %s)",
                (version, project, f"v{version}"),
            )
        for day in days:
            for version in versions or [None]:
                for path in paths:
                    connection.execute(
                        "INSERT INTO analytics_pageview "
                        "(path, full_path, view_count, date, status, project_id, version_id) "
                        "VALUES (%s, %s, 3, %s, 200, %s, %s)",
                        (path, path, day, project, version),
                    )

    return add

"""Bad input to an export: an error that names what is wrong, and a store that is still empty."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsExporter
from parquet_analytics.exceptions import (
    ConfigurationError,
    DatabaseError,
    InvalidInput,
    ParquetAnalyticsError,
    PermissionDenied,
    StoreError,
)

from tests.archives import DAY, MANIFEST, Place, saying, views
from tests.services import PgBouncer, S3Identity

HOSTILE = ["", "../x", "a/b", "it's", 'a"b', "100%", "a\0b", "a\nb", "x" * 5_000]


@pytest.fixture
def place(place: Place) -> Iterator[Place]:
    yield place
    assert place.keys() == [], "something was written"


@pytest.mark.parametrize(
    "day",
    [
        "2026-02-30",
        "2026-13-01",
        "2026-7-1",
        "yesterday",
        "",
        "2026-07-01T00:00:00",
        "20260701",
        "0000-01-01",
        "\u0662\u0660\u0662\u0666-07-01",
    ],
)
def test_a_malformed_or_impossible_day(day: str, place: Place) -> None:
    with pytest.raises(InvalidInput, match=saying(day)):
        place.exporter(views()).export_daily_pageviews(day)
    with pytest.raises(InvalidInput, match=saying(day)):
        place.exporter(views()).get_parquet_path(day)


@pytest.mark.parametrize(
    "day", [datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC), 20260701, b"2026-07-01", ("2026",)]
)
def test_something_else_than_a_day(day: Any, place: Place) -> None:
    with pytest.raises(InvalidInput, match=saying("target_date", repr(day)[:40], "datetime.date")):
        place.exporter(views()).export_daily_pageviews(day)


@pytest.mark.parametrize("slug", HOSTILE)
def test_a_hostile_slug_in_a_key(slug: str, place: Place) -> None:
    exporter = place.exporter(views())
    for who in ({"project": slug}, {"organization": slug}):
        with pytest.raises(InvalidInput, match="slug") as caught:
            exporter.get_parquet_path(DAY, **who)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("prefix", ["../up", "a/../b", "a//b", "a\nb"])
def test_a_prefix_that_leaves_its_folder(prefix: str, place: Place) -> None:
    with pytest.raises(InvalidInput, match="prefix"):
        place.exporter(views(), prefix=prefix)


@pytest.mark.parametrize("url", ["ftp://host/x", "s4://bucket", "bucket/prefix", "", "http://host/bucket"])
def test_an_unknown_scheme(url: str) -> None:
    with pytest.raises(ConfigurationError, match=saying("s3://")):
        ParquetAnalyticsExporter(url, source=views())


def test_an_unknown_option_and_an_endpoint_without_encryption(place: Place) -> None:
    with pytest.raises(ConfigurationError, match=saying("secret_key", "secret_access_key")):
        ParquetAnalyticsExporter(place.url, source=views(), storage_options={"secret_key": "x"})
    options = place.options(allow_http="false")
    with pytest.raises(ConfigurationError, match=saying("not encrypted", "allow_http")):
        ParquetAnalyticsExporter(place.url, source=views(), storage_options=options)


def test_a_missing_bucket(place: Place) -> None:
    nowhere = Place(place.s3, "no-such-bucket", "x")
    with pytest.raises(ConfigurationError, match=saying("no-such-bucket", "create it")):
        nowhere.exporter(views()).export_daily_pageviews(DAY)
    with pytest.raises(ConfigurationError, match=saying("no-such-bucket")):
        nowhere.querier().top_pages("docs")
    assert "no-such-bucket" not in [bucket["Name"] for bucket in place.s3.client().list_buckets()["Buckets"]]


def test_a_wrong_access_key_and_a_wrong_secret(place: Place) -> None:
    admin = place.s3.admin
    for identity, word in (
        (S3Identity("unknown-id", admin.secret_access_key), "access_key_id"),
        (S3Identity(admin.access_key_id, "wrong"), "secret_access_key"),
    ):
        with pytest.raises(ConfigurationError, match=saying(word)) as caught:
            place.exporter(views(), identity=identity).export_daily_pageviews(DAY)
        assert admin.secret_access_key not in str(caught.value)
        with pytest.raises(ConfigurationError, match=saying(word)):
            place.querier(identity=identity).top_pages("docs")


def test_an_identity_that_may_only_read(place: Place) -> None:
    with pytest.raises(PermissionDenied, match=saying("s3:PutObject", place.bucket)) as caught:
        place.exporter(views(), identity=place.s3.readonly).export_daily_pageviews(DAY)
    assert (caught.value.day, caught.value.retryable) == (DAY, False)
    # What is written first is that the day is about to change.
    assert caught.value.key == f"analytics/pageviews/{MANIFEST}"


def test_an_identity_without_rights_sees_an_error_and_no_absent_day(place: Place) -> None:
    querier = place.querier(identity=place.s3.denied)
    for ask in (
        lambda: querier.top_pages("docs", DAY, DAY),
        lambda: querier.daily_totals("docs", DAY, DAY, fill=True),
        lambda: querier.query_pageviews("docs", DAY, DAY),
        lambda: querier.sql("SELECT 1 FROM pageviews", since=DAY, until=DAY),
        lambda: querier.explain("docs", DAY, DAY),
    ):
        with pytest.raises(PermissionDenied, match=saying("s3:GetObject", "2026-07-01")):
            ask()
    assert place.querier(identity=place.s3.readonly).top_pages("docs", DAY, DAY).num_rows == 0


def test_a_store_that_nobody_answers_for(place: Place) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        options = place.options(max_retries="0", connect_timeout="1")
        options["endpoint_url"] = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(StoreError, match=saying("could not be reached", options["endpoint_url"])) as caught:
            ParquetAnalyticsExporter(place.url, source=views(), storage_options=options).export_daily_pageviews(DAY)
    assert caught.value.retryable


def test_a_database_that_nobody_answers_for(place: Place) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(DatabaseError, match=saying("127.0.0.1", str(port), "reach")) as caught:
            place.exporter(f"postgresql://u:hidden@127.0.0.1:{port}/d").export_daily_pageviews(DAY)
    assert caught.value.retryable
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("part", ["password", "dbname", "user"])
def test_a_database_that_refuses(part: str, place: Place, database: str) -> None:
    parameters = psycopg.conninfo.conninfo_to_dict(database) | {part: "wrong"}
    with pytest.raises(DatabaseError) as caught:
        place.exporter(psycopg.conninfo.make_conninfo(**parameters)).export_daily_pageviews(DAY)
    assert caught.value.sqlstate == ("3D000" if part == "dbname" else "28P01")
    assert not caught.value.retryable
    assert ("wrong" in str(caught.value)) == (part != "password")


@pytest.mark.parametrize(
    "source", ["postgresql://host:notaport/x", "host=h frobnicate=1", "mysql://h/x", "", "no equals sign"]
)
def test_something_else_than_a_connection_string(source: str, place: Place) -> None:
    with pytest.raises(ParquetAnalyticsError) as caught:
        place.exporter(source).export_daily_pageviews(DAY)
    assert isinstance(caught.value, (ConfigurationError, InvalidInput)), repr(caught.value)


def test_a_wrong_password_at_a_pooler_is_not_worth_another_try(
    place: Place, database: str, pgbouncer: PgBouncer
) -> None:
    url = pgbouncer.database_url(database.rsplit("/", 1)[1])
    wrong = url.replace(urlsplit(url).password or "", "canary-7f3a")
    with pytest.raises(DatabaseError, match="check user, password") as caught:
        place.exporter(wrong).export_daily_pageviews(DAY)
    assert not caught.value.retryable
    assert "canary-7f3a" not in str(caught.value)
    assert place.keys() == []


def test_a_private_key_in_the_place_of_its_files_name_is_not_repeated(place: Place) -> None:
    key = "-----BEGIN PRIVATE KEY-----canary"
    with pytest.raises(ConfigurationError, match="not its content") as caught:
        place.exporter(f"host=db sslkey='{key}' sslcert=x").export_daily_pageviews(DAY)
    assert "canary" not in str(caught.value)

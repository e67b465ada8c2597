"""A store, or a proxy before it, that ignores conditions on reads and answers with whatever object is there: what is
read is held to its ETag all the same, and rows are not deleted against such a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData
from parquet_analytics.exceptions import Conflict, DayNotStored, DeletionRefused

from tests import sites
from tests.archives import DAY, KEY, Place, execute, rows_of, saying, views
from tests.test_export import ADD
from tests.torture.proxies import Request, Response, S3Proxy, forward

CONDITIONS = ("if-match", "if-none-match")


class Careless:
    """A proxy that leaves these headers out of reads. The signature covers them, so it asks the store by itself."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.proxy = S3Proxy(place.s3.endpoint_url)
        self.proxy.rewrite = self._pass
        self.stripped: tuple[str, ...] = ()
        self.reads: list[str] = []
        self.before_read: Any = None

    def _pass(self, address: str, request: Request) -> Response:
        if request.method == "GET":
            self.reads.append(request.path)
            if self.before_read is not None:
                self.before_read(request)
        given = {name.lower(): value for name, value in request.headers}
        if request.method != "GET" or not any(name in given for name in self.stripped):
            return forward(address, request)
        key = request.path.split("?")[0].removeprefix(f"/{self.place.bucket}/")
        wanted = {"Range": given["range"]} if "range" in given else {}
        try:
            answer = self.place.s3.client().get_object(Bucket=self.place.bucket, Key=key, **wanted)
        except ClientError as error:
            return Response.error(error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"])
        about = answer["ResponseMetadata"]
        kept = {"etag", "last-modified", "content-range", "content-type"}
        headers = [(name, value) for name, value in about["HTTPHeaders"].items() if name in kept or "amz-meta" in name]
        return Response(about["HTTPStatusCode"], headers, answer["Body"].read())

    def exporter(self, source: Any) -> ParquetAnalyticsExporter:
        options = self.place.options(endpoint_url=self.proxy.url)
        return ParquetAnalyticsExporter(self.place.url, source=source, storage_options=options)

    def querier(self, **settings: Any) -> ParquetAnalyticsQuerier:
        options = self.place.options(endpoint_url=self.proxy.url)
        return ParquetAnalyticsQuerier(self.place.url, storage_options=options, **settings)


@pytest.fixture
def careless(place: Place) -> Iterator[Careless]:
    proxy = Careless(place)
    yield proxy
    proxy.proxy.close()


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


@pytest.mark.parametrize("size", ["as long", "shorter"])
def test_a_deletion_ends_when_another_file_is_answered_for_the_verified_one(
    careless: Careless, database: str, size: str
) -> None:
    SampleData(rows_per_day=3_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(database, DAY, DAY)
    exporter = careless.exporter(database)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DayNotStored):
        exporter.delete_exported_pageviews("2026-06-01")  # the store is found to heed conditions
    whole = careless.place.read(KEY)
    other = whole[:-1] + b"2" if size == "as long" else b"x"
    seen: list[int] = []

    def replace(request: Request) -> None:
        # The first reads verify the file and what is said in it of the deletion; then somebody else writes it.
        if request.path.split("?")[0].endswith(".parquet"):
            seen.append(1)
            if len(seen) == 3:
                careless.place.write(KEY, other)

    careless.before_read, careless.stripped = replace, CONDITIONS
    with pytest.raises(Conflict, match="during the deletion"):
        exporter.delete_exported_pageviews(DAY, batch_rows=40, pause=0.3)
    [(kept,)] = rows_of(database, "SELECT count(*) FROM analytics_pageview")
    assert kept == 3_000


def test_a_question_is_never_answered_from_two_versions(careless: Careless, filled: str) -> None:
    exporter = careless.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    careless.stripped = CONDITIONS
    querier = careless.querier(max_age=0)
    ask = lambda: querier.query_pageviews("docs", DAY, DAY)["view_count"].to_pylist()  # noqa: E731
    assert sorted(ask()) == [1, 4, 10]
    # Nothing has changed, and the store sends everything again.
    assert sorted(ask()) == [1, 4, 10]
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1")
    careless.place.exporter(filled).export_daily_pageviews(DAY)
    assert sorted(ask()) == [1, 4, 11]


@pytest.mark.parametrize("stripped", CONDITIONS)
def test_a_store_that_ignores_a_condition_on_reads_is_named_and_not_trusted_with_a_deletion(
    careless: Careless, filled: str, stripped: str
) -> None:
    exporter = careless.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    assert exporter.probe()
    assert exporter.ignored_conditions() == []
    careless.stripped = (stripped,)
    named = "If-Match on reads" if stripped == "if-match" else "If-None-Match on reads"
    assert not exporter.probe()
    assert exporter.ignored_conditions() == [named]
    with pytest.raises(DeletionRefused, match=saying("2026-07-01", named)):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview") == [(4,)]


def test_the_doctor_names_the_condition(careless: Careless, site_database: str) -> None:
    from parquet_analytics.django.operations.doctor import examine

    careless.stripped = ("if-match",)
    with sites.archive(sites.s3_entry(careless.place, careless.proxy.url)):
        [finding] = [found for found in examine() if found.check == "conditional write"]
    assert finding.state == "failed"
    assert "If-Match on reads" in finding.message
    assert "deletion is refused" in finding.hint


def test_folders_and_memory_go_by_the_same_rule(tmp_path: Any) -> None:
    for url in (tmp_path.as_uri(), "memory://conditional-reads"):
        exporter = ParquetAnalyticsExporter(url, source=lambda day: views())
        exporter.export_daily_pageviews(DAY)
        assert exporter.ignored_conditions() == []

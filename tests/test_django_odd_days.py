"""Rows that are of no day, and days without rows: neither stops the other days, and each is told of."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.django import tasks
from parquet_analytics.django.models import Run
from parquet_analytics.django.operations.status import status
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import exporter, first_day, odd_rows, table_days
from parquet_analytics.django.runs.ledger import latest_verified
from parquet_analytics.django.source import ModelSource
from parquet_analytics.django.table.mapping import PageViewMapping, configured
from parquet_analytics.exceptions import DayHasNoRows

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY, export

POSTGRESQL = ["NULL", "'-infinity'", "'infinity'", "'20000-01-01'", "'1969-12-31'", "'0044-03-15 BC'", "'2100-01-01'"]
SQLITE = [
    "NULL",
    "''",
    "'-infinity'",
    "'yesterday'",
    "'1969-12-31'",
    "'9999-12-31'",
    "'{ago} 00:00:00'",
    "'{year}-13-45'",
]
SQLITE += ["20260701", "'0000-00-00'"]


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


@pytest.fixture
def site_database(either_database: str) -> str:
    return either_database


@pytest.fixture(autouse=True)
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "archive"
    folder.mkdir()
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True):
        yield folder


def odd_row(date: str) -> int:
    """A row whose date is this SQL, in a table that takes it."""
    sites.few(DAY, rows=1, project="odd")
    row = PageView.objects.get(project__slug="odd")
    with connections["default"].cursor() as cursor:
        if connections["default"].vendor == "postgresql":
            cursor.execute("ALTER TABLE analytics_pageview ALTER date DROP NOT NULL")
        else:
            cursor.execute("PRAGMA writable_schema = 1")
            cursor.execute(
                "UPDATE sqlite_master SET sql = replace(sql, '\"date\" date NOT NULL', '\"date\" date NULL')"
                " WHERE name = 'analytics_pageview'"
            )
            cursor.execute("PRAGMA writable_schema = RESET")
        cursor.execute(f"UPDATE analytics_pageview SET date = {date} WHERE id = {row.pk}")
    return int(row.pk)


@pytest.mark.parametrize(
    ("either_database", "date"),
    [*(("postgresql", date) for date in POSTGRESQL), *(("sqlite", date) for date in SQLITE)],
    indirect=["either_database"],
)
def test_an_odd_row_stops_nothing_is_told_of_and_stays(
    site_database: str, date: str, caplog: pytest.LogCaptureFixture
) -> None:
    sites.few(ago(200))
    for number in (3, 2, 1, 0):
        sites.few(ago(number))
    number = odd_row(date.format(ago=ago(5), year=TODAY.year))
    with caplog.at_level(logging.WARNING, "parquet_analytics"):
        tasks.export_pageviews_to_parquet()
    assert f"(id {number})" in caplog.text
    location = exporter().location
    assert set(latest_verified(location, ago(7), ago(1))) == {ago(day) for day in range(1, 8)}
    assert first_day(configured()) == ago(200)
    [odd] = odd_rows(configured())
    assert (odd.rows, odd.ids) == (1, [number])
    # A backfill, the status, the dashboards and the doctor.
    sent: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.export_pageviews_to_parquet, "apply_async", lambda args, **_: sent.append(args[0]))
        tasks.backfill_pageviews_to_parquet("2000-01-01", str(ago(199)))
    assert sent == [str(ago(200)), str(ago(199))]
    assert export("--date", str(ago(200)))[0] == 0
    assert status().since > ago(300)
    found = PageViewsQuerier()
    assert found.daily_totals("docs", ago(3))["count"].to_pylist() == [190] * 4
    assert found.daily_totals("docs", ago(10), TODAY + datetime.timedelta(days=20))["count"].to_pylist() == [190] * 4
    assert found.daily_totals("odd", ago(10))["count"].to_pylist() == []
    _, out, _ = sites.run("parquet_analytics", "doctor", "--json")
    told = {found["check"]: found for found in map(json.loads, out.splitlines())}
    assert told["dates"]["state"] == "warning"
    assert f"(id {number})" in told["dates"]["message"]
    if site_database == "postgresql":
        tasks.delete_exported_pageviews()
        assert PageView.objects.filter(pk=number).count() == 1
        assert PageView.objects.filter(date=ago(200)).count() == 0
    else:
        assert table_days(configured(), ago(90)) == [ago(200)]
        assert PageView.objects.filter(pk=number).count() == 1


def test_a_table_without_odd_rows_is_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    sites.few(ago(1))
    tasks.export_pageviews_to_parquet()
    assert "of no day" not in caplog.text
    _, out, _ = sites.run("parquet_analytics", "doctor")
    assert "dates: every row is of a day" in out


def test_a_day_without_views_is_empty_also_by_way_of_the_orm(
    site_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageViewMapping, "native_tables", lambda _: "it is read so here")
    sites.few(ago(5))
    sites.few(ago(1))
    tasks.export_pageviews_to_parquet()
    states = {run.day: (run.state, run.rows) for run in Run.objects.all()}
    assert states == {
        ago(5): ("verified", 20),
        ago(4): ("verified", 0),
        ago(3): ("verified", 0),
        ago(2): ("verified", 0),
        ago(1): ("verified", 20),
    }
    with pytest.raises(DayHasNoRows, match="nor for any earlier one"):
        exporter().export_daily_pageviews(ago(6))


def test_an_odd_row_makes_no_day_before_the_first_an_empty_one(site_database: str) -> None:
    sites.few(ago(2))
    odd_row("'-infinity'" if site_database == "postgresql" else "'1900-01-01'")
    source = ModelSource(configured())
    assert [source.has_earlier_rows(ago(number)) for number in (3, 2, 1)] == [False, False, True]
    assert ModelSource(PageView.objects.filter(project__slug="odd")).has_earlier_rows(TODAY) is False


def test_any_callable_may_know_of_earlier_rows(tmp_path: Path) -> None:
    from parquet_analytics import ParquetAnalyticsExporter

    from tests.archives import views

    class Source:
        def __init__(self, known: bool | None) -> None:
            self.known = known

        def __call__(self, day: datetime.date) -> Any:
            return views().slice(0, 0)

        def has_earlier_rows(self, day: datetime.date) -> bool | None:
            assert day == DAY
            return self.known

    for known, message in ((False, "nor for any earlier one"), (None, "it is not known whether")):
        with pytest.raises(DayHasNoRows, match=message):
            ParquetAnalyticsExporter(tmp_path.as_uri(), source=Source(known)).export_daily_pageviews(DAY)
    assert ParquetAnalyticsExporter(tmp_path.as_uri(), source=Source(True)).export_daily_pageviews(DAY)["ids"] is None


def test_a_result_has_the_smallest_and_the_greatest_id(tmp_path: Path) -> None:
    from parquet_analytics import ParquetAnalyticsExporter

    from tests.archives import views

    assert ParquetAnalyticsExporter(tmp_path.as_uri(), source=views()).export_daily_pageviews(DAY)["ids"] == (1, 3)

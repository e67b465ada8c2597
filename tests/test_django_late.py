"""Rows that come later than LOOKBACK_DAYS, and rows that go from the table without a deletion: found in the next night,
and told of."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import days, erasure, signals, tasks
from parquet_analytics.django.models import Run
from parquet_analytics.django.operations.status import status
from parquet_analytics.django.runs import delete_day, export_day, exporter
from parquet_analytics.django.runs.late import late_days
from parquet_analytics.exceptions import BadRow

from tests import sites
from tests.clock import TODAY
from tests.sites import export

FIRST_OF_LOOKBACK = TODAY - datetime.timedelta(days=7)


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


@pytest.fixture(autouse=True)
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
        yield tmp_path


@pytest.fixture
def heard() -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    receivers = []
    for name in ("late_rows_found", "rows_vanished"):

        def note(name: str = name, **facts: Any) -> None:
            found.append({"name": name, **facts})

        receivers.append((name, note))
        getattr(signals, name).connect(note, weak=False)
    yield found
    for name, receiver in receivers:
        getattr(signals, name).disconnect(receiver)


def view(path: str, day: datetime.date, count: int = 1) -> PageView:
    project, _ = Project.objects.get_or_create(slug="docs", defaults={"name": "docs"})
    return PageView.objects.create(project=project, path=path, view_count=count, date=day)


def late() -> list[tuple[datetime.date, bool]]:
    return [(due.day, due.late) for due in late_days(FIRST_OF_LOOKBACK, exporter().location)]


def a_site_of_many_nights() -> None:
    """Each day was exported in the night after it, until yesterday's."""
    for number in range(30, 0, -1):
        view("/", ago(number))
        tasks.export_pageviews_to_parquet(str(ago(number)))
        taken = datetime.datetime.combine(ago(number - 1), datetime.time(1), datetime.UTC)
        Run.objects.filter(day=ago(number)).update(snapshot_at=taken, started_at=taken, task_id="x")


def told_by(command: str) -> list[dict[str, Any]]:
    _, out, _ = sites.run("parquet_analytics", command, "--json")
    return [json.loads(line) for line in out.splitlines()]


def test_rows_later_than_the_lookback_are_exported_in_the_next_night(
    heard: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    a_site_of_many_nights()
    assert late() == []
    view("/late", ago(20), 5)
    view("/late", ago(8), 7)
    view("/within", ago(3), 1)
    assert late() == [(ago(20), True), (ago(8), True)]
    [about] = told_by("status")
    assert {day["date"] for day in about["days"] if day["state"] == "late"} == {str(ago(n)) for n in (20, 8, 3)}
    [finding] = [finding for finding in told_by("doctor") if finding["check"] == "late rows"]
    assert finding["state"] == "warning"
    assert f"{ago(20)}, {ago(8)}" in finding["message"]
    tasks.export_pageviews_to_parquet()
    assert [(fact["name"], fact["day"]) for fact in heard] == [
        ("late_rows_found", ago(number)) for number in (20, 8, 3)
    ]
    assert f"{ago(20)}: rows came after the export of this day" in caplog.text
    assert exporter().verify(ago(20))["total_views"] == 6
    assert exporter().verify(ago(8))["total_views"] == 8
    assert late() == []
    assert status().count("late") == 0


def test_they_are_found_by_the_primary_key_alone() -> None:
    a_site_of_many_nights()
    with CaptureQueriesContext(connections["default"]) as asked:
        late_days(FIRST_OF_LOOKBACK, exporter().location)
    [query] = [query["sql"] for query in asked if "analytics_pageview" in query["sql"]]
    known = Run.objects.get(day=ago(2)).greatest_id  # what the night before the last one exported
    assert f'"id" > {known}' in query
    assert "GROUP BY" in query


def test_nights_that_were_missed_hide_no_late_row() -> None:
    a_site_of_many_nights()
    # The last five nights did not happen; the row came in the first of them.
    Run.objects.filter(day__gte=ago(5)).delete()
    row = view("/late", ago(20))
    for number in range(1_000):
        view(f"/{number}", ago(0))
    assert row.pk < PageView.objects.order_by("-id")[900].pk
    assert late() == [(ago(20), True)]
    # What people export by hand is not taken for a night.
    assert export("--date", str(ago(1)))[0] == 0
    assert export("--date", str(ago(2)))[0] == 0
    assert late() == [(ago(20), True)]


def test_rows_that_come_while_as_many_with_as_many_views_go_are_found() -> None:
    view("/stays/", ago(1), 3)
    gone = view("/goes/", ago(1), 8)
    tasks.export_pageviews_to_parquet()
    gone.delete()
    view("/comes/", ago(1), 8)
    tasks.export_pageviews_to_parquet()
    last = Run.objects.filter(kind="export").latest("id")
    assert (last.kind, last.day, last.state, last.added, last.kept) == ("export", ago(1), "verified", 1, 1)
    # And once they are exported, the day is left alone.
    tasks.export_pageviews_to_parquet()
    assert Run.objects.filter(kind="export").latest("id") == last


def test_a_late_row_that_no_file_can_hold_is_not_forgotten(site_database: str) -> None:
    a_site_of_many_nights()
    with connections["default"].cursor() as cursor:
        cursor.execute("ALTER TABLE analytics_pageview ALTER view_count TYPE bigint")
    row = view("/late", ago(20), 1)
    PageView.objects.filter(pk=row.pk).update(view_count=1)
    with connections["default"].cursor() as cursor:
        cursor.execute("UPDATE analytics_pageview SET view_count = 5000000000 WHERE id = %s", [row.pk])
    result = tasks.export_pageviews_to_parquet.apply()
    assert isinstance(result.result, BadRow)
    # Some nights later its id is nothing new any more.
    Run.objects.filter(state="verified").update(greatest_id=row.pk + 1_000)
    assert late() == [(ago(20), False)]
    PageView.objects.filter(pk=row.pk).update(view_count=1)
    tasks.export_pageviews_to_parquet.apply()
    assert exporter().verify(ago(20))["total_records"] == 2
    assert late() == []


def test_late_rows_of_deleted_and_of_empty_days_are_found() -> None:
    view("/", ago(200))
    view("/", ago(100))
    for number in (100, 99):
        export_day(ago(number))
    assert delete_day(ago(100))[1]["deleted"] == 1
    view("/late", ago(100))
    view("/late", ago(99))
    assert late() == [(ago(100), True), (ago(99), True)]


def test_runs_from_before_ids_were_kept_go_by_their_rows() -> None:
    a_site_of_many_nights()
    Run.objects.filter(day__lt=ago(7)).update(greatest_id=None)
    view("/late", ago(20))
    assert late() == [(ago(20), True)]
    tasks.export_pageviews_to_parquet()
    assert late() == []
    Run.objects.update(greatest_id=None)
    view("/later", ago(20))
    assert late() == []  # nothing is known; the deletion finds them


def test_rows_that_vanish_from_the_table_are_told_of_until_somebody_decides(
    folder: Path, heard: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    sites.few(ago(10), rows=3)
    sites.few(ago(3))
    sites.few(ago(2))
    for number in (3, 2):
        export_day(ago(number))
    # As a data migration does that merges two rows into one.
    with connections["default"].cursor() as cursor:
        cursor.execute("UPDATE analytics_pageview SET view_count = 12 WHERE path = '/5' AND date = %s", [ago(3)])
        cursor.execute("DELETE FROM analytics_pageview WHERE path = '/7' AND date = %s", [ago(3)])
    with caplog.at_level(logging.WARNING):
        tasks.export_pageviews_to_parquet()
    [fact] = heard
    assert (fact["name"], fact["day"], fact["rows"], fact["run"].kept) == ("rows_vanished", ago(3), 1, 1)
    assert f"{ago(3)}: the table has lost 1 rows of this day" in caplog.text
    assert exporter().verify(ago(3))["total_views"] == 190 + 7
    # It is said once, and stays to be seen.
    export_day(ago(3))
    assert len(heard) == 1
    [about] = told_by("status")
    assert about["vanished"] == 1
    assert [day["vanished"] for day in about["days"] if day["date"] == str(ago(3))] == [1]
    _, out, _ = sites.run("parquet_analytics", "status")
    assert "1 rows vanished from the table" in next(line for line in out.splitlines() if str(ago(3)) in line)
    assert "--replace --discard-stored" in out
    # Also when the day gets old and its rows are let go.
    with sites.archive(folder, HOT_DAYS=1, ALLOW_LOCAL_DELETE=True):
        delete_day(ago(3))
        export_day(ago(3))
        assert [day.vanished for day in status(ago(3), ago(3)).days] == [1]
    assert len(heard) == 1


def test_the_databases_word_is_taken_for_a_day_on_demand() -> None:
    sites.few(ago(3))
    export_day(ago(3))
    PageView.objects.filter(path="/7").delete()
    export_day(ago(3))
    assert status(ago(3), ago(3)).vanished == 1
    assert export("--date", str(ago(3)), "--replace", "--discard-stored", "--noinput")[0] == 0
    assert status(ago(3), ago(3)).vanished == 0
    assert exporter().verify(ago(3))["total_views"] == 190 - 7


def test_rows_that_were_deleted_or_erased_have_not_vanished(heard: list[dict[str, Any]], folder: Path) -> None:
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True, HOT_DAYS=1):
        sites.few(ago(3))
        export_day(ago(3))
        delete_day(ago(3))
        export_day(ago(3))
    # HOT_DAYS has become more since.
    export_day(ago(3))
    sites.few(ago(2))
    sites.few(ago(2), project="gone")
    export_day(ago(2))
    Project.objects.get(slug="gone").delete()
    erasure.erase_pending()
    export_day(ago(2))
    assert heard == []
    assert status().vanished == 0


def test_rows_that_vanish_after_a_day_was_restored_are_told_of(heard: list[dict[str, Any]], folder: Path) -> None:
    from parquet_analytics.django.restore import restore_day

    with sites.archive(folder, ALLOW_LOCAL_DELETE=True, HOT_DAYS=1):
        sites.few(ago(3))
        export_day(ago(3))
        delete_day(ago(3))
        restore_day(ago(3))
    PageView.objects.filter(path="/7").delete()
    export_day(ago(3))
    assert [(fact["name"], fact["rows"]) for fact in heard] == [("rows_vanished", 1)]


def test_old_rows_may_go_in_other_ways(heard: list[dict[str, Any]]) -> None:
    """The site's own retention lets them go, HOT_DAYS says when."""
    sites.few(ago(100))
    export_day(ago(100))
    PageView.objects.filter(path="/7").delete()
    export_day(ago(100))
    assert heard == []
    assert days.deletable_before() > ago(100)

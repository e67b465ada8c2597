"""What was exported before a day's end is not the whole day, and is not taken for it when the day is over."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parquet_analytics.django import days, tasks
from parquet_analytics.django.models import Run
from parquet_analytics.django.operations.status import status
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import delete_day, due_days, exporter
from parquet_analytics.django.runs.ledger import latest_verified
from parquet_analytics.exceptions import DeletionRefused
from parquet_analytics.querier import Question

from tests import sites
from tests.clock import TODAY
from tests.sites import export

YESTERDAY = TODAY - datetime.timedelta(days=1)


@pytest.fixture(autouse=True)
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
        yield tmp_path


def later(monkeypatch: pytest.MonkeyPatch, by: datetime.timedelta) -> None:
    now = days.now
    monkeypatch.setattr(days, "now", lambda: now() + by)


def told(day: datetime.date) -> dict[str, Any]:
    _, out, _ = sites.run("parquet_analytics", "status", "--json", "--since", str(day), "--until", str(day))
    about: dict[str, Any] = json.loads(out)
    return about


def test_a_day_that_was_exported_while_it_was_open_is_not_verified_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites.few(YESTERDAY, rows=1)
    sites.few(TODAY)
    assert export("--date", str(TODAY), "--allow-open-day")[0] == 0
    sites.few(TODAY, rows=3, project="evening")
    later(monkeypatch, datetime.timedelta(hours=25))
    location = exporter().location
    assert latest_verified(location, TODAY, TODAY) == {}
    assert [(due.day, due.run) for due in due_days(TODAY, TODAY, location)] == [(TODAY, None)]
    found = PageViewsQuerier()
    assert found.daily_totals("evening", TODAY, TODAY)["count"].to_pylist() == [3]
    assert found.coverage is not None
    assert found.coverage.live == (TODAY,)
    about = told(TODAY)
    assert about["counts"]["early"] == 1
    [day] = about["days"]
    assert (day["state"], day["rows"]) == ("early", 20)
    assert f"before the day's end ({TODAY + datetime.timedelta(days=1)} 00:00 UTC)" in day["error"]
    _, out, _ = sites.run("parquet_analytics", "status", "--since", str(TODAY), "--until", str(TODAY))
    assert f"{TODAY}  early" in out
    assert "it has to be exported again" in out
    assert about["through"] is None
    # A range does not skip it.
    monkeypatch.undo()
    code, out, _ = export("--since", str(TODAY), "--until", str(TODAY), "--allow-open-day")
    assert (code, "merged and verified" in out) == (0, True)


def test_rows_of_a_day_that_was_exported_early_are_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    sites.few(YESTERDAY)
    assert export("--date", str(YESTERDAY))[0] == 0
    end = days.end_of(YESTERDAY)
    Run.objects.update(snapshot_at=end - datetime.timedelta(seconds=1))
    later(monkeypatch, datetime.timedelta(days=200))
    with pytest.raises(DeletionRefused, match=r"no verified export of this day to .*, made after its end"):
        delete_day(YESTERDAY)
    Run.objects.update(snapshot_at=end)
    assert delete_day(YESTERDAY)[1]["deleted"] == 20


def test_the_night_exports_again_what_was_exported_early() -> None:
    sites.few(YESTERDAY)
    tasks.export_pageviews_to_parquet(str(YESTERDAY))
    Run.objects.filter(day=YESTERDAY).update(snapshot_at=days.end_of(YESTERDAY) - datetime.timedelta(hours=1))
    tasks.export_pageviews_to_parquet()
    runs = Run.objects.filter(day=YESTERDAY, kind="export").order_by("id")
    assert list(runs.values_list("state", "outcome")) == [("verified", "created"), ("verified", "unchanged")]
    assert [day.state for day in status(YESTERDAY, YESTERDAY).days] == ["verified"]


def test_a_day_of_a_zone_west_of_utc_is_over_when_it_is_over_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task with a date may come when the day is over by UTC, and views are still counted on it."""
    sites.few(YESTERDAY)
    assert export("--date", str(YESTERDAY))[0] == 0
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True, DAY_TIME_ZONE="Etc/GMT+12"):
        taken = days.end_of(YESTERDAY) - datetime.timedelta(hours=1)
        assert taken > datetime.datetime.combine(TODAY, datetime.time.min, datetime.UTC)
        Run.objects.update(snapshot_at=taken)
        assert latest_verified(exporter().location, YESTERDAY, YESTERDAY) == {}
    assert list(latest_verified(exporter().location, YESTERDAY, YESTERDAY)) == [YESTERDAY]


def test_runs_from_before_there_were_snapshot_times_go_by_their_start() -> None:
    sites.few(YESTERDAY)
    assert export("--date", str(YESTERDAY))[0] == 0
    location = exporter().location
    for started, whole in (
        (days.end_of(YESTERDAY), True),
        (days.end_of(YESTERDAY) - datetime.timedelta(hours=1), False),
    ):
        Run.objects.update(snapshot_at=None, started_at=started)
        assert (YESTERDAY in latest_verified(location, YESTERDAY, YESTERDAY)) == whole
        assert (
            PageViewsQuerier()._ledger(Question(YESTERDAY, YESTERDAY, None, None, None)).verified == {YESTERDAY}
        ) == whole

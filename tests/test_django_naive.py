"""Sites that know of no time zones (`USE_TZ = False`): the whole app, on PostgreSQL and SQLite."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import Client, override_settings
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import days, tasks
from parquet_analytics.django.erasure import erase_pending, hidden_projects
from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.django.operations.status import status
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import export_day, exporter, ledger
from parquet_analytics.django.runs.ledger import Ledger
from parquet_analytics.exceptions import DayIsTaken

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


@pytest.fixture
def site_database(either_database: str) -> str:
    return either_database


@pytest.fixture(autouse=True)
def naive(site_database: str, tmp_path: Path) -> Iterator[None]:
    """Far from UTC, so that hours that are taken for others are noticed."""
    with (
        override_settings(USE_TZ=False, TIME_ZONE="America/New_York"),
        sites.archive(tmp_path / "archive", ALLOW_LOCAL_DELETE=True, DAY_TIME_ZONE="UTC"),
    ):
        (tmp_path / "archive").mkdir()
        yield


def minutes(count: float) -> datetime.timedelta:
    return datetime.timedelta(minutes=count)


def test_a_night_and_its_questions(site_database: str) -> None:
    for number in (3, 2, 1, 0):
        sites.few(ago(number))
    tasks.export_pageviews_to_parquet()
    [run] = Run.objects.filter(day=ago(1), kind="export")
    assert run.state == "verified"
    assert run.finished_at is not None
    for moment in (run.started_at, run.finished_at, run.snapshot_at):
        assert abs(datetime.datetime.now(datetime.UTC) - moment) < minutes(5)
    assert ago(1) in ledger.latest_verified(exporter().location, ago(3), ago(1))
    found = PageViewsQuerier()
    assert found.daily_totals("docs", ago(3))["count"].to_pylist() == [190] * 4
    assert found.coverage is not None
    assert (found.coverage.complete, found.coverage.live) == ((ago(3), ago(2), ago(1)), (TODAY,))
    told = status()
    assert (told.through, told.lag is not None and told.lag < datetime.timedelta(days=1)) == (ago(1), True)
    code, out, _ = sites.run("parquet_analytics", "status", "--max-lag", "36h")
    assert (code, f"complete through {ago(1)}" in out) == (0, True)


def test_leases_run_out_when_they_should(site_database: str) -> None:
    sites.few(DAY)

    def taken() -> Ledger:
        return Ledger(Run.Kind.EXPORT, DAY, exporter().location)

    with taken() as dead:
        for _ in range(2):
            with pytest.raises(DayIsTaken, match="UTC"), taken():
                pass
        dead._renewed -= 60
        dead.renew()
        until = Run.objects.get().lease_until
        assert until is not None
        assert minutes(1) < until - datetime.datetime.now(datetime.UTC) < minutes(2)
        Run.objects.update(lease_until=days.now() - minutes(1))
        with taken():
            assert Run.objects.get(pk=dead.run.pk).state == "abandoned"
    Run.objects.update(state="abandoned")
    assert ledger.killed_runs("export", DAY, exporter().location) == 2
    Run.objects.update(started_at=days.now() - minutes(25 * 60))
    assert ledger.killed_runs("export", DAY, exporter().location) == 0


def test_deleted_projects_are_erased(site_database: str) -> None:
    sites.few(DAY)
    sites.few(DAY, project="gone")
    export_day(DAY)
    number = Project.objects.get(slug="gone").pk
    Project.objects.get(slug="gone").delete()
    [erasure] = Erasure.objects.all()
    assert abs(datetime.datetime.now(datetime.UTC) - erasure.requested_at) < minutes(5)
    assert hidden_projects() == [number]
    assert erase_pending() == [number]
    assert hidden_projects() == [number]
    assert exporter().verify(DAY)["total_records"] == 20


def test_the_doctor_looks_at_everything(site_database: str) -> None:
    sites.few(ago(1))
    Erasure.objects.create(project_id=99)

    def findings() -> dict[str, dict[str, Any]]:
        _, out, _ = sites.run("parquet_analytics", "doctor", "--json")
        return {found["check"]: found for found in map(json.loads, out.splitlines())}

    found = findings()
    assert {check: found[check]["message"] for check in found if found[check]["state"] == "failed"} == {}
    assert ("clock" in found) == (site_database == "postgresql")
    Erasure.objects.update(requested_at=days.now() - minutes(60 * 60))
    assert findings()["erasures"]["state"] == "failed"


def test_the_admin_shows_the_ledger(site_database: str) -> None:
    from django.contrib.auth.models import User

    sites.few(ago(1))
    run, _ = export_day(ago(1))
    User.objects.create_superuser("boss", "boss@example.org", "x")
    browser = Client()
    assert browser.login(username="boss", password="x")
    for path in ("run/", "run/status/", f"run/{run.pk}/change/", "erasure/"):
        page = browser.get(f"/admin/parquet_analytics/{path}")
        assert page.status_code == 200, path
    assert f"{run.finished_at:%Y-%m-%d %H:%M}" in browser.get("/admin/parquet_analytics/run/status/").content.decode()


@pytest.mark.parametrize("before", [True, False])
def test_a_ledger_means_the_same_after_the_setting_was_changed(site_database: str, before: bool) -> None:
    sites.few(DAY)
    with override_settings(USE_TZ=before):
        run, _ = export_day(DAY)
    with override_settings(USE_TZ=not before):
        connections.close_all()
        stored = Run.objects.get()
        assert (stored.started_at, stored.snapshot_at) == (run.started_at, run.snapshot_at)

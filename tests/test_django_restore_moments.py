"""What happens beside a restoration must not keep the day from being exported again, or others from their work; and
what would keep rows from going or coming back is told before."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from django.test import override_settings
from parquet_analytics import ParquetAnalyticsExporter, _native
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.django.models import Run
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day, exporter, ledger
from parquet_analytics.django.table.insertion import Table
from parquet_analytics.exceptions import DatabaseError, DayIsTaken, InvalidInput, ParquetAnalyticsError

from tests import sites
from tests.archives import Place, execute, saying
from tests.sites import DAY
from tests.test_merge import metadata

REFERS = (
    "CREATE TABLE bookmark (view bigint CONSTRAINT of_view REFERENCES analytics_pageview DEFERRABLE INITIALLY DEFERRED)"
)


@pytest.fixture
def site(site_database: str, place: Place) -> Iterator[str]:
    with sites.archive(sites.s3_entry(place)):
        yield site_database


def gone() -> None:
    """A day of 20 rows that is exported and deleted."""
    sites.few(DAY)
    export_day(DAY)
    delete_day(DAY)


@pytest.mark.parametrize("skipped", [False, True])
def test_an_export_right_before_the_commit_does_not_make_other_rows_of_those_that_come_back(
    site: str, place: Place, monkeypatch: pytest.MonkeyPatch, skipped: bool
) -> None:
    """It sees a table without them, and its file says so."""
    if skipped:
        sites.few(DAY, project="ghost", rows=3)
    gone()
    if skipped:
        execute(site, "DELETE FROM projects_project WHERE slug = 'ghost'")
    prepare = _native.prepare_restoration

    def prepared(*arguments: Any, **options: Any) -> Any:
        found = prepare(*arguments, **options)
        # Somebody who knows of no lease.
        library = ParquetAnalyticsExporter(place.url, source=site, storage_options=place.options())
        library.export_daily_pageviews(DAY)
        assert metadata(place)["remaining"] == ""
        return found

    monkeypatch.setattr(_native, "prepare_restoration", prepared)
    result = restore_day(DAY)
    monkeypatch.undo()
    assert (result["restored"], result["unsettled"]) == (20, None)
    assert metadata(place)["remaining"] == "unknown"
    assert export_day(DAY)[1]["left"] == 0
    if not skipped:
        assert "remaining" not in metadata(place)
    PageView.objects.filter(path="/4").update(view_count=1_000)
    export_day(DAY)
    delete_day(DAY)
    export_day(DAY)
    assert exporter().verify(DAY)["total_views"] == 190 - 4 + 1_000 + 3 * skipped
    if not skipped:
        assert PageView.objects.count() == 0 or exporter().verify(DAY, against="database")["changed"] == 0


def test_others_are_told_that_a_day_is_taken_as_long_as_its_rows_come_back(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one transaction, which may take many times as long as a lease is given for."""
    gone()
    monkeypatch.setattr(ledger, "LEASE", datetime.timedelta(seconds=2))
    monkeypatch.setattr(ledger, "_RENEW_SECONDS", 0.2)
    compare = Table.compare
    told: list[tuple[type[Exception], float]] = []

    def other() -> None:
        began = time.monotonic()
        try:
            export_day(DAY)
        except ParquetAnalyticsError as error:
            told.append((type(error), time.monotonic() - began))
        finally:
            connections.close_all()

    def slow(self: Table, day: datetime.date, rows: list[Any], alive: Any) -> None:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            time.sleep(0.1)
            alive()
        thread = threading.Thread(target=other)
        thread.start()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            time.sleep(0.1)
            alive()
        thread.join(10)
        compare(self, day, rows, alive)

    monkeypatch.setattr(Table, "compare", slow)
    assert restore_day(DAY)["restored"] == 20
    [(kind, waited)] = told
    assert kind is DayIsTaken
    assert waited < 2
    assert Run.objects.get(kind=Run.Kind.RESTORE).state == Run.State.DONE


def test_a_session_that_does_not_wait_for_idle_transactions_does_not_end_a_restoration(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written while the transaction has nothing to do."""
    gone()
    execute(site, f"ALTER DATABASE {site.rsplit('/', 1)[1]} SET idle_in_transaction_session_timeout = '500ms'")
    connections["default"].close()
    prepare = _native.prepare_restoration

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(1.5)
        return prepare(*arguments, **options)

    monkeypatch.setattr(_native, "prepare_restoration", slow)
    assert restore_day(DAY)["restored"] == 20


def test_a_database_that_goes_away_meanwhile_is_not_taken_for_one_without_a_ledger(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone()
    prepare = _native.prepare_restoration

    def cut(*arguments: Any, **options: Any) -> Any:
        found = prepare(*arguments, **options)
        mine = connections["default"].connection.info.backend_pid
        with psycopg.connect(site, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [mine])
        return found

    monkeypatch.setattr(_native, "prepare_restoration", cut)
    with pytest.raises(ParquetAnalyticsError) as caught:
        restore_day(DAY)
    assert caught.value.retryable, repr(caught.value)
    assert "migrate" not in str(caught.value)
    monkeypatch.undo()
    assert restore_day(DAY)["restored"] == 20


def test_a_column_that_nobody_has_a_value_for_is_named_before_anything_is_tried(site: str, place: Place) -> None:
    execute(site, "INSERT INTO projects_project (name, slug) VALUES ('docs', 'docs')")
    execute(
        site,
        "ALTER TABLE analytics_pageview ADD visitor int NOT NULL, ADD seen date NOT NULL DEFAULT now()",
        "INSERT INTO analytics_pageview (path, view_count, date, status, project_id, visitor)"
        " SELECT '/' || n, n, '2026-07-01', 200, p.id, n FROM projects_project p, generate_series(0, 9) n",
    )
    with sites.archive(sites.s3_entry(place), DELETE_COLUMNS=["visitor", "seen"]):
        export_day(DAY)
        delete_day(DAY)
        state, _, hint = doctor()["other columns"]
        assert (state, "visitor" in hint, "seen" in hint) == ("warning", True, False)
        for dry_run in (True, False):
            with pytest.raises(InvalidInput, match=saying("2026-07-01", "visitor", "DEFAULT")) as caught:
                restore_day(DAY, dry_run=dry_run)
            assert "seen" not in str(caught.value)
        execute(site, "ALTER TABLE analytics_pageview ALTER visitor SET DEFAULT 0")
        assert restore_day(DAY)["columns_lost"] == ["visitor", "seen"]


# The doctor.


def doctor() -> dict[str, tuple[str, str, str]]:
    """The worst finding of each check."""
    _, out, _ = sites.run("parquet_analytics", "doctor", "--json")
    found: dict[str, tuple[str, str, str]] = {}
    order = ["ok", "skipped", "warning", "failed"]
    for line in out.splitlines():
        each = json.loads(line)
        before = found.get(each["check"], ("ok",))[0]
        if order.index(each["state"]) >= order.index(before):
            found[each["check"]] = (each["state"], each["message"], each["hint"])
    return found


def test_a_check_that_is_silenced_is_none_of_the_doctors(site: str, place: Place) -> None:
    """A column that only the database has may be lost; that the model lacks it is an error elsewhere."""
    execute(site, "ALTER TABLE analytics_pageview ADD referrer text")
    with sites.archive(sites.s3_entry(place), DELETE_COLUMNS=["referrer"]):
        assert doctor()["settings"][0] == "failed"
        with override_settings(SILENCED_SYSTEM_CHECKS=["parquet_analytics.E012"]):
            call_command("check")
            assert doctor()["settings"][0] == "ok"


def test_rows_that_others_refer_to_are_told_of_before_a_deletion_fails(site: str) -> None:
    execute(site, REFERS)
    sites.few(DAY)
    export_day(DAY)
    execute(site, "INSERT INTO bookmark SELECT min(id) FROM analytics_pageview")
    state, message, _ = doctor()["other rows"]
    assert (state, "public.bookmark (constraint of_view)" in message) == ("warning", True)
    with pytest.raises(DatabaseError, match=saying("2026-07-01", "of_view", "bookmark", "refers to")):
        delete_day(DAY)
    assert PageView.objects.count() == 20
    execute(site, "DELETE FROM bookmark")
    assert delete_day(DAY)[1]["deleted"] == 20

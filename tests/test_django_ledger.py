"""The ledger, its lease and the signals: what operators and other programs rely on."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections
from parquet_analytics.django import days, signals
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import due_days, export_day, exporter, ledger
from parquet_analytics.django.runs.ledger import LEASE, Ledger, killed_runs, runs
from parquet_analytics.django.tasks import export_pageviews_to_parquet
from parquet_analytics.exceptions import BadRow, DayIsTaken

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY, NEXT


@pytest.fixture(autouse=True)
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    sites.few(DAY)
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
        yield tmp_path


@pytest.fixture
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The signals that were sent; a second receiver of each fails."""
    found: list[tuple[str, dict[str, Any]]] = []
    names = ("run_finished", "run_failed", "late_rows_found", "days_missing")
    receivers = []

    def fail(**_: Any) -> None:
        raise RuntimeError("a receiver's own trouble")

    for name in names:

        def note(name: str = name, **facts: Any) -> None:
            found.append((name, facts))

        for receiver in (fail, note):
            getattr(signals, name).connect(receiver, weak=False)
            receivers.append((name, receiver))
    yield found
    for name, receiver in receivers:
        getattr(signals, name).disconnect(receiver)


def lease(day: datetime.date = DAY, kind: str = "export") -> Ledger:
    return Ledger(kind, day, exporter().location)


def test_of_many_who_want_a_day_one_gets_it() -> None:
    got, refused = [], []
    barrier = threading.Barrier(8)

    def want() -> None:
        barrier.wait()
        try:
            with lease() as taken:
                got.append(taken.run.pk)
                time.sleep(0.5)
        except DayIsTaken as error:
            refused.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    assert all(error.retryable and error.day == DAY for error in refused)
    # Other days and other archives are nobody's business.
    with lease(), lease(NEXT), Ledger("export", DAY, "s3://another/place"):
        pass


def test_a_run_without_a_sign_of_life_is_taken_over_and_notices() -> None:
    with lease() as dead:
        runs().filter(pk=dead.run.pk).update(lease_until=days.now() - datetime.timedelta(seconds=1))
        with lease() as heir:
            assert runs().get(pk=dead.run.pk).state == "abandoned"
            heir.run.state = Run.State.VERIFIED
            dead._renewed -= 60
            with pytest.raises(DayIsTaken, match="another run has taken this day over"):
                dead.renew()
        dead.run.state = Run.State.VERIFIED
    # What the dead one would have written has not come over what was written of it.
    assert runs().get(pk=dead.run.pk).state == "abandoned"
    assert killed_runs("export", DAY, exporter().location) == 0  # the last one came to an end


def test_a_lease_is_renewed_while_an_export_works(site_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export waits for the table longer than a lease lasts, and keeps the day all the time."""
    monkeypatch.setattr(ledger, "LEASE", datetime.timedelta(seconds=2))
    monkeypatch.setattr(ledger, "_RENEW_SECONDS", 0.5)
    refused = []

    def meanwhile() -> None:
        for _ in range(4):
            time.sleep(1)
            try:
                with lease():
                    refused.append(False)
            except DayIsTaken:
                refused.append(True)
        blocker.rollback()
        connections.close_all()

    with psycopg.connect(site_database) as blocker:
        blocker.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        others = threading.Thread(target=meanwhile)
        others.start()
        run, _ = export_day(DAY)
        others.join()
    assert refused == [True] * 4
    assert (run.state, run.rows) == ("verified", 20)
    assert [LEASE, runs().count()] == [datetime.timedelta(seconds=90), 1]


def test_a_ledger_that_loses_its_connection_in_mid_run_still_records_the_end(site_database: str) -> None:
    with lease() as taken:
        with psycopg.connect(site_database, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        taken.run.state = Run.State.VERIFIED
    assert (runs().get().state, runs().get().lease) == ("verified", None)


def test_signals_are_sent_and_a_receiver_that_fails_changes_nothing(
    heard: list[tuple[str, dict[str, Any]]], site_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = export_day(DAY)
    assert [(name, facts["run"].pk) for name, facts in heard] == [("run_finished", run.pk)]
    assert "a receiver of a signal failed" in caplog.text
    heard.clear()
    yesterday, before = TODAY - datetime.timedelta(days=1), TODAY - datetime.timedelta(days=2)
    sites.few(before)
    sites.few(yesterday)
    export_day(before)
    heard.clear()
    sites.few(before, rows=3, project="late")
    with psycopg.connect(site_database) as database:
        database.execute("INSERT INTO projects_project (id, name, slug) VALUES (999, 'bad', 'bad')")
    export_pageviews_to_parquet()
    names = [name for name, _ in heard]
    assert names.count("late_rows_found") == 1
    assert names.count("days_missing") == 1
    assert dict(heard)["late_rows_found"]["day"] == before
    missing = dict(heard)["days_missing"]["days"]
    assert yesterday not in missing
    assert before not in missing
    heard.clear()
    with psycopg.connect(site_database) as database:
        database.execute("ALTER TABLE analytics_pageview ALTER view_count TYPE bigint")
        database.execute("UPDATE analytics_pageview SET view_count = 5000000000 WHERE date = %s", [DAY])
    with pytest.raises(BadRow):
        export_day(DAY)
    [(name, facts)] = heard
    assert (name, type(facts["error"])) == ("run_failed", BadRow)


def test_a_final_failure_is_one_line_with_day_key_and_run_id(
    site_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(site_database) as database:
        database.execute("UPDATE projects_project SET slug = 'a/b'")
    with (
        sites.archive(Path("/nowhere/at/all"), PER_PROJECT=True),
        caplog.at_level(logging.ERROR),
        pytest.raises(Exception, match="2026-07-01"),
    ):
        export_pageviews_to_parquet("2026-07-01")
    [record] = [record for record in caplog.records if "of page views failed" in record.message]
    assert (record.__dict__["day"], record.levelname) == ("2026-07-01", "ERROR")
    assert {"key", "run_id"} <= set(record.__dict__)


def test_a_day_is_due_when_its_rows_changed_and_not_when_they_were_deleted(site_database: str) -> None:
    location = exporter().location
    assert [due.run for due in due_days(DAY, NEXT, location)] == [None, None]
    export_day(DAY)
    export_day(NEXT)
    assert due_days(DAY, NEXT, location) == []
    with psycopg.connect(site_database) as database:
        database.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE path = '/3'")
    assert [(due.day, due.run is not None) for due in due_days(DAY, NEXT, location)] == [(DAY, True)]
    assert due_days(DAY, NEXT, location)[0].late
    export_day(DAY)
    # Rows that went, with a version say, make the day due, and nobody is alarmed.
    with psycopg.connect(site_database) as database:
        database.execute("DELETE FROM analytics_pageview WHERE path = '/4'")
    assert [(due.day, due.late) for due in due_days(DAY, NEXT, location)] == [(DAY, False)]
    export_day(DAY)
    assert sites.export("--date", str(DAY), "--delete-after-export")[0] == 0
    assert due_days(DAY, NEXT, location) == []
    sites.few(DAY, rows=1, project="late")
    assert [(due.day, due.late) for due in due_days(DAY, NEXT, location)] == [(DAY, True)]
    # Before the table's first day nothing is due.
    assert due_days(DAY - datetime.timedelta(days=5), DAY - datetime.timedelta(days=1), location) == []

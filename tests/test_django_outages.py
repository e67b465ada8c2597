"""PostgreSQL is stopped and started again while tasks and commands work: every day is done, none is told wrongly, and
the ledger says what happened."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import Retry
from django.db import InterfaceError, OperationalError, connections
from parquet_analytics import ParquetAnalyticsExporter
from parquet_analytics.django import runs, signals, tasks
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import due, ledger
from parquet_analytics.django.runs import export as exporting
from parquet_analytics.django.source import ModelSource
from parquet_analytics.django.table import organizations, outages
from parquet_analytics.django.table.mapping import PageViewMapping
from parquet_analytics.exceptions import DatabaseError

from tests import sites
from tests.services import Postgres, Unavailable, Valkey, Workspace
from tests.sites import DAY, NEXT, export
from tests.test_django_celery import BACKFILL, DELETE, EXPORT, Worker, ago, start, wait  # noqa: F401

THIRD = NEXT + datetime.timedelta(days=1)
RANGE = ("--since", str(DAY), "--until", str(THIRD))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this module's own, to be stopped."""
    with Workspace() as workspace:
        try:
            yield Postgres.start(workspace)
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.fixture(scope="module")
def template(server: Postgres) -> str:
    return sites.make_template(server)


@pytest.fixture
def site_database(server: Postgres, template: str) -> Iterator[str]:
    url = server.create_database(template)
    with sites.databases(default=url):
        yield url
    server.drop_database(url)


@pytest.fixture
def archive(site_database: str, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "archive"
    folder.mkdir()
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True):
        yield folder


@pytest.fixture
def outage(server: Postgres) -> Iterator[Callable[..., None]]:
    """Stops the server, and starts it again after some seconds."""
    waiting: list[threading.Timer] = []

    def begin(seconds: float = 1.5) -> None:
        server.stop()
        waiting.append(threading.Timer(seconds, server.start_again))
        waiting[-1].start()

    yield begin
    for timer in waiting:
        timer.join()


def once_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, happens: Callable[[], None]) -> list[int]:
    """Lets something happen before a function is called for the first time; gives how often it was called."""
    original, calls = getattr(owner, name), []

    def called(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            happens()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, called)
    return calls


def states() -> list[tuple[datetime.date, str]]:
    return list(Run.objects.order_by("id").values_list("day", "state"))


MOMENTS = [
    (runs, "due_days"),
    (ledger.Ledger, "__enter__"),
    (ledger.Ledger, "__exit__"),
    (ledger, "killed_runs"),
    (due, "latest_verified"),
    (due, "counted"),
    (exporting, "_record"),
    (exporting, "_export"),
]


@pytest.mark.parametrize(("owner", "name"), MOMENTS, ids=[name for _, name in MOMENTS])
def test_a_nightly_task_goes_on_when_the_database_is_back(
    archive: Path, outage: Callable[..., None], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    for number in (3, 2, 1):
        sites.few(ago(number))
    if name == "counted":
        export("--date", str(ago(3)))
        sites.few(ago(3), rows=1, project="late")
    calls = once_before(monkeypatch, owner, name, outage)
    tasks.export_pageviews_to_parquet.apply().get()
    assert calls
    assert [str(day) for day in sorted(ledger.latest_verified(runs.exporter().location, ago(3), ago(1)))] == [
        str(ago(number)) for number in (3, 2, 1)
    ]
    assert not Run.objects.filter(state="running").exists()
    assert not Run.objects.exclude(lease=None).exists()
    assert {run.retryable for run in Run.objects.filter(state="failed")} <= {True}


@pytest.mark.parametrize(("owner", "name"), MOMENTS[1:3] + MOMENTS[5:], ids=lambda moment: str(moment))
def test_a_range_of_the_command_goes_on_when_the_database_is_back(
    archive: Path, outage: Callable[..., None], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    for day in (DAY, NEXT, THIRD):
        sites.few(day)
    calls = once_before(monkeypatch, owner, name, outage)
    code, out, err = export(*RANGE)
    assert (code, out.count("verified")) == (0, 3), (out, err)
    assert calls or name == "counted"
    assert {state for _, state in states()} <= {"verified", "failed"}
    assert [day for day, state in states() if state == "verified"] == [DAY, NEXT, THIRD]


def test_a_range_tells_of_each_day_when_the_database_stays_away(
    archive: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the end of the run under way is written as soon as it is back."""
    monkeypatch.setattr(outages, "PATIENCE", 1.0)
    for day in (DAY, NEXT, THIRD):
        sites.few(day)
    calls = once_before(monkeypatch, exporting, "_record", server.stop)
    try:
        code, _, err = export(*RANGE)
    finally:
        server.start_again()
    assert calls
    assert code == 1
    for day in (DAY, NEXT, THIRD):
        assert f"{day}: " in err
    assert "the end of the run cannot be written yet (verified)" in caplog.text
    assert states() == [(DAY, "running")]
    # Whoever asks next in this process writes what it knows.
    code, out, _ = export(*RANGE)
    assert (code, out.count("verified")) == (0, 3)
    assert states() == [(DAY, "verified"), (NEXT, "verified"), (THIRD, "verified")]


@pytest.mark.parametrize(
    "task",
    [
        lambda: tasks.export_pageviews_to_parquet.apply(),
        lambda: tasks.export_pageviews_to_parquet.apply(args=[str(DAY)]),
        lambda: tasks.backfill_pageviews_to_parquet.apply(args=[str(DAY), str(NEXT)]),
        lambda: tasks.delete_exported_pageviews.apply(),
        lambda: tasks.erase_deleted_projects.apply(),
    ],
    ids=["nightly", "day", "backfill", "deletion", "erasure"],
)
def test_a_task_that_waited_in_vain_is_tried_again(
    archive: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch, task: Callable[[], Any]
) -> None:
    monkeypatch.setattr(outages, "PATIENCE", 0.5)
    asked: list[Any] = []

    def retry(self: Any, exc: Exception, **about: Any) -> Retry:
        asked.append((exc, about["countdown"]))
        return Retry(exc=exc)

    monkeypatch.setattr("celery.Task.retry", retry)
    server.stop()
    try:
        task()
    finally:
        server.start_again()
    [(error, pause)] = asked
    assert isinstance(error, DatabaseError)
    assert error.retryable
    assert pause >= 30


def test_a_signal_tells_an_outage_as_what_may_be_tried_again(
    archive: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "PATIENCE", 0.5)
    heard: list[Exception] = []
    receiver = lambda error, **_: heard.append(error)  # noqa: E731
    signals.run_failed.connect(receiver, weak=False)
    server.stop()
    try:
        for work in (runs.export_day, runs.due_days):
            with pytest.raises(DatabaseError):
                work(DAY) if work is runs.export_day else work(DAY, DAY, "somewhere")
    finally:
        server.start_again()
        signals.run_failed.disconnect(receiver)
    assert [(type(error), error.retryable) for error in heard] == [(DatabaseError, True)]  # type: ignore[attr-defined]


def test_a_source_by_the_orm_that_loses_its_database_is_tried_again(
    archive: Path, outage: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of the rows, when only text comes through the stream."""
    sites.few(DAY)
    native = PageViewMapping.native_tables
    monkeypatch.setattr(PageViewMapping, "native_tables", lambda _: "it is read so here")
    once_before(monkeypatch, ModelSource, "_refuse_orphans", outage)
    assert export("--date", str(DAY))[0] == 0
    monkeypatch.setattr(PageViewMapping, "native_tables", native)
    assert states()[-1] == (DAY, "verified")
    assert {state for _, state in states()} <= {"failed", "verified"}


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_whatever_django_raises_then_is_worth_another_try(
    archive: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    sites.few(DAY)

    def broken() -> None:
        raise kind("connection already closed")

    with sites.organizations(readers=["docs"]):
        once_before(monkeypatch, organizations, "members", broken)
        assert export("--date", str(DAY), "--per-organization")[0] == 1 or states()[-1] == (DAY, "verified")
    failed = Run.objects.filter(state="failed").first()
    assert failed is not None
    assert failed.retryable


def test_a_pooler_that_refuses_while_its_database_is_away_is_asked_again(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers so to a wrong password as well."""
    sites.few(DAY)

    def refuse() -> None:
        raise DatabaseError("server login has been failing [08P01]", day=DAY, sqlstate="08P01")

    calls = once_before(monkeypatch, ParquetAnalyticsExporter, "export_daily_pageviews", refuse)
    assert export("--date", str(DAY))[0] == 0
    assert len(calls) == 2
    assert list(Run.objects.order_by("id").values_list("state", "retryable")) == [("failed", True), ("verified", None)]


def test_a_row_whose_insert_was_not_answered_is_not_taken_for_another_run(
    archive: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.few(DAY)
    original = Run.save
    saved: list[int] = []

    def save(self: Run, **how: Any) -> None:
        original(self, **how)
        if not saved:
            saved.append(1)
            connections["default"].set_rollback(False)
            connections["default"].connection.commit()
            server.stop()
            server.start_again()

    monkeypatch.setattr(Run, "save", save)
    runs.export_day(DAY)
    assert states() == [(DAY, "verified")]


def test_a_worker_lives_through_a_restart_of_the_database(
    start: Callable[..., Worker],  # noqa: F811 - the fixture
    archive: Path,
    server: Postgres,
    valkey: Valkey,
) -> None:
    for number in (4, 3, 2, 1):
        sites.few(ago(number))
    sites.few(ago(201))
    for number in (200, 199):
        sites.few(ago(number))
        export("--date", str(ago(number)))
    worker = start(ALLOW_LOCAL_DELETE=True)
    # The worker has connections from before, which are dead then.
    worker.send(EXPORT, str(ago(4)))
    assert worker.ended(EXPORT), worker.logged()
    server.stop()
    for task in (EXPORT, DELETE):
        worker.send(task)
    time.sleep(4)
    server.start_again()
    assert worker.ended(EXPORT, 2), worker.logged()
    assert worker.ended(DELETE), worker.logged()
    connections["default"].close()
    location = runs.exporter().location
    assert sorted(ledger.latest_verified(location, ago(4), ago(1))) == [ago(number) for number in (4, 3, 2, 1)]
    assert [sites.rows_in(archive_url(server), ago(number)) for number in (200, 199)] == [0, 0]
    assert not Run.objects.filter(state="running").exists()


def archive_url(server: Postgres) -> str:
    return server.database_url(str(connections["default"].settings_dict["NAME"]))


@pytest.mark.parametrize("wrong", ["PASSWORD", "NAME"])
def test_a_database_that_lets_nobody_in_is_not_waited_for(site_database: str, tmp_path: Path, wrong: str) -> None:
    """Whatever language the server says it in: the code counts."""
    entry = sites.site.postgresql(site_database) | {wrong: "no such thing"}
    with sites.databases(default=entry), sites.archive(tmp_path), pytest.raises(DatabaseError) as caught:
        runs.export_day(DAY)
    assert not caught.value.retryable
    assert caught.value.sqlstate == {"PASSWORD": "28P01", "NAME": "3D000"}[wrong]

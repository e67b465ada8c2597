"""The tasks in a real prefork worker with a real broker, and by beat with its schedule in the database."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from celery import Celery
from parquet_analytics import ParquetAnalyticsExporter
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import ledger
from parquet_analytics.django.runs.ledger import Ledger, runs

from tests import sites
from tests.clock import TODAY
from tests.services import Valkey
from tests.sites import DAY, NEXT, export, rows_in

EXPORT = "parquet_analytics.export_pageviews_to_parquet"
BACKFILL = "parquet_analytics.backfill_pageviews_to_parquet"
DELETE = "parquet_analytics.delete_exported_pageviews"
KEY = "analytics/pageviews/2026/07/01/pageviews_2026-07-01.parquet"


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


def wait(until: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if until():
            return True
        time.sleep(0.1)
    return False


@dataclass
class Worker:
    """A broker, and a worker with two processes at work for the site."""

    app: Celery
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    def send(self, task: str, *arguments: str, queue: str = "reports") -> Any:
        return self.app.send_task(task, args=arguments, queue=queue)

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, task: str, times: int = 1, how: str = "succeeded") -> bool:
        return wait(lambda: sum(task in line and how in line for line in self.logged().splitlines()) >= times)

    def children(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return [int(number) for number in found.split()]


@pytest.fixture
def start(site_database: str, tmp_path: Path, valkey: Valkey) -> Iterator[Callable[..., Worker]]:
    """Starts a worker whose archive is a folder, or the storage that it is given."""
    started = []
    broker = valkey.url()

    def begin(storage: Any = None, *, hidden_s: int = 3600, **given: Any) -> Worker:
        more = {
            "CELERY_BROKER_TRANSPORT_OPTIONS": {"visibility_timeout": hidden_s, "polling_interval": 0.1},
            "CELERY_TASK_DEFAULT_QUEUE": "site",
            "CELERY_WORKER_HIJACK_ROOT_LOGGER": True,
            "CELERY_BEAT_SCHEDULER": "django_celery_beat.schedulers:DatabaseScheduler",
        }
        place = tmp_path / "archive" if storage is None else storage
        environment = sites.environment(site_database, place, more, QUEUE="reports", **given)
        environment["PARQUET_ANALYTICS_TEST_BROKER"] = broker
        log = tmp_path / f"worker-{len(started)}.log"
        command = ["worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO", "-Q", "reports"]
        command += ["--without-gossip", "--without-mingle", "-n", f"worker{len(started)}@%h"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.celery_site", *command],
                env=environment | {"C_FORCE_ROOT": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        assert wait(lambda: b" ready." in log.read_bytes()), log.read_text()
        app = Celery(broker=broker)
        app.conf.task_default_queue = "reports"
        return Worker(app, environment, log, process)

    yield begin
    for process in started:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Path]:
    """The same archive for what the test itself asks."""
    folder = tmp_path / "archive"
    folder.mkdir()
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True):
        yield folder


def exported(day: datetime.date) -> list[str]:
    return list(runs().filter(day=day, kind=Run.Kind.EXPORT).order_by("id").values_list("state", flat=True))


def test_missed_nights_heal_the_oldest_first(start: Callable[..., Worker], archive: Path, site_database: str) -> None:
    for number in (10, 5, 4, 3, 2, 1):
        sites.few(ago(number))
    assert export("--date", str(ago(4)))[0] == 0
    with psycopg.connect(site_database) as connection:
        connection.execute("UPDATE analytics_pageview SET view_count = 100 WHERE date = %s AND path = '/3'", [ago(4)])
    assert export("--date", str(ago(2)))[0] == 0
    worker = start()
    worker.send(EXPORT)
    assert worker.ended(EXPORT), worker.logged()
    # Not the day before the lookback, nor the one that is verified and has not changed.
    assert exported(ago(10)) == []
    assert exported(ago(2)) == ["verified"]
    new = list(runs().exclude(task_id="").order_by("id"))
    # What is derived of these days comes last.
    last = new.pop()
    months = len({(ago(number).year, ago(number).month) for number in range(1, 8)})
    assert (last.kind, last.state, last.outcome) == ("compact", "done", f"{months} of {months}")
    assert [(run.day, run.outcome) for run in new] == [
        (ago(7), "created"),
        (ago(6), "created"),
        (ago(5), "created"),
        (ago(4), "merged"),
        (ago(3), "created"),
        (ago(1), "created"),
    ]
    assert [run.rows for run in new] == [0, 0, 20, 20, 20, 20]
    assert new[3].changed == 1
    assert f"{ago(4)}: rows came after the export of this day" in worker.logged()
    assert f"exported now: {ago(7)}, {ago(6)}, {ago(5)}, {ago(3)}" in worker.logged()
    assert sites.run("parquet_analytics", "status", "--max-lag", "36h")[0] == 0
    # The next night there is nothing left to do but the new day.
    worker.send(EXPORT)
    assert worker.ended(EXPORT, 2), worker.logged()
    assert runs().exclude(task_id="").count() == len(new) + 1


def test_eight_deliveries_of_one_day_end_with_one_object_and_one_verified_run(
    start: Callable[..., Worker], place: Any, site_database: str
) -> None:
    sites.insert(DAY)
    entry = sites.s3_entry(place)
    workers = [start(entry), start(entry)]
    for _ in range(8):
        workers[0].send(EXPORT, str(DAY))

    def seen() -> int:
        lines = [line for worker in workers for line in worker.logged().splitlines()]
        return sum(f"Task {EXPORT}" in line and "received" not in line for line in lines)

    assert wait(lambda: seen() >= 8), [worker.logged() for worker in workers]
    keys = place.keys()
    assert [key for key in keys if key.endswith(".parquet")] == [KEY]
    with sites.archive(entry):
        # Whoever came while another had the day waits; whoever came after it finds nothing to do.
        [run] = runs()
        assert (run.state, run.outcome, run.rows, run.lease) == ("verified", "created", 400, None)
        assert ParquetAnalyticsExporter().verify(DAY, against="database")["total_records"] == 400


def test_a_worker_that_is_killed_in_mid_export_leaves_the_day_to_the_next_delivery(
    start: Callable[..., Worker], archive: Path, site_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.insert(DAY)
    worker = start()
    with psycopg.connect(site_database) as blocker:
        blocker.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        worker.send(EXPORT, str(DAY))
        assert wait(lambda: runs().filter(state="running").exists()), worker.logged()
        victim = int(runs().get(state="running").worker.rsplit(":", 1)[1])
        assert victim in worker.children()
        os.kill(victim, signal.SIGKILL)
        # Delivered again at once, to a process that finds the day taken, and waits until the lease has run out.
        assert wait(lambda: "Retry in" in worker.logged()), worker.logged()
    runs().filter(state="running").update(lease_until=datetime.datetime.now(datetime.UTC))
    # The lease is over now; the retry would come in a minute and a half, so the nightly task comes before it.
    worker.send(EXPORT, str(DAY))
    assert wait(lambda: "verified" in exported(DAY)), worker.logged()
    assert exported(DAY) == ["abandoned", "verified"]
    assert pq.read_metadata(archive / KEY).num_rows == 400
    assert {path.name for path in archive.rglob("*") if path.is_file()} == {Path(KEY).name, "manifest.json"}


def test_a_day_that_kills_its_runs_is_left_to_people(
    start: Callable[..., Worker], archive: Path, site_database: str
) -> None:
    from parquet_analytics.django.runs import exporter

    sites.insert(DAY)
    for _ in range(3):
        with contextlib.suppress(SystemExit), Ledger(Run.Kind.EXPORT, DAY, exporter().location) as dead:
            raise SystemExit
        runs().filter(pk=dead.run.pk).update(state="abandoned")
    worker = start()
    worker.send(EXPORT, str(DAY))
    assert worker.ended(EXPORT, how="raised unexpected"), worker.logged()
    assert "3 runs in a row were killed on this day, so tasks leave it alone" in worker.logged()
    assert exported(DAY) == ["abandoned"] * 3
    # People may.
    assert export("--date", str(DAY))[0] == 0


def test_a_backfill_sends_a_task_for_each_day_to_the_queue(start: Callable[..., Worker], archive: Path) -> None:
    sites.few(DAY)
    assert export("--date", str(NEXT))[0] == 0
    worker = start()
    worker.send(BACKFILL, str(DAY), str(DAY + datetime.timedelta(days=4)))
    # The worker listens to that queue alone.
    assert wait(lambda: runs().filter(state="verified").count() == 5), worker.logged()
    assert exported(NEXT) == ["verified"]
    # What lies before the table's first day is nothing to export, and no failure.
    worker.send(BACKFILL, "2026-06-20", "2026-07-05")
    worker.send(BACKFILL, "2026-06-20", "2026-06-30")
    assert wait(lambda: "the table has no rows of these days" in worker.logged()), worker.logged()
    assert runs().count() == 5
    worker.send(BACKFILL, "2026-07-05", "2026-07-01")
    assert worker.ended(BACKFILL, how="since (2026-07-05) lies after until (2026-07-01)"), worker.logged()


def test_only_verified_days_are_deleted_and_late_rows_are_exported_first(
    start: Callable[..., Worker], archive: Path, site_database: str
) -> None:
    sites.few(DAY)
    sites.few(NEXT)
    sites.few(ago(3))
    assert export("--date", str(DAY))[0] == 0
    assert export("--date", str(ago(3)))[0] == 0
    sites.few(DAY, rows=5, project="late")
    worker = start(ALLOW_LOCAL_DELETE=True)
    worker.send(DELETE)
    assert worker.ended(DELETE), worker.logged()
    assert [rows_in(site_database, day) for day in (DAY, NEXT, ago(3))] == [0, 20, 20]
    states = list(runs().filter(day=DAY).order_by("id").values_list("kind", "state", "deleted", "late"))
    assert states == [
        ("export", "verified", None, None),
        ("delete", "deleted", 20, 5),
        ("export", "verified", None, None),
        ("delete", "deleted", 5, 0),
    ]
    assert pq.read_metadata(archive / KEY).num_rows == 25
    assert f"1 days older than HOT_DAYS keep their rows, because they have no verified file: {NEXT}" in worker.logged()


def test_what_cannot_succeed_is_not_tried_again(
    start: Callable[..., Worker], archive: Path, site_database: str
) -> None:
    worker = start(MODEL="analytics.PageView", FIELDS={"project_slug": "version__slug"})
    with psycopg.connect(site_database) as connection:
        connection.execute("INSERT INTO projects_project (id, name, slug) VALUES (1, 'x', 'a/b')")
        connection.execute(
            "INSERT INTO analytics_pageview (path, view_count, date, status, project_id) VALUES ('/', 1, %s, 200, 1)",
            [DAY],
        )
    worker.send(EXPORT, str(DAY))
    assert worker.ended(EXPORT, how="raised unexpected"), worker.logged()
    final = [line for line in worker.logged().splitlines() if "export of page views failed" in line]
    assert len(final) == 1
    assert str(DAY) in final[0]
    assert "Retry in" not in worker.logged()
    [run] = runs()
    assert (run.state, run.retryable) == ("failed", False)
    assert run.task_id


def test_what_may_succeed_later_is_tried_again_with_a_pause(
    start: Callable[..., Worker], archive: Path, site_database: str
) -> None:
    from parquet_analytics.django.runs import exporter

    sites.few(DAY)
    worker = start()
    with Ledger(Run.Kind.EXPORT, DAY, exporter().location):
        worker.send(EXPORT, str(DAY))
        assert worker.ended(EXPORT, how="Retry in"), worker.logged()
    [line] = [line for line in worker.logged().splitlines() if "Retry in" in line]
    pause = float(line.split("Retry in ")[1].split("s")[0])
    assert pause >= ledger.LEASE.total_seconds()
    assert "failed" not in line


def test_beat_runs_the_night_from_its_schedule_in_the_database(
    start: Callable[..., Worker], archive: Path, site_database: str, tmp_path: Path
) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    sites.few(ago(1))
    worker = start()
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(name="page views, nightly", task=EXPORT, interval=every, queue="reports", one_off=True)
    log = (tmp_path / "beat.log").open("wb")
    beat = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.celery_site", "beat", "--pidfile", "", "--loglevel", "INFO"],
        env=worker.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        assert wait(lambda: exported(ago(1)) == ["verified"]), (tmp_path / "beat.log").read_text() + worker.logged()
    finally:
        beat.terminate()
        beat.wait(10)
        log.close()


def test_a_task_may_be_called_as_a_function(archive: Path, site_database: str) -> None:
    from parquet_analytics.django.tasks import delete_exported_pageviews, export_pageviews_to_parquet
    from parquet_analytics.exceptions import InvalidInput

    sites.few(DAY)
    export_pageviews_to_parquet("2026-07-01")
    assert exported(DAY) == ["verified"]
    delete_exported_pageviews()
    assert rows_in(site_database) == 0
    with pytest.raises(InvalidInput, match="not a day"):
        export_pageviews_to_parquet("yesterday")


def test_the_tasks_options_are_what_operators_rely_on() -> None:
    from parquet_analytics.django import tasks

    for task, name in (
        (tasks.export_pageviews_to_parquet, EXPORT),
        (tasks.backfill_pageviews_to_parquet, BACKFILL),
        (tasks.delete_exported_pageviews, DELETE),
    ):
        assert task.name == name
        assert task.acks_late
        assert task.reject_on_worker_lost
        assert task.ignore_result
        assert task.soft_time_limit < task.time_limit

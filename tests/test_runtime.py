"""Long calls: progress, Ctrl-C, threads, and what they write to logs."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsQuerier, SampleData
from parquet_analytics.exceptions import ParquetAnalyticsError

from tests.archives import DAY, Exported, Place, execute, rows_of, views

# What a child process does: says "ready", asks, and tells how it was interrupted and how long it then still took.
CHILD = """
import json, signal, sys, threading, time
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData
given = json.loads(sys.argv[1])
place = {{"storage": given["url"], "storage_options": given["options"]}}
sent = []
def handler(*_):
    sent.append(time.monotonic())
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)
print("ready", flush=True)
try:
    {work}
    print("ended", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@contextmanager
def child(place: Place, work: str, **given: Any) -> Iterator[subprocess.Popen[str]]:
    given |= {"url": place.url, "options": place.options()}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(work=work), json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> float:
    """Sends Ctrl-C and says how long the process took to notice."""
    assert process.stdout is not None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.stdout.readline()
    took = time.monotonic() - started
    assert said == "interrupted\n", (said, process.communicate()[1])
    assert process.wait(10) == 0
    return took


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def backends(database: str) -> list[tuple[Any, ...]]:
    return rows_of(
        database,
        "SELECT pid, state, wait_event_type, query FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'",
    )


EXPORT = 'ParquetAnalyticsExporter(**place, source=given["source"]).export_daily_pageviews("2026-07-01")'


def test_progress_tells_rows_done_and_rows_there_are(place: Place, big_day: Exported) -> None:
    told: list[tuple[int, int | None]] = []
    place.exporter(big_day.database).export_daily_pageviews(DAY, progress=lambda *now: told.append(now))
    assert told[-1] == (200_000, 200_000)
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert {now[1] for now in told} <= {None, 200_000}
    assert len(told) > 2
    told.clear()
    place.exporter(views(), prefix="other").export_daily_pageviews(DAY, progress=lambda *now: told.append(now))
    assert told[-1] == (3, None)


def test_an_error_in_the_progress_callback_stops_the_export(place: Place, big_day: Exported) -> None:
    def full(done: int, total: int | None) -> None:
        raise RuntimeError("the disk of the progress bar is full")

    with pytest.raises(RuntimeError, match="progress bar"):
        place.exporter(big_day.database).export_daily_pageviews(DAY, progress=full)
    wait_for(lambda: not backends(big_day.database))


def test_ctrl_c_while_the_database_makes_us_wait(place: Place, big_day: Exported) -> None:
    # Somebody else holds a lock on the table, so that COPY waits.
    with psycopg.connect(big_day.database) as blocker:
        blocker.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        blocked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with child(place, EXPORT, source=big_day.database) as process:
            wait_for(lambda: rows_of(big_day.database, blocked))
            assert interrupt(process) < 1
        # Without a lock to wait for, the server notices that nobody listens any more.
        wait_for(lambda: not rows_of(big_day.database, blocked), 5)
    assert backends(big_day.database) == []
    assert place.keys() == []


def test_ctrl_c_in_the_middle_of_the_rows(place: Place, big_day: Exported) -> None:
    execute(big_day.database, "DROP VIEW IF EXISTS slow", "DROP FUNCTION IF EXISTS slowly")
    slow = """
        CREATE FUNCTION slowly(bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS
        'BEGIN PERFORM pg_sleep(0.001); RETURN $1; END'
    """
    view = (
        "CREATE VIEW slow AS SELECT slowly(id) AS id, project_id, version_id, path, full_path, view_count, date, "
        "status FROM analytics_pageview"
    )
    execute(big_day.database, slow, view)
    work = (
        'from parquet_analytics import PostgresSource; source = PostgresSource(given["source"], table="slow"); '
        'ParquetAnalyticsExporter(**place, source=source).export_daily_pageviews("2026-07-01")'
    )
    try:
        with child(place, work, source=big_day.database) as process:
            wait_for(lambda: any("COPY" in row[3] for row in backends(big_day.database)))
            time.sleep(0.5)
            assert interrupt(process) < 1
        wait_for(lambda: not backends(big_day.database), 5)
    finally:
        execute(big_day.database, "DROP VIEW slow", "DROP FUNCTION slowly")
    assert place.keys() == []


def test_ctrl_c_between_the_batches_of_a_slow_stream(place: Place) -> None:
    work = (
        "import pyarrow as pa; reader = SampleData(rows_per_day=10, projects=8).day('2026-07-01'); "
        "batch = reader.read_next_batch(); "
        "slow = lambda: ((time.sleep(0.2), batch)[1] for _ in range(600)); "
        "stream = pa.RecordBatchReader.from_batches(batch.schema, slow()); "
        "ParquetAnalyticsExporter(**place, source=stream).export_daily_pageviews('2026-07-01')"
    )
    with child(place, work) as process:
        time.sleep(1)
        assert interrupt(process) < 1
    assert place.keys() == []


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM pageviews a, pageviews b, pageviews c WHERE a.path || b.path < c.path",
        "SELECT sum(a.view_count::HUGEINT * b.view_count) FROM pageviews a JOIN pageviews b ON a.id <> b.id",
        "SELECT max(x) FROM range(1000000000000) AS t(x)",
    ],
)
def test_ctrl_c_during_heavy_sql(query: str, big_day: Exported) -> None:
    work = f'ParquetAnalyticsQuerier(**place).sql("{query}", since="2026-07-01", until="2026-07-01")'
    with child(big_day.place, work) as process:
        time.sleep(1.5)
        assert interrupt(process) < 1


def test_sql_that_takes_too_long_is_stopped(big_day: Exported) -> None:
    querier = big_day.place.querier(timeout=0.5)
    started = time.monotonic()
    with pytest.raises(ParquetAnalyticsError, match=r"0\.5") as caught:
        querier.sql("SELECT max(x) FROM range(1000000000000) AS t(x)")
    assert time.monotonic() - started < 5
    assert type(caught.value).__name__ == "QueryError"
    assert querier.sql("SELECT 1 AS one").to_pylist() == [{"one": 1}]


def test_other_threads_go_on_meanwhile(place: Place) -> None:
    sample = SampleData(rows_per_day=400_000, projects=100, weekly_rhythm=False, growth=0)
    beats: list[float] = []
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            beats.append(time.monotonic())
            time.sleep(0.005)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        started = time.monotonic()
        place.exporter(sample.day).export_daily_pageviews(DAY)
        querier = place.querier()
        querier.sql("SELECT count(DISTINCT path || full_path) FROM pageviews", since=DAY, until=DAY)
        ended = time.monotonic()
    finally:
        stop.set()
        thread.join()
    during = [started, *(moment for moment in beats if started < moment < ended), ended]
    longest = max(after - before for before, after in itertools.pairwise(during))
    assert ended - started > 0.2
    assert longest < 0.5 * (ended - started)
    assert len(during) > 10


def test_sixteen_threads_get_right_answers(week: Exported) -> None:
    querier = week.place.querier()
    slugs = week.sample.projects()["slug"].to_pylist()[:32]
    since, until = week.days[0], week.days[-1]
    expected = [querier.top_pages(slug, since, until, limit=1000).to_pylist() for slug in slugs]
    assert sum(map(bool, expected)) > 25

    def ask(number: int) -> bool:
        one = querier if number % 2 else week.place.querier()
        place = number % len(slugs)
        return one.top_pages(slugs[place], since, until, limit=1000).to_pylist() == expected[place]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(256)))


def test_a_querier_for_every_question_costs_nothing(week: Exported) -> None:
    slug = week.sample.special_projects()["largest"]
    span = week.days[0], week.days[-1]

    def fresh() -> ParquetAnalyticsQuerier:
        return week.place.querier(max_age=600)

    fresh().top_pages(slug, *span)
    again = fresh()
    answer = again.top_pages(slug, *span)
    assert again.stats is not None
    assert again.stats["footer_requests"] == 0
    threads = threading.active_count(), len(list(Path("/proc/self/task").iterdir()))
    started = time.monotonic()
    for _ in range(200):
        querier = fresh()
        assert querier.stats is None
    assert time.monotonic() - started < 2
    for _ in range(20):
        querier = fresh()
        assert querier.top_pages(slug, *span).equals(answer)
        assert querier.stats == again.stats
    assert len(list(Path("/proc/self/task").iterdir())) <= threads[1] + 4


def test_logs_go_to_pythons_logging_and_nothing_to_standard_error(
    place: Place, database: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sample = SampleData(rows_per_day=500, projects=10, weekly_rhythm=False, growth=0)
    sample.load_postgres(database, DAY, DAY)
    with caplog.at_level(logging.DEBUG):
        place.exporter(database).export_daily_pageviews(DAY)
        place.querier().top_pages("tiny-notes", DAY, DAY)
    ours = [record for record in caplog.records if record.name.split(".")[0] == "parquet_analytics"]
    assert any("500 rows" in record.getMessage() for record in ours)
    assert {record.name.split(".")[0] for record in caplog.records} <= {
        "parquet_analytics",
        "botocore",
        "boto3",
        "urllib3",
        "psycopg",
        "asyncio",
    }
    assert not any(record.levelno > logging.INFO for record in ours)
    assert capfd.readouterr() == ("", "")


def test_importing_starts_no_thread_and_needs_no_django() -> None:
    code = (
        "import os, sys, parquet_analytics as p; p.ParquetAnalyticsQuerier('memory://x'); "
        "print(len(os.listdir('/proc/self/task')), 'django' in sys.modules)"
    )
    before = "import os, sys, pyarrow; print(len(os.listdir('/proc/self/task')), 'django' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, env=environment).stdout
        for text in (before, code)
    ]
    assert said[0] == said[1]

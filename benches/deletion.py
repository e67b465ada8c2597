"""What letting a day's rows go costs the database: rows a second, write-ahead log, and how long inserts take meanwhile.

    python benches/deletion.py [--rows 5000000]

A PostgreSQL server of its own with durability on, Read the Docs' indexes, and a site that keeps inserting
(one row a transaction, as a page view does). The peer is what people do today: one DELETE by date.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import psycopg
from parquet_analytics import ParquetAnalyticsExporter, SampleData

from tests.services import Postgres, Workspace

DAY = datetime.date(2026, 7, 1)
INSERT = """
    INSERT INTO analytics_pageview (path, full_path, view_count, date, status, project_id)
    SELECT %(path)s, %(path)s, 1, current_date, 200, min(id) FROM projects_project
"""


class Site(threading.Thread):
    """Inserts a row every few milliseconds and notes how long each took."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.seconds, self.stopped = url, [], threading.Event()  # type: ignore[var-annotated]

    def run(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not self.stopped.wait(0.005):
                begun = time.perf_counter()
                connection.execute(INSERT, {"path": f"/new/{time.time_ns()}.html"})
                self.seconds.append(time.perf_counter() - begun)


@contextlib.contextmanager
def site(url: str) -> Iterator[Site]:
    running = Site(url)
    running.start()
    try:
        yield running
    finally:
        running.stopped.set()
        running.join()


def value(url: str, sql: str) -> float:
    with psycopg.connect(url) as connection:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return float(row[0])


def measure(name: str, url: str, rows: int, work: Callable[[], object]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    wal = value(url, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    with site(url) as running:
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
    wal = value(url, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn") - wal
    latency = sorted(1000 * second for second in running.seconds)
    p99 = latency[int(0.99 * (len(latency) - 1))]
    print(
        f"{name:34} {seconds:8.1f} s  {rows / seconds:10,.0f} rows/s  {wal / max(rows, 1):6.0f} B of WAL a row  "
        f"inserts: p50 {statistics.median(latency):5.1f} ms, p99 {p99:6.1f} ms, longest {latency[-1]:7.1f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of the day (default: five million)")
    rows = parser.parse_args().rows
    durable = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on"}
    with Workspace() as workspace, tempfile.TemporaryDirectory() as folder:
        postgres = Postgres.start(workspace, settings=durable | {"shared_buffers": "1GB", "wal_level": "replica"})
        sample = SampleData(rows_per_day=rows, projects=2_000, weekly_rhythm=False, growth=0)

        def filled() -> str:
            url = postgres.create_database()
            sample.load_postgres(url, DAY, DAY)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE analytics_pageview")
                indexes = connection.execute(
                    "SELECT count(*) FROM pg_indexes WHERE tablename = 'analytics_pageview'"
                ).fetchone()
                assert indexes == (5,), f"four indexes and the primary key were expected, found {indexes}"
            return url

        url = filled()
        exporter = ParquetAnalyticsExporter(Path(folder).as_uri(), source=url)
        exporter.export_daily_pageviews(DAY)
        measure("nothing but inserts", url, 0, lambda: time.sleep(20))
        measure(
            "delete_exported_pageviews",
            url,
            rows,
            lambda: exporter.delete_exported_pageviews(DAY, allow_local_delete=True),
        )
        postgres.drop_database(url)

        url = filled()
        exporter = ParquetAnalyticsExporter((Path(folder) / "gentle").as_uri(), source=url)
        gentle = min(rows, 500_000)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "DELETE FROM analytics_pageview WHERE id IN (SELECT id FROM analytics_pageview OFFSET %s)", [gentle]
            )
            connection.execute("VACUUM ANALYZE analytics_pageview")
        exporter.export_daily_pageviews(DAY)
        measure(
            "the same, at most 10,000 rows/s",
            url,
            gentle,
            lambda: exporter.delete_exported_pageviews(
                DAY, allow_local_delete=True, batch_rows=1_000, max_rows_per_second=10_000
            ),
        )
        postgres.drop_database(url)

        url = filled()

        def by_date() -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DELETE FROM analytics_pageview WHERE date = %s", [DAY])

        measure("one DELETE by date", url, rows, by_date)


if __name__ == "__main__":
    main()

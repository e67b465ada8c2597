"""Side by side with what else does this job, in one run on one machine: `make bench`, or with --rows and --days.

Every contender does the whole work: from the same PostgreSQL to one sorted Parquet file with slugs on local disk, and
from the same files to the same answer. Rounds take turns, so that a busy machine is busy for all. Printed are the
fastest and the median round, and the ratio of the medians to ours.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.services import Postgres, Workspace

DAY = datetime.date(2026, 7, 1)
ORDER = ["project_slug", "status", "path", "version_slug", "id"]
JOINED = """SELECT v.id, v.project_id, p.slug AS project_slug, v.version_id, b.slug AS version_slug, v.path,
    v.full_path, v.view_count, v.date, v.status FROM analytics_pageview v JOIN projects_project p ON p.id = v.project_id
    LEFT JOIN builds_version b ON b.id = v.version_id WHERE v.date = %(day)s"""
SORTED = JOINED + ' ORDER BY p.slug COLLATE "C", v.status, v.path COLLATE "C", b.slug COLLATE "C" NULLS FIRST, v.id'
TOP_PAGES = """SELECT path, sum(view_count)::BIGINT AS count FROM {} WHERE project_slug = $1 AND status = 200
    GROUP BY path ORDER BY count DESC, path LIMIT 10"""

Contender = Callable[[], Any]


def take_turns(title: str, rounds: int, contenders: dict[str, Contender], same: Callable[[Any], Any]) -> None:
    """Times the contenders in turns, after one round that is not counted, and checks that they agree."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            began = time.perf_counter()
            answer = contender()
            if turn:
                seconds[name].append(time.perf_counter() - began)
            answers[name] = same(answer)
    ours, *others = answers.values()
    if any(other != ours for other in others):
        raise SystemExit(f"{title}: the contenders do not agree: {answers}")
    first = statistics.median(next(iter(seconds.values())))
    print(f"\n{title} ({rounds} rounds)\n  {'':<52}{'fastest':>10}{'median':>10}{'ratio':>8}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:<52}{min(times) * 1000:>7.1f} ms{median * 1000:>7.1f} ms{median / first:>8.2f}")


def export(url: str, folder: Path, rounds: int) -> None:
    """From the database to one sorted file."""
    number = iter(range(10_000))

    def ours() -> Path:
        place = folder / f"ours{next(number)}"
        result = ParquetAnalyticsExporter(place.as_uri(), source=url).export_daily_pageviews(DAY)
        return place / next(iter(result["files"]))

    def write(table: pa.Table) -> Path:
        place = folder / f"peer{next(number)}.parquet"
        pq.write_table(table, place, compression="zstd", row_group_size=122_880)
        return place

    def copied(query: str) -> pa.Table:
        buffer = io.BytesIO()
        statement = f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)"
        with psycopg.connect(url) as connection, connection.cursor().copy(statement, {"day": DAY}) as copy:
            for chunk in copy:
                buffer.write(chunk)
        buffer.seek(0)
        strings = {
            "path": pa.string(),
            "full_path": pa.string(),
            "project_slug": pa.string(),
            "version_slug": pa.string(),
        }
        options = pyarrow.csv.ConvertOptions(
            column_types=strings, strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        return pyarrow.csv.read_csv(buffer, convert_options=options)

    def rowwise() -> Path:
        with psycopg.connect(url) as connection, connection.cursor(name="rows") as cursor:
            cursor.itersize = 10_000
            cursor.execute(SORTED, {"day": DAY})
            names = [column.name for column in cursor.description or ()]
            columns = list(zip(*cursor, strict=True))
            rows = dict(zip(names, map(list, columns), strict=True))
        return write(pa.table(rows))

    order = [(name, "ascending") for name in ORDER]
    contenders: dict[str, Contender] = {
        "parquet-analytics": ours,
        "COPY csv, joined; sorted and written by pyarrow": lambda: write(copied(JOINED).sort_by(order)),
        "COPY csv, joined and sorted by PostgreSQL; pyarrow": lambda: write(copied(SORTED)),
        "psycopg rows, joined and sorted by PostgreSQL; pyarrow": rowwise,
    }
    sizes: dict[str, int] = {}

    def facts(path: Path) -> tuple[int, int]:
        table = pq.read_table(path, columns=["view_count"])
        sizes["ours" if path.name.startswith("pageviews_") else "peer"] = path.stat().st_size
        path.unlink()
        return table.num_rows, pc.sum(table["view_count"]).as_py()

    take_turns("A day from PostgreSQL to one sorted Parquet file", rounds, contenders, facts)
    print("  file size: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))


def query(url: str, sample: SampleData, folder: Path, days: int, rounds: int) -> None:
    """Top pages of some projects over all days, from the same files and from the database."""
    since = DAY - datetime.timedelta(days=days - 1)
    exporter = ParquetAnalyticsExporter(folder.as_uri(), source=url)
    for number in range(days):
        exporter.export_daily_pageviews(since + datetime.timedelta(days=number))
    files = sorted(str(path) for path in folder.rglob("*.parquet"))
    special = sample.special_projects()
    slugs = sample.projects()["slug"].to_pylist()
    middle = next(slug for slug in slugs[len(slugs) // 2 :] if slug not in special.values())
    connection = duckdb.connect()
    database = psycopg.connect(url, autocommit=True)
    in_database = """SELECT path, sum(view_count)::bigint
        FROM analytics_pageview v JOIN projects_project p ON p.id = v.project_id
        WHERE p.slug = %s AND status = 200 AND date BETWEEN %s AND %s
        GROUP BY path ORDER BY 2 DESC, path COLLATE "C" LIMIT 10"""

    for kind, slug in (("the largest project", special["largest"]), ("a middling project", middle)):

        def ours(slug: str = slug, age: float | None = None) -> list[tuple[str, int]]:
            querier = ParquetAnalyticsQuerier(folder.as_uri(), max_age=age)
            table = querier.top_pages(slug, since, DAY)
            return list(zip(table["path"].to_pylist(), table["count"].to_pylist(), strict=True))

        def duck(slug: str = slug) -> list[tuple[str, int]]:
            return connection.execute(TOP_PAGES.format("read_parquet($2)"), [slug, files]).fetchall()

        def dataset(slug: str = slug) -> list[tuple[str, int]]:
            wanted = (pc.field("project_slug") == slug) & (pc.field("status") == 200)
            table = pyarrow.dataset.dataset(files).to_table(columns=["path", "view_count"], filter=wanted)
            totals = table.group_by("path").aggregate([("view_count", "sum")])
            totals = totals.sort_by([("view_count_sum", "descending"), ("path", "ascending")]).slice(0, 10)
            return list(zip(totals["path"].to_pylist(), totals["view_count_sum"].to_pylist(), strict=True))

        contenders: dict[str, Contender] = {
            "parquet-analytics": ours,
            "parquet-analytics, asking for every footer again": lambda ours=ours: ours(age=0.0),
            "DuckDB's own Python package, read_parquet": duck,
            "pyarrow.dataset and group_by": dataset,
            "PostgreSQL, with Read the Docs' covering index": lambda slug=slug: database.execute(
                in_database, (slug, since, DAY)
            ).fetchall(),
        }
        take_turns(f"Top pages of {kind} over {days} days", rounds, contenders, list)
    database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the exported day")
    parser.add_argument("--days", type=int, default=30, help="days that are asked about")
    parser.add_argument("--rows-per-day", type=int, default=30_000, help="rows of each of those days")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; Python {platform.python_version()}")
    with Workspace() as workspace, tempfile.TemporaryDirectory() as folder:
        server = Postgres.start(workspace)
        for part, rows, days in (("export", options.rows, 1), ("query", options.rows_per_day, options.days)):
            url = server.create_database()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            sample = SampleData(rows_per_day=rows, projects=500, growth=0, weekly_rhythm=False)
            sample.load_postgres(url, DAY - datetime.timedelta(days=days - 1), DAY)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            if part == "export":
                export(url, Path(folder) / part, options.rounds)
            else:
                query(url, sample, Path(folder) / part, days, options.rounds * 4)


if __name__ == "__main__":
    main()

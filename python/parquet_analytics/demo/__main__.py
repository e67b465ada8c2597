"""`python -m parquet_analytics.demo`: traffic, export of every day, and a dashboard's questions."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, PostgresSource
from parquet_analytics.demo.terminal import Terminal, number, seconds, size
from parquet_analytics.exceptions import ParquetAnalyticsError
from parquet_analytics.sample import SampleData

out = Terminal()

RANKING = """\
SELECT project_slug, sum(view_count) AS views, count(DISTINCT path) AS pages,
       sum(view_count) FILTER (status = 404) / sum(view_count) AS missing
FROM pageviews GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 6"""


@dataclass
class Place:
    """Where the demo's rows and files are."""

    folder: Path
    database: dict[str, object]
    database_name: str
    source: Any
    storage: str
    storage_options: dict[str, str] | None = None
    storage_name: str = ""
    postgres_url: str | None = None
    services: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m parquet_analytics.demo", description=__doc__)
    parser.add_argument("--days", type=int, default=28, metavar="N", help="days of traffic, ending yesterday (28)")
    parser.add_argument("--rows", type=int, default=2_000, metavar="N", help="rows on an ordinary day (2000)")
    parser.add_argument("--projects", type=int, default=60, metavar="N", help="projects, 8 or more (60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, other traffic (1)")
    parser.add_argument("--pg", "--postgres", action="store_true", help="a real PostgreSQL instead of SQLite")
    parser.add_argument("--s3", action="store_true", help="a real S3 server instead of a local folder")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep database and files there")
    options = parser.parse_args()
    if options.days < 1 or options.rows < 1:
        parser.error("--days and --rows begin at 1")
    started = time.perf_counter()
    try:
        sample = SampleData(rows_per_day=options.rows, projects=options.projects, seed=options.seed)
        with place(options) as where:
            run(where, sample, options.days)
            out.heading("Done", f"in {seconds(time.perf_counter() - started)}")
            ending(where, options)
    except (ParquetAnalyticsError, Unusable) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped", file=sys.stderr)
        return 130
    return 0


class Unusable(Exception):
    """The demo cannot run as asked."""


@contextlib.contextmanager
def place(options: argparse.Namespace) -> Iterator[Place]:
    """Prepares folder and servers, and cleans up what was not asked to be kept."""
    from parquet_analytics.demo import site

    with contextlib.ExitStack() as stack:
        if options.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parquet-analytics-demo-")))
        else:
            folder = options.keep.resolve()
            if folder.exists() and any(folder.iterdir()):
                raise Unusable(f"{folder} is not empty; name a new folder")
            folder.mkdir(parents=True, exist_ok=True)
        store = folder / "store"
        store.mkdir()
        where = Place(
            folder=folder,
            database=site.sqlite(folder / "demo.sqlite3"),
            database_name="SQLite",
            source=None,
            storage=store.as_uri(),
            storage_name="a local folder",
        )
        if options.pg or options.s3:
            start_servers(stack, where, pg=options.pg, s3=options.s3)
        site.setup(where.database)
        if where.source is None:
            from parquet_analytics.demo.analytics.models import PageView

            where.source = PageView
        yield where


def start_servers(stack: contextlib.ExitStack, where: Place, *, pg: bool, s3: bool) -> None:
    from parquet_analytics.demo import site

    try:
        from tests import services
    except ImportError as error:
        raise Unusable(
            "--pg and --s3 start their servers with tests/services; run the demo from a clone of the "
            f"repository, with the packages of requirements-dev.txt ({error})"
        ) from None
    try:
        workspace = stack.enter_context(services.Workspace())
        if pg:
            out.working("starting PostgreSQL ...")
            begun = time.perf_counter()
            postgres = services.Postgres.start(workspace)
            where.postgres_url = postgres.url
            where.database = site.postgresql(where.postgres_url)
            where.database_name = f"PostgreSQL {postgres.version}"
            where.source = PostgresSource(where.postgres_url)
            where.services.append(f"PostgreSQL {postgres.version} started in {seconds(time.perf_counter() - begun)}")
        if s3:
            out.working("starting an S3 server ...")
            begun = time.perf_counter()
            server = services.S3.start(workspace)
            where.storage = f"s3://{server.bucket}/demo"
            where.storage_name = "S3"
            where.storage_options = {
                "endpoint_url": server.endpoint_url,
                "region": server.region,
                "allow_http": "true",
                **server.admin.as_json(),
            }
            where.services.append(f"S3 server (SeaweedFS) started in {seconds(time.perf_counter() - begun)}")
    except services.Unavailable as error:
        raise Unusable(str(error)) from None
    finally:
        out.done_working()


def run(where: Place, sample: SampleData, count: int) -> None:
    yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    days = [yesterday - datetime.timedelta(days=back) for back in reversed(range(count))]
    print(out.strong("parquet-analytics") + out.faint(f"  from {where.database_name} to {where.storage_name}"))
    for service in where.services:
        out.line(service)
    create_traffic(where, sample, days)
    exporter = ParquetAnalyticsExporter(where.storage, source=where.source, storage_options=where.storage_options)
    export(exporter, days)
    querier = ParquetAnalyticsQuerier(where.storage, storage_options=where.storage_options)
    dashboard(querier, sample, days)


def create_traffic(where: Place, sample: SampleData, days: list[datetime.date]) -> None:
    from parquet_analytics.demo import site

    out.heading("1  Traffic", "a Django site with the models of Read the Docs")
    site.create_tables()
    total = sum(sample.rows(day) for day in days)
    begun = time.perf_counter()
    if where.postgres_url:
        out.working(f"loading {number(total)} rows with COPY ...")
        rows = sample.load_postgres(where.postgres_url, days[0], days[-1], create_tables=False)
        how = "with binary COPY"
    else:
        rows = site.insert(sample, days, lambda done: out.working(f"{number(done)} of {number(total)} rows ..."))
        how = "with the ORM"
    out.done_working()
    took = time.perf_counter() - begun
    out.line(f"{number(sample.projects().num_rows)} projects, {number(sample.versions().num_rows)} versions")
    out.line(
        f"{number(rows)} rows of {len(days)} days, {days[0]} to {days[-1]}, "
        f"into {where.database_name} {how} in {seconds(took)}"
    )


def export(exporter: ParquetAnalyticsExporter, days: list[datetime.date]) -> None:
    out.heading("2  Export", "every finished day becomes one sorted Parquet file")
    rows, written, lines = 0, 0, []
    begun = time.perf_counter()
    for day in days:
        out.working(f"{day} ...")
        start = time.perf_counter()
        result = exporter.export_daily_pageviews(day)
        took = time.perf_counter() - start
        rows += result["total_records"]
        written += result["bytes"]
        (key,) = result["files"]
        lines.append([str(day), number(result["total_records"]), size(result["bytes"]), seconds(took), key])
    took = time.perf_counter() - begun
    out.done_working()
    shown = lines if len(lines) <= 8 else [*lines[:3], ["...", "", "", "", ""], *lines[-3:]]
    out.table(["day", "rows", "bytes", "took", "key"], shown, "<>>><")
    out.line()
    out.line(
        f"{number(rows)} rows in {len(days)} files, {size(written)} "
        f"({written / max(rows, 1):.1f} bytes a row), in {seconds(took)}"
    )


def dashboard(querier: ParquetAnalyticsQuerier, sample: SampleData, days: list[datetime.date]) -> None:
    slug = sample.special_projects()["largest"]
    since, until = days[0], days[-1]

    # Where the process first opens DuckDB, reads footers and connects, as a web worker does once.
    _, cold = timed(lambda: querier.top_pages(slug, since, until))

    pages, took = timed(lambda: querier.top_pages(slug, since, until))
    out.heading(f"3  Top pages of {slug}", cost(querier, took))
    most = max(pages["count"].to_pylist(), default=0)
    width = min(60, out.width // 2)
    rows = [
        [out.shorten(row["path"], width), number(row["count"]), out.bar(row["count"], most, out.width - width - 20)]
        for row in pages.to_pylist()
    ]
    out.table(["path", "views", ""], rows, "<><")
    verdict(pages.to_pylist(), lambda: in_database(slug, since, until, "path", 200, 10))

    totals, took = timed(lambda: querier.daily_totals(slug, since, until, fill=True))
    out.heading(f"4  Daily views of {slug}", cost(querier, took))
    chart([(row["date"], row["count"]) for row in totals.to_pylist()])
    verdict(
        [row for row in totals.to_pylist() if row["count"]],
        lambda: in_database(slug, since, until, "date", 200, None),
    )

    missing, took = timed(lambda: querier.top_pages(slug, since, until, status=404, limit=8))
    out.heading(f"5  Pages not found of {slug}", cost(querier, took))
    rows = [[out.shorten(row["path"], out.width - 20), number(row["count"])] for row in missing.to_pylist()]
    out.table(["path", "views"], rows, "<>")
    verdict(missing.to_pylist(), lambda: in_database(slug, since, until, "path", 404, 8))

    ranking, took = timed(lambda: querier.sql(RANKING, since=since, until=until))
    out.heading("6  Any other question, in SQL", cost(querier, took))
    for line in RANKING.splitlines():
        out.line(out.faint(line))
    out.line()
    rows = [
        [row["project_slug"], number(row["views"]), number(row["pages"]), f"{row['missing'] or 0:.1%}"]
        for row in ranking.to_pylist()
    ]
    out.table(["project", "views", "pages", "404"], rows, "<>>>")
    out.line()
    out.line(out.faint(f"The first question of all took {seconds(cold)}: it read the footers and started DuckDB."))


def chart(days: list[tuple[datetime.date, int]]) -> None:
    most = max((count for _, count in days), default=0)
    for day, count in days:
        label = f"{day:%a %d %b}"
        text = f"{label}  {number(count):>9}  {out.bar(count, most, out.width - 28)}"
        out.line(out.faint(text) if day.weekday() >= 5 else text)


def cost(querier: ParquetAnalyticsQuerier, took: float) -> str:
    stats = querier.stats or {}
    requests = stats.get("data_requests", 0)
    waves = stats.get("waves", 0)
    return (
        f"{seconds(took)} {out.dot} {stats.get('present', 0)} files {out.dot} {requests} reads in {waves} "
        f"wave{'' if waves == 1 else 's'} {out.dot} {size(stats.get('bytes', 0))}"
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def in_database(
    slug: str, since: datetime.date, until: datetime.date, by: str, status: int, limit: int | None
) -> list[dict[str, Any]]:
    """The same question asked of the database, in the ORM."""
    from django.db.models import Sum

    from parquet_analytics.demo.analytics.models import PageView

    chosen = PageView.objects.filter(project__slug=slug, date__range=(since, until), status=status)
    groups = chosen.values(by).annotate(count=Sum("view_count"))
    # Ties are broken here, where no collation has a say.
    rows = sorted(
        groups, key=lambda row: (-row["count"] if limit else 0, row[by] if by == "date" else row[by].encode())
    )
    return [{by: row[by], "count": row["count"]} for row in rows[:limit]]


def verdict(ours: list[dict[str, Any]], ask: Callable[[], list[dict[str, Any]]]) -> None:
    theirs, took = timed(ask)
    out.line()
    if ours != theirs:
        raise Unusable("the files and the database answer differently, which is a defect; please report it")
    out.line(out.good("the database gives the same answer") + out.faint(f", in {seconds(took)}"))


def ending(where: Place, options: argparse.Namespace) -> None:
    if options.keep is None:
        out.line("Everything is removed now; --keep DIR keeps what is on this machine's disk.")
    elif where.storage_options is None:
        out.line(f"Kept in {where.folder}; ParquetAnalyticsQuerier({where.storage!r}) answers from it.")
    else:
        out.line(f"Kept in {where.folder}; what was on the S3 server is gone.")
    if not (options.pg and options.s3):
        out.line("With a real PostgreSQL and a real S3 server, in a clone of the repository: make demo PG=1 S3=1")


if __name__ == "__main__":
    sys.exit(main())

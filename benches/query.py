"""Questions to a store that is far away, and to local files, beside what else answers them: `make bench-query`.

    python benches/query.py [--rows 5000000] [--days 90] [--projects 20000] [--rounds 20]

Makes the days once, compacts them, and keeps them in ~/.cache/parquet-analytics/bench. A real S3 server holds a copy,
behind a layer that adds latency and bandwidth and counts at the wire (benches/distant_store.rs). Printed are, for each
question, p50 and p99 in milliseconds, requests, those of them with data, waves and bytes of one question, dollars for a
million of them at S3's list price, and the floor: as many requests for as many bytes, sent at once by a plain HTTP
client. Peers read the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

import duckdb
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData

from tests.services import S3, Workspace

UNTIL = datetime.date(2026, 7, 30)
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parquet-analytics" / "bench"
DOLLARS_A_GET = 0.0004 / 1000
HTTPFS = ["duckdb==1.5.5", "duckdb-extension-httpfs==1.5.5"]

TOP_PAGES = """SELECT path, sum(view_count)::BIGINT AS count FROM read_parquet($2)
    WHERE project_slug = $1 AND status = $3 GROUP BY path ORDER BY count DESC, path LIMIT 10"""
DAILY_TOTALS = """SELECT date, sum(view_count)::BIGINT AS count FROM read_parquet($2)
    WHERE project_slug = $1 AND status = $3 GROUP BY date ORDER BY date"""


class DistantStore:
    """The layer in front of the S3 server."""

    def __init__(self, upstream: str, p50: float, p99: float, bandwidth: float) -> None:
        program = build_distant_store()
        address = urlsplit(upstream).netloc
        options = ["--p50", str(p50), "--p99", str(p99), "--bandwidth", str(bandwidth)]
        self.process = subprocess.Popen([program, "--to", address, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def counters(self) -> dict[str, Any]:
        """What was counted since the last look."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("GET", "/distant-store/counters")
        counted: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return counted

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def build_distant_store() -> Path:
    root = Path(__file__).parent.parent
    build = ["cargo", "build", "--release", "--locked", "--example", "distant_store", "--message-format", "json"]
    done = subprocess.run(
        ["scripts/with-duckdb.sh", "", *build], cwd=root, stdout=subprocess.PIPE, check=True, text=True
    )
    for line in done.stdout.splitlines():
        said = json.loads(line)
        if said.get("executable") and said["target"]["name"] == "distant_store":
            return Path(said["executable"])
    raise SystemExit("cargo did not say where the example is")


def floor(url: str, requests: int, bytes_each: int, rounds: int) -> float:
    """Seconds (median) that so many requests for so many bytes take, all at once, over connections that stand."""
    address = urlsplit(url).netloc
    connections = [http.client.HTTPConnection(address, timeout=60) for _ in range(requests)]

    def ask(connection: http.client.HTTPConnection) -> None:
        connection.request("GET", f"/distant-store/bytes/{bytes_each}")
        connection.getresponse().read()

    seconds = []
    for turn in range(rounds + 1):
        threads = [threading.Thread(target=ask, args=(connection,)) for connection in connections]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if turn:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def make_days(sample: SampleData, folder: Path, since: datetime.date) -> list[Path]:
    exporter = ParquetAnalyticsExporter(folder.as_uri(), source=sample.day)
    files = []
    for number in range((UNTIL - since).days + 1):
        day = since + datetime.timedelta(days=number)
        file = folder / exporter.get_parquet_path(day)
        if not file.exists():
            exporter.export_daily_pageviews(day)
            print(f"  made {day}", file=sys.stderr, flush=True)
        files.append(file)
    compact(exporter)
    return files


def compact(exporter: ParquetAnalyticsExporter) -> None:
    began = time.perf_counter()
    changed = [month for month in exporter.compact() if month["outcome"] != "unchanged"]
    if changed:
        print(f"  compacted in {time.perf_counter() - began:.1f} s: {changed}", file=sys.stderr, flush=True)


def upload(s3: S3, folder: Path, files: list[Path]) -> None:
    client = s3.client()
    for file in files:
        client.upload_file(str(file), s3.bucket, str(file.relative_to(folder)))


UNIQUE = itertools.count(1_000)


class Table:
    """Lines of figures as they come."""

    COLUMNS = ("p50 ms", "p99 ms", "requests", "data", "waves", "kB", "$/million", "floor ms")

    def __init__(self, title: str) -> None:
        print(f"\n{title}\n  {'':<46}" + "".join(f"{name:>11}" for name in self.COLUMNS))

    def line(
        self, name: str, seconds: list[float], counted: dict[str, Any] | None = None, floor: float | None = None
    ) -> None:
        ordered = sorted(1000 * each for each in seconds)
        figures = [f"{statistics.median(ordered):.1f}", f"{ordered[-(len(ordered) // 100) - 1]:.1f}"]
        if counted is not None:
            rounds = len(seconds)
            with_data = counted["statuses"].get("206", 0) + counted["statuses"].get("200", 0)
            figures += [
                f"{counted['requests'] / rounds:.1f}",
                f"{with_data / rounds:.1f}",
                f"{counted['waves'] / rounds:.1f}",
                f"{counted['sent'] / rounds / 1000:.0f}",
                f"{1e6 * DOLLARS_A_GET * counted['requests'] / rounds:.2f}",
                "" if floor is None else f"{1000 * floor:.1f}",
            ]
        print(f"  {name:<46}" + "".join(f"{figure:>11}" for figure in figures), flush=True)


def timed(ask: Callable[[], Any], rounds: int) -> tuple[list[float], Any]:
    answer = ask()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        answer = ask()
        seconds.append(time.perf_counter() - began)
    return seconds, answer


def pairs(table: Any) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


CHILD = """
import json, sys, time
began = time.perf_counter()
from parquet_analytics import ParquetAnalyticsQuerier
given = json.loads(sys.argv[1])
imported = time.perf_counter()
querier = ParquetAnalyticsQuerier(given["url"], storage_options=given["options"], cache_dir=given["cache"])
getattr(querier, given["report"])(*given["question"], **given["named"])
answered = time.perf_counter()
# What other processes will find is written beside the answer.
time.sleep(0.2)
print(json.dumps([imported - began, answered - imported]))
"""

HTTPFS_CHILD = """
import json, pathlib, sys, time, duckdb, duckdb_extension_httpfs
given = json.loads(sys.argv[1])
connection = duckdb.connect()
[extension] = pathlib.Path(duckdb_extension_httpfs.__file__).parent.rglob("httpfs.duckdb_extension")
connection.load_extension(str(extension))
for statement in given["settings"]:
    connection.execute(statement)
seconds = []
for turn in range(given["rounds"] + 1):
    began = time.perf_counter()
    connection.execute(given["sql"], given["parameters"]).fetchall()
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds[1:]))
"""


def process(program: str, given: dict[str, Any], python: str | Path = sys.executable) -> Any:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if python != sys.executable:
        environment.pop("PYTHONPATH")
    done = subprocess.run([python, "-c", program, json.dumps(given)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def httpfs_python() -> Path:
    """An environment with the DuckDB that has an extension for S3 as a wheel."""
    home = CACHE / "duckdb-httpfs"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *HTTPFS], check=True)
    return python


def projects(sample: SampleData, wanted: dict[str, int]) -> dict[str, str]:
    """Slugs of projects with about so many rows a day."""
    counts = pyarrow.Table.from_batches(sample.day(UNTIL)).group_by("project_slug").aggregate([("id", "count")])
    by_rows = sorted(zip(counts["id_count"].to_pylist(), counts["project_slug"].to_pylist(), strict=True))
    special = set(sample.special_projects().values())
    chosen = {"largest": by_rows[-1][1]}
    for name, rows in wanted.items():
        ordinary = [each for each in by_rows if each[1] not in special]
        chosen[name] = min(ordinary, key=lambda each: abs(each[0] - rows))[1]
    return chosen


def distant(s3: S3, store: DistantStore, slugs: dict[str, str], spans: list[int], rounds: int) -> None:
    options = {"endpoint_url": store.url, "region": s3.region, "allow_http": "true"} | s3.admin.as_json()
    url = f"s3://{s3.bucket}"
    python = httpfs_python()
    settings = [
        f"SET s3_endpoint = '{store.address}'",
        "SET s3_url_style = 'path'",
        "SET s3_use_ssl = false",
        f"SET s3_region = '{s3.region}'",
        f"SET s3_access_key_id = '{s3.admin.access_key_id}'",
        f"SET s3_secret_access_key = '{s3.admin.secret_access_key}'",
        "SET enable_http_metadata_cache = true",
        "SET threads = 32",
    ]
    for kind, slug in slugs.items():
        for days in spans:
            since = UNTIL - datetime.timedelta(days=days - 1)
            for report, status in (("top_pages", 200), ("top_pages", 404), ("daily_totals", 200)):
                table = Table(f"{report}, status {status}, {days} days, {kind} project, from a store far away")
                querier = ParquetAnalyticsQuerier(url, storage_options=options, max_age=0)
                # Not questions that were asked before, but for the second line.
                anew = [
                    {"limit": 10 + turn} if report == "top_pages" else {"since": since + datetime.timedelta(days=turn)}
                    for turn in range(rounds + 1 if report == "top_pages" else 6)
                ]
                for name, variations in (("warm", anew), ("asked again", [{}] * (rounds + 1))):
                    seconds = []
                    for turn, variation in enumerate(variations):
                        if turn == 1:
                            store.counters()
                        began = time.perf_counter()
                        getattr(querier, report)(
                            slug, **({"since": since, "until": UNTIL, "status": status} | variation)
                        )
                        seconds.append(time.perf_counter() - began)
                    counted, turns = store.counters(), len(seconds) - 1
                    data = max(1, round(counted["statuses"].get("206", 0) / turns))
                    least = floor(store.url, counted["requests"] // turns, counted["sent"] // turns // data, rounds)
                    store.counters()
                    table.line(f"parquet-analytics, {name}", seconds[1:], counted, least)
                named = {"since": since.isoformat(), "until": UNTIL.isoformat(), "status": status}
                given = {"url": url, "options": options, "report": report, "question": [slug], "named": named}
                processes = range(max(1, rounds // 4))
                first = [process(CHILD, given | {"cache": None})[1] for _ in processes]
                table.line("parquet-analytics, a first process", first, store.counters())
                with tempfile.TemporaryDirectory() as cache:
                    process(CHILD, given | {"cache": cache})
                    store.counters()
                    later = [process(CHILD, given | {"cache": cache})[1] for _ in processes]
                    table.line("parquet-analytics, a later process", later, store.counters())
                files = [
                    f"s3://{s3.bucket}/analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet"
                    for day in span(since)
                ]
                sql = TOP_PAGES if report == "top_pages" else DAILY_TOTALS
                few = max(1, rounds // 10)
                asked = {"settings": settings, "rounds": few, "sql": sql, "parameters": [slug, files, status]}
                seconds = process(HTTPFS_CHILD, asked, python)
                # The first, which is not timed, is counted as well.
                table.line("DuckDB 1.5.5, httpfs", seconds, store.counters() if few > 1 else None)


def span(since: datetime.date) -> list[datetime.date]:
    return [since + datetime.timedelta(days=number) for number in range((UNTIL - since).days + 1)]


def local(folder: Path, slugs: dict[str, str], spans: list[int], rounds: int) -> None:
    connection = duckdb.connect()
    for kind, slug in slugs.items():
        for days in spans:
            since = UNTIL - datetime.timedelta(days=days - 1)
            files = [str(folder / f"analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet") for day in span(since)]
            table = Table(f"top_pages, status 200, {days} days, {kind} project, from local files")
            querier = ParquetAnalyticsQuerier(folder.as_uri())
            days_alone = ParquetAnalyticsQuerier(folder.as_uri(), months=False)
            wanted = (pc.field("project_slug") == slug) & (pc.field("status") == 200)

            def ours() -> Any:
                # Not the question that was asked before.
                return pairs(querier.top_pages(slug, since, UNTIL, limit=next(UNIQUE)).slice(0, 10))  # noqa: B023

            def of_days() -> Any:
                return pairs(days_alone.top_pages(slug, since, UNTIL, limit=next(UNIQUE)).slice(0, 10))  # noqa: B023

            def duck() -> Any:
                return connection.execute(TOP_PAGES, [slug, files, 200]).fetchall()  # noqa: B023

            def polars() -> Any:
                frame = pl.scan_parquet(files).filter(pl.col("project_slug") == slug, pl.col("status") == 200)  # noqa: B023
                totals = frame.group_by("path").agg(pl.col("view_count").cast(pl.Int64).sum())
                return totals.sort(["view_count", "path"], descending=[True, False]).head(10).collect().rows()

            def dataset() -> Any:
                rows = pyarrow.dataset.dataset(files).to_table(columns=["path", "view_count"], filter=wanted)  # noqa: B023
                totals = rows.group_by("path").aggregate([("view_count", "sum")])
                return pairs(totals.sort_by([("view_count_sum", "descending"), ("path", "ascending")]).slice(0, 10))

            contenders = {
                "parquet-analytics": ours,
                "the same, months=False": of_days,
                f"DuckDB {duckdb.__version__}": duck,
            }
            contenders |= {f"Polars {pl.__version__}": polars, f"pyarrow.dataset {pyarrow.__version__}": dataset}
            answers = []
            for name, ask in contenders.items():
                seconds, answer = timed(ask, rounds if name == "parquet-analytics" else max(2, rounds // 4))
                table.line(name, seconds)
                answers.append(answer)
            if any(answer != answers[0] for answer in answers):
                raise SystemExit(f"the contenders do not agree: {answers}")


@contextlib.contextmanager
def far_away(s3: S3, options: argparse.Namespace) -> Iterator[DistantStore]:
    store = DistantStore(s3.endpoint_url, options.p50, options.p99, options.bandwidth)
    try:
        yield store
    finally:
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of a day")
    parser.add_argument("--projects", type=int, default=20_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--p50", type=float, default=30, help="milliseconds to the first byte of an answer")
    parser.add_argument("--p99", type=float, default=100)
    parser.add_argument("--bandwidth", type=float, default=80, help="megabytes a second of a connection")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}; "
        f"{options.rows:,} rows a day, {options.projects:,} projects, {options.days} days; a store with p50 "
        f"{options.p50:.0f} ms, p99 {options.p99:.0f} ms, {options.bandwidth:.0f} MB/s a connection"
    )
    sample = SampleData(rows_per_day=options.rows, projects=options.projects, weekly_rhythm=False, growth=0)
    folder = CACHE / f"days-{options.rows}-{options.projects}"
    files = make_days(sample, folder, UNTIL - datetime.timedelta(days=options.days - 1))
    slugs = projects(sample, {"2,000 rows a day": 2_000, "20 rows a day": 20})
    spans = sorted({min(30, options.days), min(90, options.days)})
    local(folder, slugs, spans, options.rounds)
    with Workspace() as workspace:
        s3 = S3.start(workspace)
        upload(s3, folder, files)
        near = {"endpoint_url": s3.endpoint_url, "region": s3.region, "allow_http": "true"} | s3.admin.as_json()
        compact(ParquetAnalyticsExporter(f"s3://{s3.bucket}", storage_options=near))
        with far_away(s3, options) as store:
            distant(s3, store, slugs, spans, options.rounds)


if __name__ == "__main__":
    main()

"""What goes wrong between the database, the store and the disk, one fault at a time, injected for real.

After each: no file but a whole one under the day's key, no row lost, an error that says whether to try again, and a
second run that ends well. Kills at every step are in test_kill_sweep.py, faults in any order in test_torture.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource, SampleData
from parquet_analytics.exceptions import (
    CommitStateUnknown,
    CorruptFile,
    DatabaseError,
    DeletionRefused,
    ParquetAnalyticsError,
    PermissionDenied,
    SourceSchemaError,
    StoreError,
    VerificationFailed,
)

from tests.archives import DAY, KEY, Exported, Place, execute, rows_of, saying
from tests.services import Postgres
from tests.test_export import ADD
from tests.test_merge import LATE, counts, stored
from tests.torture.proxies import Armed, Pass, PostgresProxy, Request, Response, S3Proxy, forward, half, send_half


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


@dataclass
class Behind:
    """A place in the S3 server, reached through a proxy."""

    place: Place
    proxy: S3Proxy

    def exporter(self, source: Any, **options: str) -> ParquetAnalyticsExporter:
        settings = self.place.options(endpoint_url=self.proxy.url, **{"max_retries": "1"} | options)
        return ParquetAnalyticsExporter(self.place.url, source=source, storage_options=settings)

    @contextlib.contextmanager
    def fault(self, method: str, strike: Any, *, times: int = 1, skip: int = 0) -> Iterator[Armed]:
        """Arms a fault, and makes sure that it was hit."""
        self.proxy.armed = Armed(method, strike, times, skip)
        yield self.proxy.armed
        assert self.proxy.armed.hits, "the fault was never hit"
        self.proxy.armed = None


@pytest.fixture
def behind(place: Place) -> Iterator[Behind]:
    proxy = S3Proxy(place.s3.endpoint_url)
    yield Behind(place, proxy)
    proxy.close()


def answering(status: int, code: str) -> Any:
    return lambda request, forward: Response.error(status, code)


def applied(answer: Response | bytes | None) -> Any:
    """The store does it, and the client hears something else."""

    def strike(request: Request, passing: Pass) -> Response | bytes | None:
        assert passing(request).status == 200
        return answer

    return strike


def sent_twice(request: Request, passing: Pass) -> Response:
    passing(request)
    return passing(request)


def cut_in_the_body(proxy: S3Proxy) -> Any:
    def strike(request: Request, passing: Pass) -> None:
        send_half(proxy.address, request)

    return strike


def whole(place: Place) -> dict[int, int] | None:
    """What is stored, which is nothing or a whole file of this day, and no other object."""
    keys = [key for key in place.keys() if "/_" not in key]  # noqa: SIM118
    assert keys in ([], [KEY])
    return counts(stored(place)) if keys else None


ALL = {1: 10, 2: 4, 3: 1}
MERGED = {1: 11, 2: 4, 3: 1, 9: 2}
FAILED = Response.error(500, "InternalError")

# Faults of the write after which the export goes on by itself.
HEALED = {
    "a server error": lambda proxy: answering(500, "InternalError"),
    "slow down": lambda proxy: answering(503, "SlowDown"),
    "a conflict that is none": lambda proxy: answering(412, "PreconditionFailed"),
    "a conflict with a write at the same moment": lambda proxy: answering(409, "ConditionalRequestConflict"),
    "an error in the body of a success": lambda proxy: lambda *_: Response(200, [], Response.error(500, "x").body),
    "the answer is lost": lambda proxy: applied(None),
    "a server error after it was written": lambda proxy: applied(FAILED),
    "a success that says nothing": lambda proxy: applied(Response(200, [], b"")),
    "sent twice on the way": lambda proxy: sent_twice,
    "cut in the middle of the upload": cut_in_the_body,
    "hung up on": lambda proxy: lambda *_: None,
}


@pytest.mark.parametrize("name", HEALED)
def test_a_write_that_goes_wrong_once_is_put_right(behind: Behind, filled: str, name: str) -> None:
    exporter = behind.exporter(filled)
    with behind.fault("PUT", HEALED[name](behind.proxy)):
        result = exporter.export_daily_pageviews(DAY)
    assert result["verified"]
    assert whole(behind.place) == ALL
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1", LATE)
    with behind.fault("PUT", HEALED[name](behind.proxy)):
        exporter.export_daily_pageviews(DAY)
    assert whole(behind.place) == MERGED
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 4


# And those after which it has to be run again: the fault, the error and whether trying again helps.
REPORTED: dict[str, tuple[Any, type[ParquetAnalyticsError], bool]] = {
    "server errors without end": (answering(500, "InternalError"), StoreError, True),
    "slow down without end": (answering(503, "SlowDown"), StoreError, True),
    "access denied": (answering(403, "AccessDenied"), PermissionDenied, False),
    "hung up on for ever": (lambda *_: None, CommitStateUnknown, False),
    "cut half way through the answer": (lambda *_: b"HTTP/1.1 200 OK\r\nConte", CommitStateUnknown, False),
}


@pytest.mark.parametrize("name", REPORTED)
def test_a_write_that_keeps_going_wrong_is_an_error_that_says_what_to_do(
    behind: Behind, filled: str, name: str
) -> None:
    strike, kind, retryable = REPORTED[name]
    exporter = behind.exporter(filled)
    with behind.fault("PUT", strike, times=100), pytest.raises(kind, match=saying("2026-07-01", KEY)) as caught:
        exporter.export_daily_pageviews(DAY)
    assert type(caught.value) is kind
    assert (caught.value.day, caught.value.key, caught.value.retryable) == (DAY, KEY, retryable)
    assert whole(behind.place) is None
    exporter.export_daily_pageviews(DAY)
    before = behind.place.read(KEY)
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1", LATE)
    with behind.fault("PUT", strike, times=100), pytest.raises(kind):
        exporter.export_daily_pageviews(DAY)
    assert behind.place.read(KEY) == before
    exporter.export_daily_pageviews(DAY)
    assert whole(behind.place) == MERGED


def test_an_answer_that_never_comes_and_cannot_be_found_out_is_unknown(behind: Behind, filled: str) -> None:
    exporter = behind.exporter(filled, request_timeout="0.3")

    def stall(request: Request, passing: Pass) -> None:
        time.sleep(0.6)

    with behind.fault("PUT", stall, times=100), pytest.raises(CommitStateUnknown, match=saying(KEY, "again")) as caught:
        exporter.export_daily_pageviews(DAY)
    assert caught.value.run_id
    assert whole(behind.place) is None
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "created"


def test_a_write_that_arrives_after_everybody_has_given_up_does_no_harm(behind: Behind, filled: str) -> None:
    exporter = behind.exporter(filled, request_timeout="0.3")
    gate, late = threading.Event(), []

    def hold(request: Request, passing: Pass) -> None:
        gate.wait(20)
        late.append(forward(behind.proxy.address, request).status)

    with behind.fault("PUT", hold, times=3), pytest.raises(CommitStateUnknown):
        exporter.export_daily_pageviews(DAY)
    # Meanwhile another run has stored a newer state.
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1", LATE)
    behind.place.exporter(filled).export_daily_pageviews(DAY)
    assert whole(behind.place) == MERGED
    gate.set()
    for _ in range(100):
        if len(late) == 3:
            break
        time.sleep(0.05)
    assert late == [412] * 3
    assert whole(behind.place) == MERGED
    # And if it is the first to arrive, it is simply the day's file.
    gate.clear()
    execute(filled, "UPDATE analytics_pageview SET view_count = 12 WHERE id = 1")
    with behind.fault("PUT", hold, times=3), pytest.raises(CommitStateUnknown):
        exporter.export_daily_pageviews(DAY)
    gate.set()
    for _ in range(100):
        if len(late) == 6:
            break
        time.sleep(0.05)
    assert sorted(late[3:]) == [200, 412, 412]
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "unchanged"
    assert whole(behind.place) == MERGED | {1: 12}


# The second read is that of the verification; the first looks whether the day is stored.
READ_BACK: dict[str, tuple[Any, type[ParquetAnalyticsError], bool]] = {
    "a flipped byte": (
        lambda request, passing: _with_body(passing(request), lambda body: body[:100] + b"\0\0" + body[102:]),
        VerificationFailed,
        False,
    ),
    "the file of another day's bytes": (
        lambda request, passing: _with_body(passing(request), lambda body: b"PAR1" + body[4:][::-1]),
        VerificationFailed,
        False,
    ),
    "half an answer": (lambda request, passing: half(passing(request)), StoreError, True),
    "server errors": (answering(503, "SlowDown"), StoreError, True),
    "access denied": (answering(403, "AccessDenied"), PermissionDenied, False),
}


def _with_body(answer: Response, change: Callable[[bytes], bytes]) -> Response:
    return Response(answer.status, answer.headers, change(answer.body))


@pytest.mark.parametrize("name", READ_BACK)
def test_a_file_that_cannot_be_read_back_is_not_called_verified(behind: Behind, filled: str, name: str) -> None:
    strike, kind, retryable = READ_BACK[name]
    exporter = behind.exporter(filled)
    with (
        behind.fault("GET", strike, times=100, skip=1),
        pytest.raises((kind, CorruptFile), match=saying("2026-07-01", KEY)) as caught,
    ):
        exporter.export_daily_pageviews(DAY)
    assert (caught.value.key, caught.value.retryable) == (KEY, retryable)
    assert whole(behind.place) == ALL  # the file itself is fine
    with behind.fault("GET", strike, times=100), pytest.raises((kind, CorruptFile)):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview") == [(4,)]
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "unchanged"
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3


def test_a_file_that_disappears_right_after_it_was_written_is_written_again(behind: Behind, filled: str) -> None:
    def gone(request: Request, passing: Pass) -> Response:
        behind.place.s3.client().delete_object(Bucket=behind.place.bucket, Key=behind.place._full(KEY))
        return passing(request)

    with behind.fault("GET", gone, skip=1):
        assert behind.exporter(filled).export_daily_pageviews(DAY)["outcome"] == "created"
    assert whole(behind.place) == ALL


def test_copies_that_fail_are_an_error_and_the_next_run_writes_them(behind: Behind, filled: str) -> None:
    exporter = behind.exporter(filled)
    with (
        behind.fault("PUT", answering(503, "SlowDown"), times=100, skip=1),
        pytest.raises(StoreError, match=saying("project/docs/", "2026-07-01")) as caught,
    ):
        exporter.export_daily_pageviews(DAY, per_project=True)
    assert caught.value.retryable
    assert whole(behind.place) == ALL
    result = exporter.export_daily_pageviews(DAY, per_project=True)
    assert (result["outcome"], result["project_files"]) == ("unchanged", 1)
    copy = "analytics/pageviews/project/docs/2026/07/01/pageviews_2026-07-01.parquet"
    assert counts(stored(behind.place, copy)) == ALL


def test_a_store_that_ignores_conditions_is_not_trusted_with_a_deletion(behind: Behind, filled: str) -> None:
    def unconditional(request: Request, passing: Pass) -> Response:
        return Response(200, [("ETag", '"written"')], b"")

    exporter = behind.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    armed = Armed("PUT", unconditional, times=100)
    armed.takes = lambda request: request.method == "PUT"  # type: ignore[method-assign]
    behind.proxy.armed = armed
    with pytest.raises(DeletionRefused, match=saying("2026-07-01", "If-None-Match", "store that heeds conditions")):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview") == [(4,)]


def test_a_store_that_fails_during_the_deletion_ends_it_and_the_rest_stays(behind: Behind, database: str) -> None:
    SampleData(rows_per_day=3_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(database, DAY, DAY)
    exporter = behind.exporter(database)
    exporter.export_daily_pageviews(DAY)
    # It is made sure every second that the file is still there.
    with (
        behind.fault("GET", answering(404, "NoSuchKey"), times=100, skip=3),
        pytest.raises(StoreError, match=saying(KEY, "disappeared")),
    ):
        exporter.delete_exported_pageviews(DAY, batch_rows=100, pause=0.1)
    [(kept,)] = rows_of(database, "SELECT count(*) FROM analytics_pageview")
    assert 0 < kept < 3_000
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == kept


# PostgreSQL.


@pytest.fixture
def wire(postgres: Postgres) -> Iterator[PostgresProxy]:
    proxy = PostgresProxy(postgres.port)
    yield proxy
    proxy.close()


def through(wire: PostgresProxy, url: str) -> str:
    """In clear text, so that the proxy sees what is said."""
    return url.replace(f":{wire.upstream}/", f":{wire.port}/") + "?sslmode=disable"


def refused_and_again(place: Place, source: Any, *parts: str, retryable: bool = True) -> DatabaseError:
    with pytest.raises(DatabaseError, match=saying("2026-07-01", *parts)) as caught:
        place.exporter(source).export_daily_pageviews(DAY)
    assert (caught.value.retryable, caught.value.day) == (retryable, DAY)
    assert place.keys() == []
    return caught.value


@pytest.mark.parametrize("after", [1, 1_000, 5_000, 100_000, 3_000_000])
def test_a_connection_that_is_cut_anywhere_gives_no_file(
    place: Place, big_day: Exported, wire: PostgresProxy, after: int
) -> None:
    wire.cut_after = after
    source = through(wire, big_day.database)
    refused_and_again(place, source, f"127.0.0.1:{wire.port}")
    assert wire.hits == 1
    assert place.exporter(source).export_daily_pageviews(DAY)["total_records"] == 200_000


def test_a_copy_without_its_commit_is_no_copy(place: Place, filled: str, wire: PostgresProxy) -> None:
    wire.lose_reply_to = b"COMMIT\0"
    refused_and_again(place, through(wire, filled))
    assert wire.hits == 1
    place.exporter(through(wire, filled)).export_daily_pageviews(DAY)
    assert whole(place) == ALL


def test_a_backend_that_is_terminated_in_the_middle(place: Place, big_day: Exported) -> None:
    def kill() -> None:
        with psycopg.connect(big_day.database, autocommit=True) as connection:
            for _ in range(2_000):
                killed = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND state = 'active' AND query LIKE 'COPY%'"
                ).fetchall()
                if killed:
                    return
                time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    refused_and_again(place, big_day.database)
    killer.join()
    assert place.exporter(big_day.database).export_daily_pageviews(DAY)["total_records"] == 200_000


def test_a_statement_timeout_in_the_middle_gives_no_file(place: Place, big_day: Exported) -> None:
    source = PostgresSource(big_day.database, statement_timeout=0.03)
    error = refused_and_again(place, source, "statement_timeout")
    assert error.sqlstate == "57014"


def test_a_table_that_is_locked_for_longer_than_we_wait(place: Place, filled: str) -> None:
    with psycopg.connect(filled) as other:
        other.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        error = refused_and_again(place, PostgresSource(filled, lock_timeout=0.3), "lock")
        assert error.sqlstate == "55P03"


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ("DROP TABLE analytics_pageview", None),
        ("ALTER TABLE analytics_pageview RENAME TO gone", None),
        ("ALTER TABLE analytics_pageview DROP COLUMN full_path", "full_path"),
        ("ALTER TABLE analytics_pageview ALTER view_count TYPE numeric", "view_count"),
        ("ALTER TABLE analytics_pageview ALTER date TYPE timestamp", "date"),
    ],
)
def test_a_table_that_is_dropped_or_altered_before_the_run(
    place: Place, filled: str, change: str, column: str | None
) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    before = place.read(KEY)
    execute(filled, change)
    with pytest.raises(SourceSchemaError, match=saying("2026-07-01", column or "analytics_pageview")) as caught:
        exporter.export_daily_pageviews(DAY)
    assert (caught.value.column, caught.value.retryable) == (column, False)
    assert place.read(KEY) == before
    with pytest.raises(ParquetAnalyticsError):
        exporter.delete_exported_pageviews(DAY)


def test_a_table_that_is_truncated_keeps_what_is_stored(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, "TRUNCATE analytics_pageview")
    assert exporter.export_daily_pageviews(DAY)["kept"] == 3
    assert whole(place) == ALL


@pytest.mark.parametrize("change", ["DROP TABLE analytics_pageview", "TRUNCATE analytics_pageview"])
def test_a_table_is_not_dropped_or_truncated_under_a_run(
    place: Place, database: str, wire: PostgresProxy, change: str
) -> None:
    """What comes in mid-run waits for the copy, which holds the table as it is."""
    SampleData(rows_per_day=20_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(database, DAY, DAY)
    done: list[dict[str, Any]] = []
    exporter = place.exporter(database)

    def slowly(rows: int, total: int | None) -> None:
        if rows and not waiting.is_alive() and not waiting.ident:
            waiting.start()

    waiting = threading.Thread(target=lambda: execute(database, change))
    done.append(exporter.export_daily_pageviews(DAY, progress=slowly))
    if not waiting.ident:
        waiting.start()
    waiting.join(20)
    assert done[0]["total_records"] == 20_000


def test_a_deletion_whose_commit_is_not_answered_goes_on_the_next_time(
    place: Place, filled: str, wire: PostgresProxy
) -> None:
    exporter = place.exporter(through(wire, filled))
    exporter.export_daily_pageviews(DAY)
    wire.hits = 0
    # The first one ends the look at where in its history the database is.
    wire.skip, wire.lose_reply_to = 1, b"COMMIT\0"
    with pytest.raises(DatabaseError, match=saying("2026-07-01", "committing")) as caught:
        exporter.delete_exported_pageviews(DAY, batch_rows=2)
    assert wire.hits == 1
    assert caught.value.retryable
    result = exporter.delete_exported_pageviews(DAY, batch_rows=2)
    assert result["deleted"] in (1, 3)  # the first batch of two did or did not commit
    assert rows_of(filled, "SELECT id FROM analytics_pageview") == [(4,)]
    assert whole(place) == ALL


@pytest.mark.parametrize("statement", [b"FOR UPDATE", b"DELETE FROM"])
def test_a_deletion_that_is_cut_before_its_commit_deletes_nothing(
    place: Place, filled: str, wire: PostgresProxy, statement: bytes
) -> None:
    exporter = place.exporter(through(wire, filled))
    exporter.export_daily_pageviews(DAY)
    wire.hits = 0
    wire.lose_reply_to = statement
    with pytest.raises(DatabaseError) as caught:
        exporter.delete_exported_pageviews(DAY)
    assert (wire.hits, caught.value.retryable) == (1, True)
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview") == [(4,)]
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3


def test_a_table_that_is_locked_bounds_how_long_a_deletion_waits(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with psycopg.connect(filled) as other:
        other.execute("LOCK TABLE analytics_pageview IN SHARE MODE")
        begun = time.monotonic()
        with pytest.raises(DatabaseError, match=saying("2026-07-01", "lock")) as caught:
            exporter.delete_exported_pageviews(DAY, lock_timeout=0.3)
        assert time.monotonic() - begun < 5
        assert caught.value.retryable
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3


# The disk.

EXPORT = """
import os, resource, signal, sys
from tests.archives import DAY
from parquet_analytics import ParquetAnalyticsExporter, SampleData
from parquet_analytics.exceptions import ParquetAnalyticsError
sample = SampleData(rows_per_day=40_000, projects=50, growth=0, weekly_rhythm=False)
exporter = ParquetAnalyticsExporter({store!r}, source=sample.day, temp_dir={temp!r}, sort_memory={memory})
{before}
try:
    print("stored", exporter.export_daily_pageviews(DAY)["total_records"])
except ParquetAnalyticsError as error:
    print(type(error).__name__, error.retryable, error)
"""
LIMIT = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
NOBODY = "os.seteuid(65534)"


def run(store: Path, temp: Path | None, *, memory: int = 1 << 29, before: str = "") -> str:
    code = EXPORT.format(store=store.as_uri(), temp=temp and str(temp), memory=memory, before=before)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def open_to_all(folder: Path) -> None:
    """So that another user can come in."""
    for each in folder, *folder.parents:
        if each == Path(tempfile.gettempdir()):
            break
        each.chmod(each.stat().st_mode | 0o055)


def leftovers(folder: Path) -> list[Path]:
    """What lies there but for the manifest, which whoever writes a day keeps."""
    return [path for path in folder.rglob("*") if not path.is_dir() and path.name != "manifest.json"]


@pytest.mark.parametrize("memory", [1 << 29, 1 << 16])
def test_a_temporary_folder_that_is_full_gives_no_file_and_leaves_none(tmp_path: Path, memory: int) -> None:
    store, temp = tmp_path / "store", tmp_path / "temp"
    temp.mkdir()
    said = run(store, temp, memory=memory, before=LIMIT)
    assert said.startswith("LocalFileError False 2026-07-01: ")
    assert "temporary" in said
    assert leftovers(tmp_path) == []
    assert run(store, temp, memory=memory) == "stored 40000\n"
    assert [path.name for path in leftovers(tmp_path)] == [KEY.rsplit("/", 1)[1]]


def test_a_temporary_folder_that_is_missing_a_file_or_not_ours_is_named(tmp_path: Path) -> None:
    store, file, closed = tmp_path / "store", tmp_path / "file", tmp_path / "closed"
    file.touch()
    closed.mkdir(mode=0o755)
    store.mkdir()
    store.chmod(0o777)
    open_to_all(tmp_path)
    cases = {tmp_path / "missing": "", file: ""} | ({closed: NOBODY} if os.geteuid() == 0 else {})
    for temp, before in cases.items():
        said = run(store, temp, before=before)
        assert said.startswith("LocalFileError False 2026-07-01: ")
        assert str(temp) in said
    assert leftovers(store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a store that is another user's needs another user")
def test_a_store_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    store, temp = tmp_path / "store", tmp_path / "temp"
    store.mkdir(mode=0o755)
    temp.mkdir()
    temp.chmod(0o777)
    open_to_all(tmp_path)
    said = run(store, temp, before=NOBODY)
    assert said.startswith("PermissionDenied False 2026-07-01: ")
    assert str(store) in said
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_full_keeps_the_stored_file(tmp_path: Path) -> None:
    """The day is there; its replacement does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        few = SampleData(rows_per_day=10_000, projects=50, growth=0, weekly_rhythm=False)
        exporter = ParquetAnalyticsExporter(disk.as_uri(), source=few.day, temp_dir=tmp_path)
        exporter.export_daily_pageviews(DAY)
        before = (disk / KEY).read_bytes()
        many = SampleData(rows_per_day=80_000, projects=50, growth=0, weekly_rhythm=False)
        larger = ParquetAnalyticsExporter(disk.as_uri(), source=many.day, temp_dir=tmp_path)
        with pytest.raises(ParquetAnalyticsError, match=saying("2026-07-01", "No space left")):
            larger.export_daily_pageviews(DAY, discard_stored=True)
        assert (disk / KEY).read_bytes() == before
        assert len(leftovers(disk)) == 1
        assert exporter.verify(DAY)["total_records"] == pq.read_metadata(io.BytesIO(before)).num_rows
    finally:
        subprocess.run(["umount", disk], check=True)

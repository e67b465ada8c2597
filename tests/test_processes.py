"""Forks, threads, signals and panics: whatever process, thread or moment a call is made in or ended at."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier
from parquet_analytics.exceptions import InternalError

from tests.archives import DAY, KEY, Exported, Place, execute, rows_of, saying, views
from tests.test_export import ADD
from tests.test_runtime import wait_for
from tests.torture.proxies import Armed, S3Proxy

# How long a process of these tests may take before it is ended as hung.
LIMIT = 60

PRELUDE = """
import datetime, json, os, signal, sys, threading, time
import faulthandler; faulthandler.dump_traceback_later(50, exit=True)
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier
given = json.loads(sys.argv[1])
place = {"storage": given["url"], "storage_options": given["options"]}
exporter = ParquetAnalyticsExporter(**place, source=given["source"])
querier = ParquetAnalyticsQuerier(**place)
day = "2026-07-01"
def use():
    result = exporter.export_daily_pageviews(day)
    verified = exporter.verify(day, against="database")
    top = querier.top_pages("docs", since=day, until=day).to_pylist()
    free = querier.sql("SELECT sum(view_count)::BIGINT AS views FROM pageviews", since=day, until=day).to_pylist()
    return [result["total_records"], verified["missing"], top[0]["count"], free[0]["views"]]
"""


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


def started(place: Place, source: str, work: str, **options: str) -> subprocess.Popen[str]:
    given = {"url": place.url, "options": place.options(**options), "source": source}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + work, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def told(place: Place, source: str, work: str) -> list[Any]:
    """The JSON lines that a process prints."""
    process = started(place, source, work)
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it hangs: {process.communicate()}")
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


USED = [3, 0, 10, 15]

FORKS = """
def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def tell():
    print(json.dumps(use()))
def tell_and_fork():
    tell()
    in_child(tell)
tell()
for _ in range(3):
    in_child(tell_and_fork)
tell()
"""


def test_children_and_grandchildren_of_a_process_that_has_used_everything_can_use_it_too(
    place: Place, filled: str
) -> None:
    assert told(place, filled, FORKS) == [USED] * 8


POOL = """
import multiprocessing
def task(_):
    return use()
use()
with multiprocessing.get_context("fork").Pool(2) as pool:
    for result in pool.map(task, range(6)):
        print(json.dumps(result))
"""


def test_a_pool_of_forked_workers_exports_and_queries(place: Place, filled: str) -> None:
    assert told(place, filled, POOL) == [USED] * 6


BUSY = """
stop = threading.Event()
def keep_asking():
    while not stop.is_set():
        querier.top_pages("docs", since=day, until=day)
use()
threads = [threading.Thread(target=keep_asking) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)  # a child that is forked in the middle of a call may hang, and must not hang the parent
        os._exit(0)
    os.waitpid(pid, 0)
stop.set()
for thread in threads: thread.join()
print(json.dumps(use()))
"""


def test_a_fork_in_the_middle_of_other_threads_calls_leaves_the_parent_alone(place: Place, filled: str) -> None:
    assert told(place, filled, BUSY) == [USED]


def test_many_threads_export_verify_and_query_at_once(place: Place, filled: str) -> None:
    exporter, querier = place.exporter(filled), place.querier()
    exporter.export_daily_pageviews(DAY)

    def work(number: int) -> Any:
        match number % 4:
            case 0:
                return exporter.export_daily_pageviews(DAY)["total_records"]
            case 1:
                return exporter.verify(DAY)["total_records"]
            case 2:
                return querier.query_pageviews("docs", since=DAY, until=DAY).num_rows
            case _:
                return place.querier().top_pages("docs", since=DAY, until=DAY, status=None).num_rows

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(work, range(128))) == {3}


# Each moment at which a call can wait: what makes it wait, and the call.

TIMED = """
class SoftTimeLimitExceeded(Exception):
    pass
def handler(*_):
    raise SoftTimeLimitExceeded
signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGINT, signal.default_int_handler)
threads = threading.active_count()
print("ready", flush=True)
try:
    WORK
    print("ended", flush=True)
except (SoftTimeLimitExceeded, KeyboardInterrupt) as raised:
    print(json.dumps([type(raised).__name__, type(raised.__cause__).__name__, os.listdir(given["temp"])]), flush=True)
"""
CALLS = {
    "export": "ParquetAnalyticsExporter(**place, source=given['source'], temp_dir=given['temp'])"
    ".export_daily_pageviews(day)",
    "delete": "exporter.delete_exported_pageviews(day, batch_rows=1, pause=30)",
    "query": 'querier.query_pageviews("docs", since=day, until=day)',
    "sql": 'querier.sql("SELECT count(*) FROM pageviews", since=day, until=day)',
    "verify": "exporter.verify(day)",
}


@pytest.fixture
def proxy(place: Place) -> Iterator[S3Proxy]:
    proxy = S3Proxy(place.s3.endpoint_url)
    yield proxy
    proxy.close()


def interrupted(
    place: Place, source: str, call: str, waits: Any, tmp_path: Path, how: signal.Signals, **options: str
) -> list[Any]:
    """Starts a call, waits until it waits, sends the signal: what was raised, its cause, what is left behind."""
    given = {"url": place.url, "options": place.options(**options), "source": source, "temp": str(tmp_path)}
    code = PRELUDE + TIMED.replace("WORK", CALLS[call])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wait_for(waits)
        time.sleep(0.1)
        begun = time.monotonic()
        process.send_signal(how)
        said = process.stdout.readline()
        took = time.monotonic() - begun
        assert said.startswith("["), (said, process.communicate()[1])
        assert took < 1.0, took
        assert process.wait(10) == 0
        return list(json.loads(said))
    finally:
        process.kill()
        process.communicate()


def no_backend(database: str) -> bool:
    return not rows_of(
        database,
        "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


SIGNALS = {signal.SIGINT: "KeyboardInterrupt", signal.SIGUSR1: "SoftTimeLimitExceeded"}


@pytest.mark.parametrize("how", SIGNALS, ids=["ctrl-c", "soft time limit"])
def test_an_export_that_waits_for_a_server_that_says_nothing(place: Place, tmp_path: Path, how: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted = threading.Event()

        def accept() -> None:
            held.append(silent.accept()[0])
            accepted.set()

        held: list[socket.socket] = []
        threading.Thread(target=accept, daemon=True).start()
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d"
        said = interrupted(place, url, "export", accepted.is_set, tmp_path, how)
        held[0].close()
    assert said == [SIGNALS[how], "NoneType", []]
    assert place.keys() == []


def test_an_export_that_waits_for_a_locked_table(place: Place, filled: str, tmp_path: Path) -> None:
    with psycopg.connect(filled) as other:
        other.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        waits = lambda: rows_of(filled, "SELECT 1 FROM pg_locks WHERE NOT granted")  # noqa: E731
        said = interrupted(place, filled, "export", waits, tmp_path, signal.SIGUSR1)
        assert said == ["SoftTimeLimitExceeded", "NoneType", []]
    assert place.keys() == []
    wait_for(lambda: no_backend(filled))


@pytest.mark.parametrize("how", SIGNALS, ids=["ctrl-c", "soft time limit"])
def test_an_export_in_the_middle_of_its_upload(
    place: Place, filled: str, proxy: S3Proxy, tmp_path: Path, how: signal.Signals
) -> None:
    gate = threading.Event()

    def hold(*_: Any) -> None:
        gate.wait(20)

    proxy.armed = armed = Armed("PUT", hold)
    said = interrupted(place, filled, "export", lambda: armed.hits, tmp_path, how, endpoint_url=proxy.url)
    gate.set()
    # The write may have arrived: the cause says so.
    assert said == [SIGNALS[how], "CommitStateUnknown", []]
    assert place.keys() == []
    assert place.exporter(filled).export_daily_pageviews(DAY)["total_records"] == 3
    wait_for(lambda: no_backend(filled))


@pytest.mark.parametrize("call", ["verify", "query", "sql"])
def test_a_call_that_waits_for_the_store(place: Place, filled: str, proxy: S3Proxy, tmp_path: Path, call: str) -> None:
    place.exporter(filled).export_daily_pageviews(DAY)
    gate = threading.Event()

    def hold(*_: Any) -> None:
        gate.wait(20)

    proxy.armed = armed = Armed("GET", hold)
    said = interrupted(place, filled, call, lambda: armed.hits, tmp_path, signal.SIGUSR1, endpoint_url=proxy.url)
    gate.set()
    assert said == ["SoftTimeLimitExceeded", "NoneType", []]


def test_a_deletion_between_its_batches(place: Place, filled: str, tmp_path: Path) -> None:
    place.exporter(filled).export_daily_pageviews(DAY)
    waits = lambda: rows_of(filled, "SELECT count(*) FROM analytics_pageview") == [(3,)]  # noqa: E731
    assert interrupted(place, filled, "delete", waits, tmp_path, signal.SIGUSR1)[0] == "SoftTimeLimitExceeded"
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview") == [(3,)]
    wait_for(lambda: no_backend(filled))
    assert place.exporter(filled).delete_exported_pageviews(DAY)["deleted"] == 2


REPEATED = """
def state():
    return threading.active_count(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
def interrupted():
    def stop(*_): raise TimeoutError
    signal.signal(signal.SIGALRM, stop)
    def progress(*_):
        raise RuntimeError
    for call in (
        lambda: exporter.export_daily_pageviews(day, replace=True, progress=progress),
        lambda: querier.sql("SELECT count(*) FROM range(100000000000) a", since=day, until=day),
    ):
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        try:
            call()
        except (TimeoutError, RuntimeError):
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
use(); interrupted(); time.sleep(0.5)
before = state()
for _ in range(20):
    use(); interrupted()
time.sleep(1)
print(json.dumps([before, state()]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads and descriptors are counted in /proc")
def test_calls_that_are_broken_off_leave_no_thread_and_no_descriptor(place: Place, filled: str) -> None:
    [[before, after]] = told(place, filled, REPEATED)
    assert after[0] == before[0]
    assert after[1] <= before[1] + 2, (before, after)
    assert after[2] <= before[2] + 4, (before, after)


CELERY = """
import os, sys
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from parquet_analytics import ParquetAnalyticsExporter
folder = os.environ["PA_FOLDER"]
app = Celery("worker", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.update(
    broker_transport_options={name: f"{folder}/queue" for name in ("data_folder_in", "data_folder_out")}
    | {"control_folder": f"{folder}/control"},
    worker_hijack_root_logger=False, broker_connection_retry_on_startup=True,
)
import json
given = json.loads(os.environ["PA_GIVEN"])
exporter = ParquetAnalyticsExporter(given["url"], source=given["source"], storage_options=given["options"])
# What a parent process may have done before it forked its workers.
exporter.verify("2026-06-30")

@app.task(soft_time_limit=1, time_limit=20)
def export(day):
    try:
        return exporter.export_daily_pageviews(day)["total_records"]
    except SoftTimeLimitExceeded:
        return "soft time limit"
"""


def test_celerys_prefork_pool_exports_and_its_soft_time_limit_gets_through(
    place: Place, filled: str, tmp_path: Path
) -> None:
    (tmp_path / "pageviews_worker.py").write_text(CELERY)
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews("2026-06-30", allow_empty=True)
    given = json.dumps({"url": place.url, "options": place.options(), "source": filled})
    path = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    environment = os.environ | {"PA_FOLDER": str(tmp_path), "PA_GIVEN": given, "PYTHONPATH": path, "C_FORCE_ROOT": "1"}
    arguments = ["-A", "pageviews_worker", "worker", "-P", "prefork", "-c", "2", "-l", "WARNING", "--without-gossip"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    send = (
        "from pageviews_worker import export; import sys\n"
        "print([task.get(timeout=40) for task in [export.delay(day) for day in sys.argv[1:]]])"
    )
    try:

        def asked(*days: str) -> str:
            command = [sys.executable, "-c", send, *days]
            ended = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT
            )
            assert ended.returncode == 0, ended.stderr + (tmp_path / "log").read_text()
            return ended.stdout.strip()

        assert asked("2026-07-01", "2026-07-02", "2026-07-01") == "[3, 1, 3]"
        with psycopg.connect(filled) as other:
            other.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
            assert asked("2026-07-01") == "['soft time limit']"
        assert asked("2026-07-01") == "[3]"
    finally:
        worker.terminate()
        try:
            worker.wait(15)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


# Panics. The native code has none to offer on request, so a stream breaks the rules of Arrow's C interface.


def test_a_panic_in_the_native_code_is_an_ordinary_exception(tmp_path: Path, capfd: Any) -> None:
    class Lying:
        """Announces ten columns, and hands over an array that has none."""

        def __init__(self) -> None:
            [self.array] = views().to_batches()
            self.stream = ctypes.create_string_buffer(5 * 8)
            reader = pa.RecordBatchReader.from_batches(self.array.schema, [self.array])
            reader._export_to_c(ctypes.addressof(self.stream))
            pointers = (ctypes.c_void_p * 5).from_buffer(self.stream)
            signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            original = signature(pointers[1])

            def lie(stream: int, array: int) -> int:
                code = original(stream, array)
                if ctypes.c_int64.from_address(array).value:
                    ctypes.c_int64.from_address(array + 4 * 8).value = 0  # n_children
                return int(code)

            self.lie = signature(lie)
            pointers[1] = ctypes.cast(self.lie, ctypes.c_void_p).value

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            capsule = ctypes.pythonapi.PyCapsule_New
            capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
            return capsule(ctypes.addressof(self.stream), b"arrow_array_stream", None)

    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=lambda day: Lying())
    for _ in range(2):
        with pytest.raises(InternalError, match=saying("panicked", "defect")) as caught:
            exporter.export_daily_pageviews(DAY)
        assert isinstance(caught.value, Exception)
    assert not (tmp_path / KEY).exists()
    # Nothing is broken by it.
    good = ParquetAnalyticsExporter(tmp_path.as_uri(), source=views())
    assert good.export_daily_pageviews(DAY)["total_records"] == 3
    assert ParquetAnalyticsQuerier(tmp_path.as_uri()).query_pageviews("docs", since=DAY, until=DAY).num_rows == 3
    capfd.readouterr()


def test_a_source_and_a_progress_callback_may_use_the_package_themselves(place: Place, big_day: Exported) -> None:
    exporter = place.exporter(views())

    def source(day: Any) -> pa.Table:
        exporter.export_daily_pageviews(DAY)
        return place.querier().query_pageviews("docs", since=DAY, until=DAY)

    seen = []

    def progress(*_: Any) -> None:
        seen.append(place.querier().top_pages("docs", since=DAY, until=DAY).num_rows)

    assert place.exporter(source).export_daily_pageviews(DAY, progress=progress)["outcome"] == "unchanged"
    result = place.exporter(big_day.database).export_daily_pageviews(
        DAY, progress=progress, accept_moved_database=True, discard_stored=True
    )
    assert result["total_records"] == 200_000
    assert seen


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ValueError("bad")])
def test_what_a_source_raises_reaches_the_caller_and_nothing_is_written(place: Place, raised: BaseException) -> None:
    def source(day: Any) -> pa.Table:
        raise raised

    with pytest.raises(Exception, match="source could not hand over") as caught:
        place.exporter(source).export_daily_pageviews(DAY)
    assert caught.value.__cause__ is raised
    assert place.keys() == []

"""The first request or statement of an act fails, then the second, and so on until a run passes without meeting its
fault. After each nothing is lost or doubled, and the same call made again ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource
from parquet_analytics.exceptions import CommitStateUnknown, DatabaseError, InternalError, ParquetAnalyticsError

from tests.archives import DAY, KEY, Place, execute, rows_of
from tests.services import S3, Postgres
from tests.test_export import ADD
from tests.test_merge import LATE, counts, stored
from tests.torture.proxies import Pass, PostgresProxy, Request, Response, S3Proxy

REQUEST_TIMEOUT = 0.4
# More than any act here takes.
MOST = 80


class NthRequest:
    """What a proxy asks about each request: the n-th, of whatever kind, is struck."""

    def __init__(self, number: int, how: str) -> None:
        self.number, self.how, self.count, self.hits = number, how, 0, 0
        self.lock, self.given_up = threading.Lock(), threading.Event()

    def takes(self, _request: Request) -> bool:
        with self.lock:
            self.count += 1
            hit = self.count == self.number
            self.hits += hit
            return hit

    def strike(self, request: Request, passing: Pass) -> Response | bytes | None:
        if self.how == "refused":
            return Response.error(503, "SlowDown")
        if self.how == "lost":
            passing(request)
            return None
        self.given_up.wait(REQUEST_TIMEOUT * 3)
        return None


class Interrupted(Exception):
    """As Celery's soft time limit."""


@contextlib.contextmanager
def interrupted(stuck: threading.Event) -> Iterator[None]:
    """Whoever is stuck is interrupted after a moment."""
    left = threading.Event()

    def stop(*_: Any) -> None:
        if not left.is_set():
            raise Interrupted

    def watch() -> None:
        while not stuck.wait(0.05):
            if left.is_set():
                return
        if not left.wait(REQUEST_TIMEOUT):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        left.set()
        watching.join()
        # One that was on its way comes now.
        time.sleep(0)
        signal.signal(signal.SIGUSR1, before)


@dataclass
class World:
    """A place and a database of its own, behind proxies, and every row that was ever committed."""

    place: Place
    url: str
    s3: S3Proxy
    wire: PostgresProxy
    request_timeout: float = REQUEST_TIMEOUT
    versions: dict[int, list[int]] = field(default_factory=dict)
    """Views of each row of the day, the last ones at the end."""

    def exporter(self, *, faulty: bool, statement_timeout: float = 1800.0) -> ParquetAnalyticsExporter:
        options = self.place.options(max_retries="0", request_timeout=str(self.request_timeout), connect_timeout="5")
        url = self.url
        if faulty:
            options |= {"endpoint_url": self.s3.url}
            url = url.replace(f":{self.wire.upstream}/", f":{self.wire.port}/") + "?sslmode=disable"
        source = PostgresSource(url, statement_timeout=statement_timeout)
        return ParquetAnalyticsExporter(self.place.url, source=source, storage_options=options)

    def run(self, *statements: str) -> None:
        execute(self.url, *statements)
        for id, views in rows_of(self.url, "SELECT id, view_count FROM analytics_pageview WHERE date = '2026-07-01'"):
            known = self.versions.setdefault(id, [])
            if not known or known[-1] != views:
                known.append(views)

    def table(self) -> dict[int, int]:
        return dict(rows_of(self.url, "SELECT id, view_count FROM analytics_pageview WHERE date = '2026-07-01'"))

    def file(self) -> dict[int, int]:
        return counts(stored(self.place)) if KEY in list(self.place.keys()) else {}

    def check(self, *, erased: frozenset[int] = frozenset()) -> None:
        table, file = self.table(), self.file()
        for id, versions in self.versions.items():
            if id in erased:
                continue
            if id in table:
                assert table[id] == versions[-1]
            else:
                assert file.get(id) == versions[-1], f"row {id} is lost"
            assert id not in file or file[id] in versions


@pytest.fixture(scope="module")
def wires(s3: S3, postgres: Postgres) -> Iterator[tuple[S3Proxy, PostgresProxy]]:
    proxies = S3Proxy(s3.endpoint_url), PostgresProxy(postgres.port)
    yield proxies
    for proxy in proxies:
        proxy.close()


@dataclass(frozen=True)
class Act:
    """`prepare` makes the state before, `call` is what fails and is made again, `ended` says what is then."""

    prepare: Callable[[World], None]
    call: Callable[[ParquetAnalyticsExporter], Any]
    ended: Callable[[World], None]
    erased: frozenset[int] = frozenset()


def filled(world: World) -> None:
    world.run(ADD)


def exported(world: World) -> None:
    filled(world)
    world.exporter(faulty=False).export_daily_pageviews(DAY, per_project=True)


def changed(world: World) -> None:
    exported(world)
    world.run(
        "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1",
        LATE,
        "INSERT INTO projects_project (id, name, slug) VALUES (8, 'Other', 'other')",
        "INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id) "
        "VALUES (10, '/moved', 1, '2026-07-01', 200, 8)",
    )
    execute(world.url, "UPDATE analytics_pageview SET date = '2026-07-02' WHERE id = 10")
    del world.versions[10]


def partly_deleted(world: World) -> None:
    """Late rows of a day of which rows were deleted."""
    exported(world)
    world.exporter(faulty=False).delete_exported_pageviews(DAY)
    world.run(LATE)


def holds(expected: dict[int, int], table: dict[int, int]) -> Callable[[World], None]:
    def ended(world: World) -> None:
        assert world.file() == expected
        assert world.table() == table
        assert world.exporter(faulty=False).verify(DAY)["total_records"] == len(expected)

    return ended


ALL = {1: 10, 2: 4, 3: 1}
MERGED = {1: 11, 2: 4, 3: 1, 9: 2}


def export(exporter: ParquetAnalyticsExporter) -> Any:
    return exporter.export_daily_pageviews(DAY, per_project=True)


def delete(exporter: ParquetAnalyticsExporter) -> Any:
    return exporter.delete_exported_pageviews(DAY, batch_rows=2)


def erase(exporter: ParquetAnalyticsExporter) -> Any:
    exporter.erase_project(7, "docs")
    return exporter.erase_from_day(DAY, slugs=["docs"])


def erased_is_gone(world: World) -> None:
    assert world.file() == {}
    assert [key for key in world.place.keys() if "/project/" in key] == []  # noqa: SIM118


ACTS = {
    "export": Act(filled, export, holds(ALL, ALL)),
    "merge": Act(changed, export, holds(MERGED, MERGED)),
    "merge after a deletion": Act(partly_deleted, export, holds(ALL | {9: 2}, {9: 2})),
    "delete": Act(exported, delete, holds(ALL, {})),
    "delete the rest": Act(changed, delete, holds(ALL, {1: 11, 9: 2})),
    "erase": Act(exported, erase, erased_is_gone, frozenset({1, 2, 3})),
}


def world_of(s3: S3, postgres: Postgres, wires: tuple[S3Proxy, PostgresProxy]) -> World:
    return World(Place(s3, s3.bucket, f"nth-{uuid.uuid4()}"), postgres.create_database(), *wires)


def disturbed(world: World, act: Act, number: int) -> None:
    """The call with the fault, which may pass or fail, and what holds afterwards."""
    error: ParquetAnalyticsError | None = None
    try:
        with interrupted(world.wire.stuck):
            act.call(world.exporter(faulty=True))
    except ParquetAnalyticsError as raised:
        error = raised
    except Interrupted:
        pass
    assert not isinstance(error, InternalError), error
    assert error is None or error.retryable or isinstance(error, CommitStateUnknown), f"{number}: {error!r}"
    world.check(erased=act.erased)


def given_up(world: World, act: Act, number: int, how: str) -> int:
    """The call that waits in vain, until it has waited enough; how often it struck."""
    world.wire.strike(number, how)
    begun = time.monotonic()
    with contextlib.suppress(DatabaseError, CommitStateUnknown):
        act.call(world.exporter(faulty=True, statement_timeout=1.0))
    # A deletion connects again once.
    assert time.monotonic() - begun < 180
    world.check(erased=act.erased)
    struck = world.wire.disarm()
    healed(world, act)
    return struck


def healed(world: World, act: Act) -> None:
    """The same call again."""
    act.call(world.exporter(faulty=False))
    act.ended(world)
    world.check(erased=act.erased)


FULL = pytest.mark.full


@contextlib.contextmanager
def struck(s3: S3Proxy, number: int, how: str) -> Iterator[NthRequest]:
    """The n-th request meets its fault."""
    fault = NthRequest(number, how)
    s3.armed = fault  # type: ignore[assignment]
    try:
        yield fault
    finally:
        s3.armed = None
        fault.given_up.set()


@pytest.mark.parametrize("how", [pytest.param("refused", marks=FULL), "lost", pytest.param("hangs", marks=FULL)])
@pytest.mark.parametrize("act", ACTS)
def test_whichever_request_to_the_store_fails_the_same_call_heals_it(
    s3: S3, postgres: Postgres, wires: tuple[S3Proxy, PostgresProxy], act: str, how: str
) -> None:
    hits = 0
    for number in itertools.count(1):
        assert number < MOST
        world = world_of(s3, postgres, wires)
        ACTS[act].prepare(world)
        with struck(world.s3, number, how) as fault:
            disturbed(world, ACTS[act], number)
        healed(world, ACTS[act])
        postgres.drop_database(world.url)
        if not fault.hits:
            break
        hits += 1
    # The fewest are an export's: two lists, the day, its write, the look at it, the copy, the list again.
    assert hits >= 6


@pytest.mark.parametrize("how", ["lost", *(pytest.param(how, marks=FULL) for how in ("refused", "hangs", "silent"))])
@pytest.mark.parametrize(
    "act", ["merge", *(pytest.param(name, marks=FULL) for name in ACTS if name not in ("merge", "erase"))]
)
def test_whichever_statement_fails_the_same_call_heals_it(
    s3: S3, postgres: Postgres, wires: tuple[S3Proxy, PostgresProxy], act: str, how: str
) -> None:
    hits = 0
    for number in itertools.count(1):
        assert number < MOST
        world = world_of(s3, postgres, wires)
        ACTS[act].prepare(world)
        world.wire.strike(number, how)
        disturbed(world, ACTS[act], number)
        struck = world.wire.disarm()
        healed(world, ACTS[act])
        postgres.drop_database(world.url)
        if not struck:
            break
        hits += 1
    assert hits >= 10


@FULL
@pytest.mark.parametrize("how", ["hangs", "silent"])
@pytest.mark.parametrize("act", ["merge", "delete the rest"])
def test_a_server_that_does_not_answer_one_statement_is_given_up(
    s3: S3, postgres: Postgres, wires: tuple[S3Proxy, PostgresProxy], act: str, how: str
) -> None:
    """A minute after its time limit, and so all statements at once."""
    worlds = [world_of(s3, postgres, (wires[0], PostgresProxy(postgres.port))) for _ in range(40)]
    for world in worlds:
        world.request_timeout = 30.0
        ACTS[act].prepare(world)
    with ThreadPoolExecutor(len(worlds)) as pool:
        waiting = [pool.submit(given_up, world, ACTS[act], number, how) for number, world in enumerate(worlds, 1)]
    for world in worlds:
        world.wire.close()
        postgres.drop_database(world.url)
    hits = [each.result() for each in waiting]
    assert sum(hits) >= 10
    assert hits[-1] == 0

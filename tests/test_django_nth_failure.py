"""The first request or statement of what a Django site does with a day fails, then the second, and so on until a run
passes without meeting its fault. After each no row is lost or doubled and the ledger tells the truth, and the same call
made again ends as if nothing had happened."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connections
from parquet_analytics import _native, storage
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day, exporter
from parquet_analytics.django.table import outages
from parquet_analytics.django.table.insertion import Table
from parquet_analytics.exceptions import (
    CommitStateUnknown,
    DatabaseError,
    DayIsTaken,
    InternalError,
    InvalidInput,
    ParquetAnalyticsError,
)

from tests import sites
from tests.archives import KEY, Place, execute, rows_of
from tests.sites import DAY
from tests.test_merge import counts, metadata, stored
from tests.test_nth_failure import FULL, MOST, REQUEST_TIMEOUT, Interrupted, interrupted, struck, wires  # noqa: F401
from tests.torture.proxies import PostgresProxy, S3Proxy

VIEWS = {1: 10, 2: 4, 3: 1}
# The page of row 3 again, which comes when row 3 is gone.
AGAIN = {4: 100}
SUMMED = {1: 10, 2: 4, 3: 101}


@dataclass
class World:
    """A site behind proxies, with one day."""

    url: str
    place: Place
    s3: S3Proxy
    wire: PostgresProxy
    client: Any = field(init=False)
    objects: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = self.place.s3.client()

    def table(self) -> dict[int, int]:
        return dict(rows_of(self.url, "SELECT id, view_count FROM analytics_pageview WHERE date = '2026-07-01'"))

    def file(self) -> dict[int, int]:
        return counts(stored(self.place)) if KEY in list(self.place.keys()) else {}

    def runs(self, kind: str) -> list[tuple[str, str]]:
        """States and errors of the runs since it was saved."""
        sql = "SELECT state, error FROM parquet_analytics_run WHERE kind = %s AND id NOT IN (SELECT id FROM saved_runs)"
        return [(state, error) for state, error in rows_of(self.url, f"{sql} ORDER BY id", [kind])]

    def insert(self, views: dict[int, int]) -> None:
        rows = ", ".join(f"({id}, '/{min(id, 3)}', {n}, '{DAY}', 200, 7)" for id, n in views.items())
        execute(
            self.url,
            "INSERT INTO projects_project (id, name, slug) VALUES (7, 'docs', 'docs') ON CONFLICT DO NOTHING",
            f"INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id) VALUES {rows}",
        )

    def save(self) -> None:
        execute(
            self.url,
            "CREATE TABLE saved_views AS SELECT * FROM analytics_pageview",
            "CREATE TABLE saved_runs AS SELECT * FROM parquet_analytics_run",
        )
        self.objects = {key: f"{self.place.location}-saved/{key}" for key in self.place.keys()}  # noqa: SIM118
        for key, copy in self.objects.items():
            self._copy(f"{self.place.location}/{key}", copy)

    def as_saved(self) -> None:
        execute(
            self.url,
            "TRUNCATE analytics_pageview, parquet_analytics_run",
            "INSERT INTO analytics_pageview SELECT * FROM saved_views",
            "INSERT INTO parquet_analytics_run SELECT * FROM saved_runs",
        )
        for key in set(self.place.keys()) - self.objects.keys():
            self.client.delete_object(Bucket=self.place.bucket, Key=f"{self.place.location}/{key}")
        for key, copy in self.objects.items():
            self._copy(copy, f"{self.place.location}/{key}")

    def _copy(self, source: str, key: str) -> None:
        bucket = self.place.bucket
        self.client.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": source})


@pytest.fixture
def world(
    site_database: str,
    place: Place,
    wires: tuple[S3Proxy, PostgresProxy],  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    world = World(site_database, place, *wires)
    transport = storage._transport
    impatient = {"max_retries": "0", "request_timeout": str(REQUEST_TIMEOUT)}
    monkeypatch.setattr(storage, "_transport", lambda client: transport(client) | impatient)
    database = sites.site.postgresql(site_database) | {"PORT": world.wire.port, "OPTIONS": {"sslmode": "disable"}}
    with sites.databases(default=database), sites.archive(sites.s3_entry(place, endpoint_url=world.s3.url)):
        yield world


@dataclass(frozen=True)
class Act:
    """`prepare` makes the state before, `call` is what fails and is made again, `done` is what its run is called then,
    with these rows in the file and in the table."""

    kind: str
    prepare: Callable[[World], None]
    call: Callable[[], Any]
    done: str
    file: dict[int, int]
    table: dict[int, int]


def filled(world: World) -> None:
    world.insert(VIEWS)


def exported(world: World) -> None:
    filled(world)
    export_day(DAY)


def deleted(world: World) -> None:
    exported(world)
    delete_day(DAY)


def deleted_twice(world: World) -> None:
    deleted(world)
    world.insert(AGAIN)
    export_day(DAY)
    delete_day(DAY)


ACTS = {
    "restore": Act("restore", deleted, lambda: restore_day(DAY), "done", VIEWS, VIEWS),
    "restore sums": Act("restore", deleted_twice, lambda: restore_day(DAY), "done", SUMMED, SUMMED),
    "export": Act("export", filled, lambda: export_day(DAY), "verified", VIEWS, VIEWS),
    "delete": Act("delete", exported, lambda: delete_day(DAY), "deleted", VIEWS, {}),
}


def disturbed(world: World, act: Act, number: int) -> None:
    """The call with the fault, which may pass or fail, and what holds afterwards."""
    before = world.table()
    error: Exception | None = None
    try:
        with interrupted(world.wire.stuck):
            act.call()
    except (ParquetAnalyticsError, Interrupted) as raised:
        error = raised
    assert not isinstance(error, InternalError), error
    if isinstance(error, ParquetAnalyticsError):
        assert error.retryable or isinstance(error, CommitStateUnknown), f"{number}: {error!r}"
    table, file = world.table(), world.file()
    # A restoration and an export are all or nothing.
    assert table in (before, act.table) or act.kind == "delete"
    for id, views in (before | act.table).items():
        assert id in table or sum(file.values()) == sum(act.file.values()), f"{number}: row {id} is lost"
        assert table.get(id, views) == views
    for state, about in world.runs(act.kind):
        assert state != "running" or isinstance(error, Interrupted), f"{number}: {error!r}"
        assert state != act.done or (table, file) == (act.table, act.file), (number, state, about)
    if error is None:
        assert [state for state, _ in world.runs(act.kind)][-1:] == [act.done]


def healed(world: World, act: Act) -> None:
    """The same call again; of a run that was stopped before it knew that it had begun, when its lease has ended."""
    try:
        act.call()
    except DayIsTaken:
        assert world.runs(act.kind) == [("running", "")]
        execute(world.url, "UPDATE parquet_analytics_run SET lease_until = now() WHERE state = 'running'")
        act.call()
    assert (world.table(), world.file()) == (act.table, act.file)
    states = [state for state, _ in world.runs(act.kind)]
    assert states[-1] == act.done
    assert "running" not in states
    assert exporter().verify(DAY)["total_views"] == sum(act.file.values())
    if act.kind == "restore":
        assert "remaining" not in metadata(world.place)


# What takes long, and what does not: one act, and of its statements one in so many.
REQUESTS = [
    pytest.param(act, how, marks=() if (act, how) == ("restore sums", "lost") else FULL)
    for act in ACTS
    for how in ("refused", "lost", "hangs")
]
STATEMENTS = [
    pytest.param("restore sums", "lost", 5),
    pytest.param("delete", "refused", 9),
    *(pytest.param(act, how, 1, marks=FULL) for act in ACTS for how in ("refused", "lost", "hangs", "silent")),
]
# A cursor that was not answered when it was closed.
OPEN_CURSORS = pytest.mark.filterwarnings("ignore:.*deleted while still open:ResourceWarning")


@pytest.mark.parametrize(("act", "how"), REQUESTS)
def test_whichever_request_to_the_store_fails_the_same_call_heals_it(world: World, act: str, how: str) -> None:
    ACTS[act].prepare(world)
    world.save()
    hits = 0
    for number in itertools.count(1):
        assert number < MOST
        world.as_saved()
        with struck(world.s3, number, how) as fault:
            disturbed(world, ACTS[act], number)
        healed(world, ACTS[act])
        if not fault.hits:
            break
        hits += 1
    assert hits >= 6


@OPEN_CURSORS
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("act", "how", "every"), STATEMENTS)
def test_whichever_statement_fails_the_same_call_heals_it(world: World, act: str, how: str, every: int) -> None:
    ACTS[act].prepare(world)
    world.save()
    hits = 0
    for number in itertools.count(1, every):
        assert number < MOST
        connections["default"].close()
        world.as_saved()
        world.wire.strike(number, how)
        try:
            disturbed(world, ACTS[act], number)
        finally:
            struck = world.wire.disarm()
        healed(world, ACTS[act])
        if not struck:
            break
        hits += 1
    assert hits >= 20 // every


# The moments of a restoration at which Django itself says something else than what happened.


def struck_after(world: World, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, how: str) -> None:
    """A fault of the n-th statement after a function has returned."""
    original = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        returned = original(*arguments, **named)
        monkeypatch.setattr(owner, name, original)
        world.wire.strike(number, how)
        return returned

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize("how", ["refused", "lost", "hangs", "silent"])
def test_a_commit_that_is_not_answered_is_not_said_to_be_undone(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    act = ACTS["restore sums"]
    act.prepare(world)
    world.save()
    # The lease is made sure of, and then comes the commit.
    struck_after(world, monkeypatch, _native, "prepare_restoration", 2, how)
    with pytest.raises((DatabaseError, Interrupted)) as caught, interrupted(world.wire.stuck):
        restore_day(DAY)
    assert world.wire.disarm() == 1
    assert isinstance(caught.value, Interrupted if how in ("hangs", "silent") else DatabaseError)
    assert world.table() == (act.table if how in ("lost", "silent") else {})
    [(state, about)] = world.runs("restore")
    assert state == "failed"
    assert "nothing was restored" not in about
    assert metadata(world.place)["remaining"] == "unknown"
    healed(world, act)


def test_a_lease_that_cannot_be_renewed_beside_a_transaction_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = ACTS["restore"]
    act.prepare(world)
    world.save()
    monkeypatch.setattr(outages, "PATIENCE", 1.0)
    struck_after(world, monkeypatch, Table, "compare", 1, "hangs")
    with pytest.raises(DatabaseError, match="no answer within 1 seconds") as caught:
        restore_day(DAY)
    assert world.wire.disarm() == 1
    assert caught.value.retryable
    assert world.table() == {}
    assert [state for state, _ in world.runs("restore")] == ["failed"]
    healed(world, act)


def test_a_connection_on_which_somebody_was_stopped_is_not_taken_for_one_without_a_ledger(world: World) -> None:
    act = ACTS["restore"]
    act.prepare(world)
    world.save()
    world.wire.strike(1, "hangs")
    with pytest.raises(Interrupted), interrupted(world.wire.stuck), connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    world.wire.disarm()
    healed(world, act)


def test_rows_that_are_there_are_not_brought_back_twice_and_others_are_not_overwritten(world: World) -> None:
    exported(world)
    world.save()
    assert restore_day(DAY, dry_run=True)["restored"] == 3
    assert restore_day(DAY)["restored"] == 3
    assert (world.table(), world.file()) == (VIEWS, VIEWS)
    execute(world.url, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1")
    for dry_run in (True, False):
        with pytest.raises(InvalidInput, match="the table has 3 rows of this day, and nothing is overwritten"):
            restore_day(DAY, dry_run=dry_run)

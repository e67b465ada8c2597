"""What the ledger and the table know about days: which are exported, verified, deleted, empty, missing or late, how
many bytes that is, and how far behind the archive is."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import due_days, exporter, first_day
from parquet_analytics.django.runs.late import late_days
from parquet_analytics.django.runs.ledger import latest_verified, runs
from parquet_analytics.django.table import outages
from parquet_analytics.django.table.mapping import configured

__all__ = ["DayStatus", "Status", "status"]


@dataclass(frozen=True)
class DayStatus:
    """``state`` is ``verified``, ``empty`` (verified, without rows), ``deleted`` (verified, and its rows let go),
    ``late`` (verified, and rows came since), ``early`` (exported, but before the day's end), ``missing``, or what the
    last run ended as: ``running``, ``failed``, ``mismatch``, ``unknown``, ``abandoned``."""

    day: datetime.date
    state: str
    rows: int | None = None
    views: int | None = None
    bytes: int | None = None
    verified_at: datetime.datetime | None = None
    deleted: int | None = None
    error: str = ""
    vanished: int | None = None
    """Rows in the archive alone although nobody has deleted them by way of the ledger, and they were not old."""


@dataclass(frozen=True)
class Status:
    location: str
    since: datetime.date
    until: datetime.date
    days: list[DayStatus]
    lag: datetime.timedelta | None
    """Since the end of the last day up to which nothing is missing; ``None`` when nothing is exported."""
    through: datetime.date | None
    """That day."""

    def count(self, state: str) -> int:
        return sum(day.state == state for day in self.days)

    @property
    def vanished(self) -> int:
        return sum(day.vanished or 0 for day in self.days)

    @property
    def bytes(self) -> int:
        return sum(day.bytes or 0 for day in self.days)


@outages.reconnecting
def status(
    since: datetime.date | None = None, until: datetime.date | None = None, *, look_for_late: bool = True
) -> Status:
    """The days from ``since`` (by default the first that is known of, at most 90 days back) to ``until`` (by default
    the last finished one). ``look_for_late`` counts the table's rows of the last LOOKBACK_DAYS, and asks for newer ones
    of older days."""
    location = exporter().location
    until = until or days.last_finished()
    if since is None:
        since = min(_first_known(location) or until, until)
        since = max(since, until - datetime.timedelta(days=90))
    verified = latest_verified(location, since, until)
    last = {run.day: run for run in _ended_or_running(location, since, until)}
    deleted = _deleted(location, since, until)
    written = verified | _rewritten(verified, location, since, until)
    late = set()
    if look_for_late:
        recent = max(since, until - datetime.timedelta(days=settings.LOOKBACK_DAYS - 1))
        late = {due.day for due in due_days(recent, until, location) if due.late}
        if since < recent:
            late |= {due.day for due in late_days(recent, location) if due.late}
    found = [
        _of_day(day, verified.get(day), written.get(day), last.get(day), deleted.get(day), day in late)
        for day in days.days(since, until)
    ]
    through = None
    for day in days.days(since, until):
        if day not in verified:
            break
        through = day
    lag = None if through is None else max(days.now() - days.end_of(through), datetime.timedelta(0))
    return Status(location, since, until, found, lag, through)


def _of_day(
    day: datetime.date,
    verified: Run | None,
    written: Run | None,
    last: Run | None,
    deleted: int | None,
    late: bool,
) -> DayStatus:
    if verified is None or written is None:
        if last is None:
            return DayStatus(day, "missing")
        if last.state == Run.State.VERIFIED:
            return _early(last)
        return DayStatus(day, _state(last), error=last.error)
    state = "empty" if verified.rows == 0 else "verified"
    if late:
        state = "late"
    elif deleted is not None:
        state = "deleted"
    if last is not None and last.pk > verified.pk and last.state in {Run.State.MISMATCH, Run.State.UNKNOWN}:
        state = last.state
    return DayStatus(
        day,
        str(state),
        rows=written.rows,
        views=written.views,
        bytes=written.bytes,
        verified_at=verified.finished_at,
        deleted=deleted,
        error=last.error if last is not None else "",
        vanished=verified.vanished,
    )


def _early(run: Run) -> DayStatus:
    taken, end = run.snapshot_at or run.started_at, days.end_of(run.day)
    why = f"exported at {taken:%F %H:%M} UTC, before the day's end ({end:%F %H:%M} UTC); it has to be exported again"
    return DayStatus(run.day, "early", rows=run.rows, views=run.views, bytes=run.bytes, error=why)


def _state(run: Run) -> str:
    """A run whose lease has run out is dead, although nobody else has wanted the day yet."""
    dead = run.state == Run.State.RUNNING and run.lease_until is not None and run.lease_until < days.now()
    return str(Run.State.ABANDONED if dead else run.state)


def _rewritten(
    verified: dict[datetime.date, Run], location: str, since: datetime.date, until: datetime.date
) -> dict[datetime.date, Run]:
    """What the file of each day holds that was written after its export: without some rows by an erasure, or with what
    a deletion says in it."""
    found = runs().filter(kind__in=[Run.Kind.ERASE, Run.Kind.DELETE], state__in=[Run.State.DONE, Run.State.DELETED])
    found = found.filter(location=location, day__gte=since, day__lte=until).order_by("id")
    written: dict[datetime.date, Run] = {}
    for run in found:
        if run.day not in verified or run.pk < verified[run.day].pk:
            continue
        if run.kind == Run.Kind.DELETE:
            before = written.get(run.day, verified[run.day])
            run.rows, run.views, run.bytes = before.rows, before.views, run.bytes or before.bytes
        written[run.day] = run
    return written


def _first_known(location: str) -> datetime.date | None:
    """The first day with a run, or else with rows."""
    first: Any = runs().filter(location=location).order_by("day").values_list("day", flat=True).first()
    return first or first_day(configured())


def _ended_or_running(location: str, since: datetime.date, until: datetime.date) -> Any:
    return runs().filter(kind=Run.Kind.EXPORT, location=location, day__gte=since, day__lte=until).order_by("id")


def _deleted(location: str, since: datetime.date, until: datetime.date) -> dict[datetime.date, int]:
    """Rows deleted of each day, where a deletion came to its end and nobody has restored the day since."""
    found: dict[datetime.date, int] = {}
    ended = runs().filter(location=location, day__gte=since, day__lte=until)
    ended = ended.filter(state__in=[Run.State.DELETED, Run.State.DONE]).order_by("id")
    for kind, day, number in ended.values_list("kind", "day", "deleted"):
        if kind == Run.Kind.DELETE:
            found[day] = found.get(day, 0) + (number or 0)
        elif kind == Run.Kind.RESTORE:
            found.pop(day, None)
    return found

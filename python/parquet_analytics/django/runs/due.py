"""What the table has, and which days it has other rows of than were exported."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, NamedTuple

from parquet_analytics.django import days
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs.ledger import latest_verified, runs
from parquet_analytics.django.table import outages
from parquet_analytics.django.table.databases import read_alias
from parquet_analytics.django.table.mapping import PageViewMapping, configured

__all__ = [
    "Counted",
    "Due",
    "NOTHING_DELETED",
    "Odd",
    "counted",
    "due_days",
    "first_day",
    "odd_rows",
    "page_views",
    "table_days",
]

# Refusals of a deletion.
NOTHING_DELETED = ("ConfigurationError", "DeletionRefused", "InvalidInput")


@dataclass(frozen=True)
class Due:
    """A day to export: never verified, or changed since (``run`` is the export before)."""

    day: datetime.date
    run: Run | None
    late: bool = False
    """Whether rows or views came since. They also become fewer, when a project or version is deleted, say; the archive
    keeps what it has of those, or erases it, and nobody has to look."""


@outages.reconnecting
def due_days(since: datetime.date, until: datetime.date, location: str) -> list[Due]:
    """Those of these days, the oldest first, that have no verified export although the table begins before them, and
    those of which the table has other rows than when they were exported."""
    mapping = configured()
    first = first_day(mapping)
    verified = latest_verified(location, since, until)
    due = []
    for day in days.days(since, until):
        run = verified.get(day)
        if run is None:
            if first is not None and first <= day:
                due.append(Due(day, None))
            continue
        now, expected = counted(mapping, run)
        if now != expected:
            due.append(Due(day, run, late=any(found > before for found, before in zip(now, expected, strict=True))))
    return due


class Counted(NamedTuple):
    """What tells whether the table has other rows of a day than were exported."""

    rows: int
    views: int
    new_id: int = 0
    """The greatest id, when it is greater than all that were exported; otherwise 0. As many rows with as many views may
    have come as went."""


@outages.reconnecting
def counted(mapping: PageViewMapping, run: Run) -> tuple[Counted, Counted]:
    """What the table has of a verified day, now and as it would be if nothing had changed since."""
    from django.db.models import Count, Max, Sum

    number, views = mapping.lookups["id"], mapping.lookups["view_count"]
    found = page_views(mapping).filter(**mapping.of_days(run.day, run.day))
    found = found.aggregate(rows=Count("*"), views=Sum(views), newest=Max(number))
    # The id of a row that cannot be exported is in no file.
    known = None if run.left else run.greatest_id
    newest = found["newest"] or 0
    new_id = newest if known is not None and newest > known else 0
    now = Counted(found["rows"], found["views"] or 0, new_id)
    later = runs().filter(
        day=run.day, location=run.location, id__gt=run.pk, kind__in=[Run.Kind.DELETE, Run.Kind.RESTORE]
    )
    # Those that were refused, and restorations that failed, have changed nothing.
    later = later.exclude(error_type__in=NOTHING_DELETED).exclude(kind=Run.Kind.RESTORE, state=Run.State.FAILED)
    last = later.order_by("-id").first()
    if last is not None and last.kind == Run.Kind.RESTORE and last.state == Run.State.DONE:
        return now, Counted(last.rows or 0, last.views or 0)
    if last is not None and last.moved:
        # They are in the file until the day is exported, whatever the table has.
        return now, Counted(now.rows + last.moved, now.views)
    before = Counted(run.source_rows or 0, run.source_views or 0)
    if last is not None and now == before and not later.filter(state__in=[Run.State.DELETED, Run.State.DONE]).exists():
        # A deletion that was refused, or failed before its first row.
        return now, before
    if last is not None:
        # A deletion that was broken off does not say how many rows it had deleted; those that are left were late.
        return now, Counted(0, 0)
    if run.left:
        return now, Counted((run.source_rows or 0) + run.left, now.views)
    return now, before


@outages.reconnecting
def first_day(mapping: PageViewMapping) -> datetime.date | None:
    """The oldest day in the table."""
    date = mapping.lookups["date"]
    rows = mapping.dated(page_views(mapping), days.FIRST, days.tomorrow())
    return mapping.day_of(rows.order_by(date).values_list(date, flat=True).first())


@outages.reconnecting
def table_days(mapping: PageViewMapping, until: datetime.date) -> list[datetime.date]:
    """The days before ``until`` that the table has rows of, each found by one look at the index on the date."""
    date = mapping.lookups["date"]
    rows = mapping.dated(page_views(mapping), days.FIRST, until - datetime.timedelta(days=1))
    rows = rows.order_by(date).values_list(date, flat=True)
    found = []
    day = mapping.day_of(rows.first())
    while day is not None:
        found.append(day)
        day = mapping.day_of(rows.filter(**mapping.later_than(day)).first())
    return found


def page_views(mapping: PageViewMapping) -> Any:
    """The rows of the table that is read from."""

    return mapping.rows(read_alias(mapping))


class Odd(NamedTuple):
    """Rows that are of no day, so that no export has them and no deletion."""

    kind: str
    rows: int
    ids: list[Any]
    """The first two."""

    def __str__(self) -> str:
        return f"{self.rows} {self.kind} (id {', '.join(map(str, self.ids))}{', ...' if self.rows > 2 else ''})"


@outages.reconnecting
def odd_rows(mapping: PageViewMapping) -> list[Odd]:
    """Rows of the table without a date, or with one that no view can have been counted on."""
    found = []
    for kind, rows in mapping.odd(page_views(mapping), days.tomorrow()).items():
        if count := rows.count():
            ids = rows.order_by(mapping.lookups["id"]).values_list(mapping.lookups["id"], flat=True)
            found.append(Odd(kind, count, list(ids[:2])))
    return found

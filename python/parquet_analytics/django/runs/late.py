"""Rows that came after their day was verified, in ways that counting the last days does not find. The ledger
remembers the greatest id of each file: what came later has a greater one, on whichever day it was counted."""

from __future__ import annotations

import datetime
from typing import Any

from django.db.models import DateField, Max, Min
from django.db.models.functions import TruncDate

from parquet_analytics.django import days
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import Due, counted, page_views
from parquet_analytics.django.runs.ledger import latest_verified, runs
from parquet_analytics.django.table import outages
from parquet_analytics.django.table.mapping import PageViewMapping, configured

__all__ = ["late_days"]

_NIGHT = datetime.timedelta(hours=20)
"""From one night's exports to those of the next, at least."""

_NOT_DONE = (Run.State.FAILED, Run.State.UNKNOWN, Run.State.ABANDONED)


@outages.reconnecting
def late_days(before: datetime.date, location: str) -> list[Due]:
    """The verified days before ``before`` of which rows came since, the oldest first; and those that a task began to
    export again for that reason, and did not.

    Asks for the rows above the greatest id of two nights ago, by the primary key: so rows that were committed after
    others with greater ids are found as well, and nothing is missed when a night was.
    """
    mapping = configured()
    newest = _newest_ids(mapping, before, location)
    begun = _begun_again(before, location)
    if not newest and not begun:
        return []
    wanted = {*newest, *begun}
    verified = latest_verified(location, min(wanted), max(wanted))
    late = {day for day, newest_id in newest.items() if day in verified and _is_late(mapping, verified[day], newest_id)}
    again = {day for day, number in begun.items() if day in verified and number > verified[day].pk}
    return [Due(day, verified[day], late=day in late) for day in sorted(late | again)]


def _newest_ids(mapping: PageViewMapping, before: datetime.date, location: str) -> dict[datetime.date, int]:
    """The greatest id of each day before ``before`` that has rows which came lately."""
    known = _known_id(location)
    if known is None:
        return {}
    number, date = mapping.lookups["id"], mapping.lookups["date"]
    rows = mapping.dated(page_views(mapping), days.FIRST, before - datetime.timedelta(days=1))
    rows = rows.filter(**{f"{number}__gt": known}).order_by()
    if mapping.timestamps:
        day = TruncDate(date, output_field=DateField(), tzinfo=datetime.UTC)
        rows = rows.annotate(parquet_analytics_day=day)
        date = "parquet_analytics_day"
    return dict(rows.values_list(date).annotate(parquet_analytics_id=Max(number)))


def _known_id(location: str) -> int | None:
    """The greatest id of two nights ago. Of a ledger that is younger, the least of what it knows."""
    exports = runs().filter(kind=Run.Kind.EXPORT, state=Run.State.VERIFIED, location=location)
    exports = exports.filter(greatest_id__isnull=False, snapshot_at__isnull=False)
    # What somebody exports by hand says nothing of when was looked last, where tasks do it every night.
    last: Any = exports.exclude(task_id="").aggregate(Max("snapshot_at"))["snapshot_at__max"]
    last = last or exports.aggregate(Max("snapshot_at"))["snapshot_at__max"]
    if last is None:
        return None
    older = exports.filter(snapshot_at__lte=last - _NIGHT).order_by("-day", "-id")
    found: int | None = older.values_list("greatest_id", flat=True).first()
    if found is None:
        found = exports.aggregate(Min("greatest_id"))["greatest_id__min"]
    return found


def _is_late(mapping: PageViewMapping, run: Run, newest_id: int) -> bool:
    if run.greatest_id is not None:
        return newest_id > run.greatest_id
    if not run.rows:
        return True
    # Exported before ids were remembered.
    now, expected = counted(mapping, run)
    return any(found > before for found, before in zip(now, expected, strict=True))


def _begun_again(before: datetime.date, location: str) -> dict[datetime.date, int]:
    """The last run of each day that a task did not bring to its end."""
    found = runs().filter(kind=Run.Kind.EXPORT, location=location, day__lt=before, state__in=_NOT_DONE)
    return dict(found.exclude(task_id="").order_by("id").values_list("day", "id"))

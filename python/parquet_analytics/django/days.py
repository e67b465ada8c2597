"""Which days are over, and which may go. Days are the UTC ones, unless the model's DateField holds those of another
time zone (``DAY_TIME_ZONE``)."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator

from parquet_analytics.django.conf import settings

__all__ = ["FIRST", "days", "deletable_before", "end_of", "is_complete", "last_finished", "now", "today", "tomorrow"]

_DAY = datetime.timedelta(days=1)

FIRST = datetime.date(1970, 1, 1)
"""No site counts views of days before this one, nor of days after tomorrow: rows of such days are odd ones."""


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def today() -> datetime.date:
    """The day that rows are counted on now."""
    return now().astimezone(zoneinfo.ZoneInfo(settings.DAY_TIME_ZONE)).date()


def tomorrow() -> datetime.date:
    """The newest day that rows can be of: a site may count by a zone further east."""
    return today() + _DAY


def end_of(day: datetime.date) -> datetime.datetime:
    """When a day is over: here, and by UTC, whichever is later."""
    zone = zoneinfo.ZoneInfo(settings.DAY_TIME_ZONE)
    midnight = datetime.datetime.combine(day + _DAY, datetime.time.min)
    return max(midnight.replace(tzinfo=zone).astimezone(datetime.UTC), midnight.replace(tzinfo=datetime.UTC))


def is_complete(day: datetime.date, snapshot_at: datetime.datetime | None, started_at: datetime.datetime) -> bool:
    """Whether what a run exported is the whole day: a snapshot from before its end is without what came after. Runs
    from before there was such a column go by when they started."""
    return (snapshot_at or started_at) >= end_of(day)


def last_finished() -> datetime.date:
    """The newest day that has been over for GRACE_MINUTES."""
    grace = datetime.timedelta(minutes=settings.GRACE_MINUTES)
    day = today() - _DAY
    while end_of(day) + grace > now():
        day -= _DAY
    return day


def deletable_before() -> datetime.date:
    """Rows of days before this one are older than HOT_DAYS."""
    return today() - settings.HOT_DAYS * _DAY


def days(since: datetime.date, until: datetime.date) -> Iterator[datetime.date]:
    """The days from since to until, both included."""
    for number in range((until - since).days + 1):
        yield since + number * _DAY

"""Celery tasks: the nightly export, a backfill and the deletion of rows that are old and safe.

Their results are in the ledger. Arguments are JSON, without secrets. Importing this module loads neither the native
module nor pyarrow.

A task that is killed is delivered again (``acks_late``, ``reject_on_worker_lost``); one that kills its worker each
time is given up for a day after a few times. What can succeed later is tried again, with longer and longer pauses.
"""

from __future__ import annotations

import datetime
import logging
import random
from collections.abc import Callable
from typing import Any, TypeVar

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.exceptions import DayIsTaken, InvalidInput, ParquetAnalyticsError

__all__ = [
    "backfill_pageviews_to_parquet",
    "compact_pageviews",
    "delete_exported_pageviews",
    "erase_deleted_projects",
    "export_pageviews_to_parquet",
]

T = TypeVar("T")

_log = logging.getLogger("parquet_analytics.django")

SOFT_TIME_LIMIT = 55 * 60
TIME_LIMIT = 60 * 60
"""Seconds. After the first a run is broken off in order, after the second it is killed."""

MAX_RETRIES = 6
_FIRST_PAUSE = 60.0
_LONGEST_PAUSE = 30 * 60.0

MOST_KILLED = 3
"""How often within a day a run may die on one day of page views before tasks leave it to people."""

_options: dict[str, Any] = {
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
    "max_retries": MAX_RETRIES,
    "soft_time_limit": SOFT_TIME_LIMIT,
    "time_limit": TIME_LIMIT,
    # An option of ours: page views go only by way of the ledger; see `manage.py parquet_analytics doctor`.
    "parquet_analytics_guarded": True,
}


@shared_task(name="parquet_analytics.export_pageviews_to_parquet", bind=True, **_options)
def export_pageviews_to_parquet(self: Task, date: str | None = None) -> None:
    """Export the day ``date`` (YYYY-MM-DD), or without it every finished day of the last LOOKBACK_DAYS that has no
    verified file or has changed since, and every older one that rows have come to, the oldest first: a missed night
    heals by itself. Then bring what is derived of all days up to date (COMPACT)."""
    from parquet_analytics.django import runs, signals
    from parquet_analytics.django.erasure import sweep
    from parquet_analytics.django.runs import late

    if date is not None:
        _export(self, [_day(date)])
        return
    last = days.last_finished()
    first = last - datetime.timedelta(days=settings.LOOKBACK_DAYS - 1)
    location = runs.exporter().location
    due = _retrying(self, lambda: late.late_days(first, location) + runs.due_days(first, last, location))
    for each in due:
        if each.late:
            _log.warning("%s: rows came after the export of this day", each.day, extra=_extra(each.day))
            signals.send(signals.late_rows_found, day=each.day, run=each.run)
    missing = [each.day for each in due if each.run is None and each.day != last]
    if missing:
        _log.warning("days without a verified file are exported now: %s", ", ".join(map(str, missing)))
        signals.send(signals.days_missing, days=missing)
    _warn_of_odd_rows()
    # What was deleted while there was no broker to tell.
    sweep.erase_pending_or_log(self.request.id or "")
    try:
        _export(self, [each.day for each in due])
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        # Days that failed do not keep the others from what is derived of them.
        _compact_or_log(self.request.id or "")
        raise
    _compact_or_log(self.request.id or "")


@shared_task(name="parquet_analytics.compact_pageviews", bind=True, **_options)
def compact_pageviews(self: Task, since: str | None = None, until: str | None = None) -> None:
    """Bring the derived files of months up to date that have a day from ``since`` to ``until``, by default of all."""
    from parquet_analytics.django import runs

    first, last = (None if day is None else _day(day) for day in (since, until))
    _retrying(self, lambda: runs.compact(first, last, task_id=self.request.id or ""))


@shared_task(name="parquet_analytics.backfill_pageviews_to_parquet", bind=True, **_options)
def backfill_pageviews_to_parquet(self: Task, since: str, until: str | None = None) -> None:
    """Send one export for each day from ``since`` to ``until`` (by default the last finished one) that has no verified
    file, the oldest first, to the queue in the settings. Days before the table's first are left out."""
    from parquet_analytics.django import runs
    from parquet_analytics.django.runs.ledger import latest_verified
    from parquet_analytics.django.table.mapping import configured

    first = _day(since)
    last = days.last_finished() if until is None else _day(until)
    if first > last:
        raise InvalidInput(f"since ({first}) lies after until ({last})")
    begins = _retrying(self, lambda: runs.first_day(configured()))
    if begins is None or begins > last:
        _log.warning("%s to %s: the table has no rows of these days, nor of earlier ones", first, last)
        return
    location = runs.exporter().location
    verified = _retrying(self, lambda: latest_verified(location, first, last))
    for day in days.days(max(first, begins), last):
        if day not in verified:
            export_pageviews_to_parquet.apply_async(args=[day.isoformat()], **_queue())


@shared_task(name="parquet_analytics.delete_exported_pageviews", bind=True, **_options)
def delete_exported_pageviews(self: Task) -> None:
    """Delete the rows of days older than HOT_DAYS, the oldest first, but only of days whose file is verified: each row
    that is in it, unchanged. Rows that came late are exported first. Days without a verified file keep their rows."""
    from parquet_analytics.django import runs, signals
    from parquet_analytics.django.runs.ledger import latest_verified
    from parquet_analytics.django.table.mapping import configured

    found = _retrying(self, lambda: runs.table_days(configured(), days.deletable_before()))
    if not found:
        return
    location = runs.exporter().location
    verified = _retrying(self, lambda: latest_verified(location, found[0], found[-1]))
    missing = [day for day in found if day not in verified]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        _log.warning(
            "%s days older than HOT_DAYS keep their rows, because they have no verified file: %s", len(missing), shown
        )
        signals.send(signals.days_missing, days=missing)
    _each(self, "delete", [day for day in found if day in verified], _delete_day)


@shared_task(name="parquet_analytics.erase_deleted_projects", bind=True, **_options)
def erase_deleted_projects(self: Task) -> None:
    """Take the page views of deleted projects out of the store: files, and copies."""
    from parquet_analytics.django.erasure.sweep import erase_pending

    try:
        _retrying(self, lambda: erase_pending(self.request.id or ""))
    except ParquetAnalyticsError as error:
        _log.error("erasing deleted projects failed: %s", error, extra=_extra(error.day, error.key, error.run_id))
        raise


def _compact_or_log(task_id: str) -> None:
    """Questions are answered without what is derived, only slower."""
    from parquet_analytics.django import runs

    if not settings.COMPACT:
        return
    try:
        runs.compact(task_id=task_id)
    except DayIsTaken as error:
        _log.info("%s", error)
    except ParquetAnalyticsError as error:
        _log.error("compacting page views failed: %s", error, extra=_extra(error.day, error.key, error.run_id))


def _warn_of_odd_rows() -> None:
    from django.db import Error as AnyDatabaseError

    from parquet_analytics.django import runs
    from parquet_analytics.django.table.mapping import configured

    try:
        odd = runs.odd_rows(configured())
    except (ParquetAnalyticsError, AnyDatabaseError) as error:
        _log.warning("rows that are of no day could not be looked for: %s", error)
        return
    if odd:
        _log.warning("rows that are of no day are neither exported nor deleted: %s", "; ".join(map(str, odd)))


def _retrying(task: Task, work: Callable[[], T]) -> T:
    """What a task does as a whole, or has to know before its first day: waited for, and then tried again like a day."""
    from parquet_analytics.django.table.outages import Patience

    try:
        return Patience()(work)
    except ParquetAnalyticsError as error:
        if error.retryable and not _last_try(task):
            raise task.retry(exc=error, countdown=_pause(task, [error]), **_queue()) from error
        raise


def _delete_day(day: datetime.date, task_id: str) -> None:
    from parquet_analytics.django import runs

    _, result = runs.delete_day(day, task_id=task_id)
    if result["late"] or result["changed"]:
        # What came after the export is merged into the file, and can then go as well.
        runs.export_day(day, task_id=task_id)
        runs.delete_day(day, task_id=task_id)


def _export(task: Task, wanted: list[datetime.date]) -> None:
    from parquet_analytics.django import runs

    def export(day: datetime.date, task_id: str) -> None:
        runs.export_day(day, task_id=task_id, unless_done=True)

    _each(task, "export", wanted, export)


def _each(task: Task, kind: str, wanted: list[datetime.date], work: Any) -> None:
    """Does the work for each day. What fails for good is logged and raised at the end, what may succeed later makes
    the task be tried again, and neither keeps the other days from being worked on."""
    from parquet_analytics.django import runs
    from parquet_analytics.django.runs import ledger
    from parquet_analytics.django.table.outages import Patience

    location = runs.exporter().location
    patience = Patience()
    again: list[ParquetAnalyticsError] = []
    failed: list[Exception] = []
    for day in wanted:

        def work_unless_it_kills(day: datetime.date = day) -> None:
            if ledger.killed_runs(kind, day, location) >= MOST_KILLED:
                raise ParquetAnalyticsError(
                    f"{day}: {MOST_KILLED} runs in a row were killed on this day, so tasks leave it alone for a day; "
                    "look at the worker's memory and logs, then run manage.py export_pageviews_to_parquet",
                    day=day,
                )
            work(day, task.request.id or "")

        try:
            patience(work_unless_it_kills)
        except SoftTimeLimitExceeded:
            _log.error("%s: %s was broken off after %s s; the next run goes on", day, kind, SOFT_TIME_LIMIT)
            raise
        except ParquetAnalyticsError as error:
            if error.retryable and not _last_try(task):
                again.append(error)
            else:
                _final(kind, day, error)
                failed.append(error)
        except Exception as error:  # noqa: BLE001 - the other days are not to suffer from it
            _final(kind, day, error)
            failed.append(error)
    if again:
        raise task.retry(exc=again[0], countdown=_pause(task, again), **_queue())
    if failed:
        raise failed[0]


def _last_try(task: Task) -> bool:
    return bool(task.request.called_directly or task.request.retries >= MAX_RETRIES)


def _pause(task: Task, errors: list[ParquetAnalyticsError]) -> float:
    """Longer with each try, and never the same for two workers."""
    from parquet_analytics.django.runs.ledger import LEASE

    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**task.request.retries)
    pause = random.uniform(longest / 2, longest)  # noqa: S311 - not for secrets
    if any(isinstance(error, DayIsTaken) for error in errors):
        pause = max(pause, LEASE.total_seconds())
    return pause


def _final(kind: str, day: datetime.date, error: Exception) -> None:
    """One line for each failure that no retry follows."""
    about = _extra(day, getattr(error, "key", None), getattr(error, "run_id", None))
    _log.error("%s of page views failed: %s", kind, error, extra=about)


def _extra(day: datetime.date | None, key: str | None = None, run_id: str | None = None) -> dict[str, str | None]:
    return {"day": None if day is None else day.isoformat(), "key": key, "run_id": run_id}


def _queue() -> dict[str, str]:
    queue = settings.QUEUE
    return {} if queue is None else {"queue": queue}


def _day(text: str) -> datetime.date:
    from parquet_analytics._arguments import day_text

    return datetime.date.fromisoformat(day_text(text, "date"))

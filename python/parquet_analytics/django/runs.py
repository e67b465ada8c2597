"""One day exported or deleted as the settings say, under its lease, with its row in the ledger. What the command and
the tasks share."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parquet_analytics.django import days, organizations, signals
from parquet_analytics.django.conf import settings
from parquet_analytics.django.ledger import Ledger, latest_verified, runs
from parquet_analytics.django.mapping import PageViewMapping, configured
from parquet_analytics.django.models import Run
from parquet_analytics.exceptions import ConfigurationError, DatabaseError, DayHasNoRows, DayIsTaken, DeletionRefused

__all__ = ["Due", "delete_day", "due_days", "export_day", "exporter", "first_day", "table_days"]

_log = logging.getLogger("parquet_analytics.django")

# How often an export is begun again that a standby broke off, because its replay could wait no longer.
_ATTEMPTS = 3
_RECOVERY_CONFLICT = "40001"


def exporter() -> Any:
    """An exporter of the model, storage and prefix in the settings."""
    from parquet_analytics.exporter import ParquetAnalyticsExporter

    return ParquetAnalyticsExporter()


def export_day(
    day: datetime.date,
    *,
    per_project: bool | None = None,
    per_organization: bool | None = None,
    task_id: str = "",
    unless_done: bool = False,
    of_range: bool = False,
    progress: Callable[[int, int | None], object] | None = None,
    **options: Any,
) -> tuple[Run, dict[str, Any]]:
    """Export a day, verify it, and say what the ledger has of it and what the exporter said.

    With ``unless_done``, a day that is verified and of which the table has not changed since is left alone, and its
    last run and an empty dict are the answer. That is asked under the lease, so that of several deliveries of one
    message one does the work. With ``of_range``, a day before the table's first row is no failure that anybody is told
    of, only :class:`DayHasNoRows`.

    :raises ParquetAnalyticsError: whatever the exporter raises, and :class:`DayIsTaken`.
    """
    from parquet_analytics.django.source import configured_source, read_alias
    from parquet_analytics.exporter import ParquetAnalyticsExporter

    # Asked once: what is recorded is what was read.
    alias = read_alias(configured())
    who = ParquetAnalyticsExporter(source=configured_source(day, alias=alias))
    per_project = settings.PER_PROJECT if per_project is None else per_project
    per_organization = settings.PER_ORGANIZATION if per_organization is None else per_organization
    ledger = Ledger(Run.Kind.EXPORT, day, who.location, database=alias, task_id=task_id)

    def tick(done: int, total: int | None) -> None:
        ledger.renew()
        if progress is not None:
            progress(done, total)

    tick.wants_total = getattr(progress, "wants_total", progress is not None)  # type: ignore[attr-defined]
    run = ledger.run
    run.per_project, run.per_organization = per_project, per_organization
    try:
        with ledger:
            done = latest_verified(who.location, day, day).get(day) if unless_done else None
            if done is not None:
                now, expected = _counted(configured(), done)
                if now == expected:
                    ledger.needless()
                    return done, {}
            run.key = who.get_parquet_path(day)
            try:
                result = _export(
                    who,
                    day,
                    per_project=per_project,
                    per_organization=organizations.members() if per_organization else None,
                    progress=tick,
                    **options,
                )
            except DayHasNoRows:
                if of_range:
                    ledger.needless()
                raise
            _record(run, result)
            run.state = Run.State.VERIFIED
    except DayIsTaken:
        raise
    except Exception as error:
        if of_range and isinstance(error, DayHasNoRows):
            raise
        signals.tell(signals.run_failed, run=run, error=error)
        raise
    signals.tell(signals.run_finished, run=run)
    return run, result


def _export(who: Any, day: datetime.date, **options: Any) -> dict[str, Any]:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return who.export_daily_pageviews(day, **options)
        except DatabaseError as error:
            if error.sqlstate != _RECOVERY_CONFLICT or attempt == _ATTEMPTS:
                raise
            _log.warning("%s: attempt %s was broken off by the standby, begun again: %s", day, attempt, error)
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _record(run: Run, result: dict[str, Any]) -> None:
    run.outcome = result["outcome"]
    run.etag, run.sha256, run.run_id = result["etag"], result["sha256"], result["run_id"]
    run.rows, run.views, run.bytes = result["total_records"], result["total_views"], result["bytes"]
    run.source_rows, run.source_views = result["source_records"], result["source_views"]
    run.added, run.changed, run.kept, run.left = (result[name] for name in ("added", "changed", "kept", "left"))
    run.source = result["source"][:500]
    run.standby, run.position = result["standby"], result["position"] or ""


def delete_day(
    day: datetime.date, *, task_id: str = "", progress: Callable[[int, int], object] | None = None
) -> tuple[Run, dict[str, Any]]:
    """Delete those rows of a day that are in its verified file, unchanged, from the database that may be written to.

    :class:`DeletionRefused` for a day that HOT_DAYS keeps or that the ledger does not call verified, and whatever the
    exporter raises.
    """
    from parquet_analytics._native import PostgresSource
    from parquet_analytics.django.source import configured_source, write_alias

    who = exporter()
    if day >= days.deletable_before():
        raise DeletionRefused(
            f"{day}: rows stay for {settings.HOT_DAYS} days (HOT_DAYS); those before {days.deletable_before()} may go",
            day=day,
        )
    if day not in latest_verified(who.location, day, day):
        raise DeletionRefused(
            f"{day}: the ledger knows of no verified export of this day to {who.location}; export it first", day=day
        )
    alias = write_alias(configured())
    ledger = Ledger(Run.Kind.DELETE, day, who.location, database=alias, task_id=task_id)

    def tick(done: int, total: int) -> None:
        ledger.renew()
        if progress is not None:
            progress(done, total)

    run = ledger.run
    try:
        with ledger:
            run.key = who.get_parquet_path(day)
            database = configured_source(write=True, alias=alias)
            if not isinstance(database, PostgresSource):
                raise ConfigurationError(f"rows are deleted from PostgreSQL alone, natively; {alias!r} is not read so")
            result = who.delete_exported_pageviews(
                day,
                database=database,
                allow_local_delete=settings.ALLOW_LOCAL_DELETE,
                max_rows_per_second=settings.DELETE_ROWS_PER_SECOND,
                max_replica_lag=settings.DELETE_MAX_REPLICA_LAG,
                progress=tick,
            )
            run.etag = result["etag"]
            run.deleted, run.changed, run.late = result["deleted"], result["changed"], result["late"]
            run.left = result["left"]
            run.state = Run.State.DELETED
    except DayIsTaken:
        raise
    except Exception as error:
        signals.tell(signals.run_failed, run=run, error=error)
        raise
    signals.tell(signals.run_finished, run=run)
    return run, result


@dataclass(frozen=True)
class Due:
    """A day to export: never verified, or changed since (``run`` is the export before)."""

    day: datetime.date
    run: Run | None
    late: bool = False
    """Whether rows or views came since. They also become fewer, when a project or version is deleted, say; the archive
    keeps what it has of those, or erases it, and nobody has to look."""


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
        now, expected = _counted(mapping, run)
        if now != expected:
            due.append(Due(day, run, late=any(found > before for found, before in zip(now, expected, strict=True))))
    return due


def _counted(mapping: PageViewMapping, run: Run) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and views of a verified day in the table, now and as they would be if nothing had changed since."""
    from django.db.models import Count, Sum

    found = _rows(mapping).filter(**mapping.of_days(run.day, run.day))
    counted = found.aggregate(rows=Count("pk"), views=Sum(mapping.lookups["view_count"]))
    now = (counted["rows"], counted["views"] or 0)
    later = runs().filter(
        day=run.day, location=run.location, id__gt=run.pk, kind__in=[Run.Kind.DELETE, Run.Kind.RESTORE]
    )
    last = later.order_by("-id").first()
    if last is not None and last.kind == Run.Kind.RESTORE and last.state == Run.State.DONE:
        return now, (last.rows or 0, last.views or 0)
    before = (run.source_rows or 0, run.source_views or 0)
    if last is not None and now == before and not later.filter(state__in=[Run.State.DELETED, Run.State.DONE]).exists():
        # A deletion that was refused, or failed before its first row.
        return now, before
    if last is not None:
        # A deletion that was broken off does not say how many rows it had deleted; those that are left were late.
        return now, (0, 0)
    if run.left:
        return now, ((run.source_rows or 0) + run.left, now[1])
    return now, before


def first_day(mapping: PageViewMapping) -> datetime.date | None:
    """The oldest day in the table."""
    date = mapping.lookups["date"]
    return mapping.day_of(_rows(mapping).order_by(date).values_list(date, flat=True).first())


def table_days(mapping: PageViewMapping, until: datetime.date) -> list[datetime.date]:
    """The days before ``until`` that the table has rows of, each found by one look at the index on the date."""
    date = mapping.lookups["date"]
    rows = _rows(mapping).filter(**mapping.earlier_than(until)).order_by(date).values_list(date, flat=True)
    found = []
    day = mapping.day_of(rows.first())
    while day is not None:
        found.append(day)
        day = mapping.day_of(rows.filter(**mapping.later_than(day)).first())
    return found


def _rows(mapping: PageViewMapping) -> Any:
    from parquet_analytics.django.source import read_alias

    return mapping.model._base_manager.using(read_alias(mapping))

"""One day exported or deleted as the settings say, under its lease, with its row in the ledger. What the command and
the tasks share."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import ProgrammingError

from parquet_analytics.django import days, signals
from parquet_analytics.django.conf import settings
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs.ledger import Ledger, latest_verified, runs, without_rows
from parquet_analytics.django.table import effects, organizations, outages
from parquet_analytics.django.table.mapping import PageViewMapping, configured
from parquet_analytics.exceptions import (
    ConfigurationError,
    DatabaseError,
    DayHasNoRows,
    DayIsTaken,
    DeletionRefused,
    SourceError,
)

__all__ = [
    "Counted",
    "Due",
    "Odd",
    "counted",
    "delete_day",
    "due_days",
    "export_day",
    "exporter",
    "first_day",
    "odd_rows",
    "page_views",
    "table_days",
]

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
    location = exporter().location
    per_project = settings.PER_PROJECT if per_project is None else per_project
    per_organization = settings.PER_ORGANIZATION if per_organization is None else per_organization
    ledger = Ledger(Run.Kind.EXPORT, day, location, database=alias, task_id=task_id)

    def tick(done: int, total: int | None) -> None:
        ledger.renew()
        if progress is not None:
            progress(done, total)

    tick.wants_total = getattr(progress, "wants_total", progress is not None)  # type: ignore[attr-defined]
    run = ledger.run
    run.per_project, run.per_organization = per_project, per_organization
    try:
        with outages.told(), ledger, outages.told():
            done = latest_verified(location, day, day).get(day) if unless_done else None
            if done is not None:
                now, expected = counted(configured(), done)
                if now == expected:
                    ledger.needless()
                    return done, {}
            source = configured_source(day, alias=alias)
            who = ParquetAnalyticsExporter(source=source)
            run.key = who.get_parquet_path(day)
            # Asked before, while a failure to ask spoils nothing.
            known, may_vanish = _vanished_before(day, location), _may_vanish(day, location)
            try:
                result = _export(
                    who,
                    source,
                    day,
                    expect_stored=bool(without_rows(day, day)) and not _is_as_exported(day),
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
            run.vanished = run.kept if may_vanish else min(run.kept or 0, known)
            run.state = Run.State.VERIFIED
    except DayIsTaken:
        raise
    except Exception as error:
        if of_range and isinstance(error, DayHasNoRows):
            raise
        signals.tell(signals.run_failed, run=run, error=error)
        raise
    signals.tell(signals.run_finished, run=run)
    if run.vanished is not None and run.vanished > known:
        _log.warning(
            "%s: the table has lost %s rows of this day, which are kept in the archive", day, f"{run.vanished:,}"
        )
        signals.tell(signals.rows_vanished, day=day, rows=run.vanished, run=run)
    return run, result


@outages.asking
def _is_as_exported(day: datetime.date) -> bool:
    """Whether the table has what it had at the last export to whatever place, so that a deletion since was none."""
    run = runs().filter(kind=Run.Kind.EXPORT, state=Run.State.VERIFIED, day=day).order_by("-id").first()
    if run is None or runs().filter(kind=Run.Kind.DELETE, state=Run.State.DELETED, day=day, id__gt=run.pk).exists():
        return False
    try:
        now, _ = counted(configured(), run)
    except ProgrammingError:
        # The export says which right or table is missing.
        return False
    return now == Counted(run.source_rows or 0, run.source_views or 0)


@outages.asking
def _vanished_before(day: datetime.date, location: str) -> int:
    """What the export before said: a deletion since then has not brought those rows back."""
    found = runs().filter(day=day, kind=Run.Kind.EXPORT, state=Run.State.VERIFIED, location=location)
    return found.order_by("-id").values_list("vanished", flat=True).first() or 0


@outages.asking
def _may_vanish(day: datetime.date, location: str) -> bool:
    """Whether rows that only the store has went from the table in another way than by a deletion of ours, or because
    they were old."""
    return day >= days.deletable_before() and not _has_deletion(day, location)


_NOTHING_DELETED = ("ConfigurationError", "DeletionRefused", "InvalidInput")


def _has_deletion(day: datetime.date, location: str) -> bool:
    """Whether rows of the day may have been deleted by us since it was last restored whole."""
    since = runs().filter(day=day, location=location, kind__in=[Run.Kind.DELETE, Run.Kind.RESTORE]).order_by("-id")
    for run in since:
        if run.kind == Run.Kind.DELETE and run.error_type not in _NOTHING_DELETED:
            return True
        if run.kind == Run.Kind.RESTORE and run.state == Run.State.DONE and not run.left:
            return False
    return False


def _export(who: Any, source: Any, day: datetime.date, **options: Any) -> dict[str, Any]:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return who.export_daily_pageviews(day, **options)
        except DatabaseError as error:
            if error.sqlstate != _RECOVERY_CONFLICT or attempt == _ATTEMPTS:
                raise
            _log.warning("%s: attempt %s was broken off by the standby, begun again: %s", day, attempt, error)
            time.sleep(attempt)
        except SourceError as error:
            # An Arrow stream hands on what its producer says, and not what that means.
            failure = getattr(source, "failure", None)
            if failure is None or not outages.is_away(failure):
                raise
            raise DatabaseError(str(error), day=day, retryable=True) from failure
    raise AssertionError("unreachable")


def _record(run: Run, result: dict[str, Any]) -> None:
    run.outcome = result["outcome"]
    run.etag, run.sha256, run.run_id = result["etag"], result["sha256"], result["run_id"]
    run.rows, run.views, run.bytes = result["total_records"], result["total_views"], result["bytes"]
    run.source_rows, run.source_views = result["source_records"], result["source_views"]
    run.added, run.changed, run.kept, run.moved, run.left = (
        result[name] for name in ("added", "changed", "kept", "moved", "left")
    )
    run.source = result["source"][:500]
    run.standby, run.position = result["standby"], result["position"] or ""
    run.snapshot_at = datetime.datetime.fromisoformat(result["snapshot_time"])
    run.greatest_id = None if result["ids"] is None else result["ids"][1]


def delete_day(
    day: datetime.date, *, task_id: str = "", progress: Callable[[int, int], object] | None = None
) -> tuple[Run, dict[str, Any]]:
    """Delete those rows of a day that are in its verified file, unchanged, from the database that may be written to.
    A day that rows have left since its export is exported again before: they may have moved, and are in its file until
    then. So are other days whose rows have moved to this one, and the day itself afterwards when rows of its file live
    on another date.

    :class:`DeletionRefused` for a day that HOT_DAYS keeps or that the ledger does not call verified, and whatever the
    exporter raises.
    """
    verified = latest_verified(exporter().location, day, day).get(day)
    if verified is not None and day < days.deletable_before():
        now, expected = counted(configured(), verified)
        if now.rows < expected.rows or now.views < expected.views:
            export_day(day, task_id=task_id)
    try:
        done = _delete_day(day, task_id=task_id, progress=progress)
    except DeletionRefused as error:
        if not error.export_first:
            raise
        _log.warning("%s", error)
        # The rows may have moved either way.
        for each in (*error.export_first, day):
            export_day(each, task_id=task_id)
        done = _delete_day(day, task_id=task_id, progress=progress)
    if done[0].moved:
        # They moved meanwhile, or others came in their place.
        export_day(day, task_id=task_id)
    return done


def _delete_day(
    day: datetime.date, *, task_id: str, progress: Callable[[int, int], object] | None
) -> tuple[Run, dict[str, Any]]:
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
            f"{day}: the ledger knows of no verified export of this day to {who.location}, made after its end; export "
            "it first",
            day=day,
        )
    alias = write_alias(configured())
    ledger = Ledger(Run.Kind.DELETE, day, who.location, database=alias, task_id=task_id)

    def tick(done: int, total: int) -> None:
        ledger.renew()
        if progress is not None:
            progress(done, total)

    run = ledger.run
    try:
        with outages.told(), ledger, outages.told():
            run.key = who.get_parquet_path(day)
            database = configured_source(write=True, alias=alias)
            if not isinstance(database, PostgresSource):
                raise ConfigurationError(f"rows are deleted from PostgreSQL alone, natively; {alias!r} is not read so")
            effects.refuse_dangling(configured(), alias, day)
            result = who.delete_exported_pageviews(
                day,
                database=database,
                allow_local_delete=settings.ALLOW_LOCAL_DELETE,
                allow_cascades=settings.DELETE_CASCADES,
                lose_columns=effects.may_be_lost(configured()),
                max_rows_per_second=settings.DELETE_ROWS_PER_SECOND,
                max_replica_lag=settings.DELETE_MAX_REPLICA_LAG,
                progress=tick,
            )
            run.etag, run.bytes = result["etag"], result["bytes"]
            run.deleted, run.changed, run.late = result["deleted"], result["changed"], result["late"]
            run.moved, run.left = result["moved"], result["left"]
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


@outages.asking
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


@outages.asking
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
    later = later.exclude(error_type__in=_NOTHING_DELETED).exclude(kind=Run.Kind.RESTORE, state=Run.State.FAILED)
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


@outages.asking
def first_day(mapping: PageViewMapping) -> datetime.date | None:
    """The oldest day in the table."""
    date = mapping.lookups["date"]
    rows = mapping.dated(page_views(mapping), days.FIRST, days.tomorrow())
    return mapping.day_of(rows.order_by(date).values_list(date, flat=True).first())


@outages.asking
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
    from parquet_analytics.django.source import read_alias

    return mapping.rows(read_alias(mapping))


class Odd(NamedTuple):
    """Rows that are of no day, so that no export has them and no deletion."""

    kind: str
    rows: int
    ids: list[Any]
    """The first two."""

    def __str__(self) -> str:
        return f"{self.rows} {self.kind} (id {', '.join(map(str, self.ids))}{', ...' if self.rows > 2 else ''})"


@outages.asking
def odd_rows(mapping: PageViewMapping) -> list[Odd]:
    """Rows of the table without a date, or with one that no view can have been counted on."""
    found = []
    for kind, rows in mapping.odd(page_views(mapping), days.tomorrow()).items():
        if count := rows.count():
            ids = rows.order_by(mapping.lookups["id"]).values_list(mapping.lookups["id"], flat=True)
            found.append(Odd(kind, count, list(ids[:2])))
    return found

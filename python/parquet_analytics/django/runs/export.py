"""One day exported as the settings say, under its lease, with its row in the ledger."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from typing import Any

from django.db import ProgrammingError

from parquet_analytics.django import days, signals
from parquet_analytics.django.conf import settings
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs.due import NOTHING_DELETED, Counted, counted
from parquet_analytics.django.runs.ledger import Ledger, latest_verified, runs, without_rows
from parquet_analytics.django.table import organizations, outages
from parquet_analytics.django.table.databases import read_alias
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import DatabaseError, DayHasNoRows, DayIsTaken, SourceError

__all__ = ["export_day", "exporter"]

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
    from parquet_analytics.django.source import configured_source
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
        with outages.translating(), ledger, outages.translating():
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
        signals.send(signals.run_failed, run=run, error=error)
        raise
    signals.send(signals.run_finished, run=run)
    if run.vanished is not None and run.vanished > known:
        _log.warning(
            "%s: the table has lost %s rows of this day, which are kept in the archive", day, f"{run.vanished:,}"
        )
        signals.send(signals.rows_vanished, day=day, rows=run.vanished, run=run)
    return run, result


@outages.reconnecting
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


@outages.reconnecting
def _vanished_before(day: datetime.date, location: str) -> int:
    """What the export before said: a deletion since then has not brought those rows back."""
    found = runs().filter(day=day, kind=Run.Kind.EXPORT, state=Run.State.VERIFIED, location=location)
    return found.order_by("-id").values_list("vanished", flat=True).first() or 0


@outages.reconnecting
def _may_vanish(day: datetime.date, location: str) -> bool:
    """Whether rows that only the store has went from the table in another way than by a deletion of ours, or because
    they were old."""
    return day >= days.deletable_before() and not _has_deletion(day, location)


def _has_deletion(day: datetime.date, location: str) -> bool:
    """Whether rows of the day may have been deleted by us since it was last restored whole."""
    since = runs().filter(day=day, location=location, kind__in=[Run.Kind.DELETE, Run.Kind.RESTORE]).order_by("-id")
    for run in since:
        if run.kind == Run.Kind.DELETE and run.error_type not in NOTHING_DELETED:
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

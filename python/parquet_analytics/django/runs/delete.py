"""One day's rows deleted as the settings say, under its lease, with its row in the ledger."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from typing import Any

from parquet_analytics.django import days, signals
from parquet_analytics.django.conf import settings
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs.due import counted
from parquet_analytics.django.runs.export import export_day, exporter
from parquet_analytics.django.runs.ledger import Ledger, latest_verified
from parquet_analytics.django.table import effects, outages
from parquet_analytics.django.table.databases import write_alias
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import ConfigurationError, DayIsTaken, DeletionRefused

__all__ = ["delete_day"]

_log = logging.getLogger("parquet_analytics.django")


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
    from parquet_analytics.django.source import configured_source

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
        with outages.translating(), ledger, outages.translating():
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
        signals.send(signals.run_failed, run=run, error=error)
        raise
    signals.send(signals.run_finished, run=run)
    return run, result

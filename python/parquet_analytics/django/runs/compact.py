"""The derived files of months brought up to date, one run at a time; one that did something has its row."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from parquet_analytics.django import days
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs.export import exporter
from parquet_analytics.django.runs.ledger import Ledger
from parquet_analytics.django.table import outages

__all__ = ["compact"]


def compact(
    since: datetime.date | None = None,
    until: datetime.date | None = None,
    *,
    existing: bool = False,
    task_id: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> list[dict[str, Any]]:
    """What :meth:`ParquetAnalyticsExporter.compact` says of each month.

    :raises ParquetAnalyticsError: whatever the exporter raises, and :class:`DayIsTaken` while another run compacts.
    """
    who = exporter()
    ledger = Ledger(Run.Kind.COMPACT, days.last_finished(), who.location, task_id=task_id)

    def tick(done: int, total: int) -> None:
        ledger.renew()
        if progress is not None:
            progress(done, total)

    with outages.translating(), ledger:
        found: list[dict[str, Any]] = who.compact(since, until, existing=existing, progress=tick)
        changed = [month for month in found if month["outcome"] != "unchanged"]
        run = ledger.run
        run.state = Run.State.DONE
        run.outcome = f"{len(changed)} of {len(found)}"
        run.rows = sum(month["rows"] for month in changed)
        run.bytes = sum(month["bytes"] for month in changed)
        if not changed:
            ledger.needless()
    return found

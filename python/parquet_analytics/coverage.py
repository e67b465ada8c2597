"""Which days an answer covers. Needs neither pyarrow nor the native module."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["METADATA", "Coverage"]

METADATA = b"parquet_analytics.coverage"
"""The key of an answer's schema metadata that holds its coverage as JSON."""

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Coverage:
    """What an answer knows of each day that was asked about. Every day is in one of the four, in ascending order."""

    since: datetime.date
    until: datetime.date
    complete: tuple[datetime.date, ...] = ()
    """Days whose file has rows (whether of the project in question or not)."""
    empty: tuple[datetime.date, ...] = ()
    """Days whose file says that there were no rows at all: zero."""
    missing: tuple[datetime.date, ...] = ()
    """Days about which nothing is known: not zero."""
    live: tuple[datetime.date, ...] = ()
    """Days that were answered from the database; today can still grow."""

    @property
    def through(self) -> datetime.date | None:
        """The last day before the first gap: nothing is missing from the first known day through this one. Days before
        that, as of a site that is younger than the question, are no gap. ``None`` when every day is missing."""
        known = spans((*self.complete, *self.empty, *self.live))
        return known[0][1] if known else None

    def __str__(self) -> str:
        """JSON of ``since``, ``until``, ``through`` and, for each of the four, first and last day of each run."""
        about: dict[str, Any] = {"since": str(self.since), "until": str(self.until)}
        about["through"] = None if self.through is None else str(self.through)
        for name in ("complete", "empty", "missing", "live"):
            about[name] = [[str(first), str(last)] for first, last in spans(getattr(self, name))]
        return json.dumps(about)


def spans(days: Iterable[datetime.date]) -> list[tuple[datetime.date, datetime.date]]:
    """First and last day of each run of neighbouring days."""
    found: list[tuple[datetime.date, datetime.date]] = []
    for day in sorted(days):
        if found and day - found[-1][1] == _DAY:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found

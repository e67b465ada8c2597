"""The day that it is for the tests: the one on which their process began, also when midnight passes meanwhile. What
they expect of yesterday, or of the last seven days, would be about other days then."""

import datetime
import os

from parquet_analytics.django import days

# Processes that tests start live on the same day.
_NAME = "PARQUET_ANALYTICS_TEST_TODAY"

TODAY = datetime.date.fromisoformat(
    os.environ.setdefault(_NAME, datetime.datetime.now(datetime.UTC).date().isoformat())
)
_LAST_MOMENT = datetime.datetime.combine(TODAY, datetime.time.max, datetime.UTC)


def now() -> datetime.datetime:
    """The time of day, which stands still at midnight."""
    return min(datetime.datetime.now(datetime.UTC), _LAST_MOMENT)


days.now = now

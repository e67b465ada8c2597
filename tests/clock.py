"""The day that it is for the tests: the one on which their process began, also when midnight passes meanwhile. What
they expect of yesterday, or of the last seven days, would be about other days then."""

import datetime
import os

from parquet_analytics.django import days

# Processes that tests start live on the same day.
_NAME = "PARQUET_ANALYTICS_TEST_TODAY"


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


TODAY = datetime.date.fromisoformat(os.environ.setdefault(_NAME, _today().isoformat()))


def _install() -> None:
    today = days.today
    days.today = lambda: today() - (_today() - TODAY)


_install()

"""Runs a management command of the test site in a process of its own: `python -m tests.sites_manage command ...`."""

from __future__ import annotations

import json
import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from parquet_analytics.demo import site

from tests import sites


def setup() -> None:
    """Configures Django as the environment says."""
    about = json.loads(os.environ["PARQUET_ANALYTICS_TEST_SITE"])
    settings.configure(
        INSTALLED_APPS=[*site.APPS, *sites.APPS],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        TIME_ZONE="UTC",
        USE_TZ=True,
        **sites.SETTINGS,
        **about,
    )
    django.setup()


if __name__ == "__main__":
    setup()
    execute_from_command_line(["manage.py", *sys.argv[1:]])

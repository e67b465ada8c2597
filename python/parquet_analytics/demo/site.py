"""The demo's Django site: settings without a file, tables without migrations, rows from the sample generator."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.core.management import call_command

from parquet_analytics.sample import SampleData

APPS = [f"parquet_analytics.demo.{name}" for name in ("projects", "builds", "analytics")]


def setup(database: dict[str, object], apps: Sequence[str] = (), **more: object) -> None:
    """Configures Django for this process. ``database`` is an entry of Django's DATABASES."""
    settings.configure(
        INSTALLED_APPS=[*APPS, *apps],
        DATABASES={"default": database},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        TIME_ZONE="UTC",
        USE_TZ=True,
        **more,
    )
    django.setup()


def sqlite(path: Path) -> dict[str, object]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}


def postgresql(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "HOST": unquote(parts.hostname or ""),
        "PORT": parts.port or 5432,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }


def create_tables() -> None:
    call_command("migrate", run_syncdb=True, verbosity=0)


def insert(
    sample: SampleData, days: Iterable[datetime.date], progress: Callable[[int], object] = lambda _: None
) -> int:
    """Inserts the days' rows through the ORM, with their projects and versions, and says how many rows that were."""
    from django.db import transaction

    from parquet_analytics.demo.analytics.models import PageView
    from parquet_analytics.demo.builds.models import Version
    from parquet_analytics.demo.projects.models import Project

    # Translations refer to their main project, which may come later; the check is at the end of the transaction.
    with transaction.atomic():
        Project.objects.bulk_create(Project(**row) for row in sample.projects().to_pylist())
        Version.objects.bulk_create((Version(**row) for row in sample.versions().to_pylist()), batch_size=5_000)
    rows = 0
    for day in days:
        with transaction.atomic():
            for batch in sample.day(day):
                values = batch.drop_columns(["project_slug", "version_slug"]).to_pylist()
                PageView.objects.bulk_create((PageView(**row) for row in values), batch_size=2_000)
                rows += batch.num_rows
                progress(rows)
    return rows

"""A Django site with Read the Docs' models on a real PostgreSQL: its settings, its databases, its command line."""

from __future__ import annotations

import datetime
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from django.apps import apps
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from parquet_analytics import SampleData
from parquet_analytics.demo import site

from tests import clock  # noqa: F401 - the site lives by it
from tests.archives import Place
from tests.services import Postgres

APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "parquet_analytics.django",
]

SETTINGS: dict[str, Any] = {
    "SECRET_KEY": "only for tests",
    "ROOT_URLCONF": "tests.site_urls",
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "STATIC_URL": "static/",
}

OTHER_STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# The settings of a site in a process of its own, as JSON.
ENVIRONMENT = "PARQUET_ANALYTICS_TEST_SITE"

DAY = datetime.date(2026, 7, 1)
NEXT = DAY + datetime.timedelta(days=1)
SAMPLE = SampleData(rows_per_day=400, projects=12, growth=0.0, weekly_rhythm=False)


def make_template(postgres: Postgres) -> str:
    """A database with the tables of every app, to make others from."""
    url = postgres.create_database()
    with databases(default=url):
        # The tables of the site itself are there already, with Read the Docs' indexes.
        for app in ("contenttypes", "auth", "admin", "sessions", "django_celery_beat", "parquet_analytics"):
            call_command("migrate", app, verbosity=0)
    return url.rsplit("/", 1)[1]


@contextmanager
def databases(**urls: str | dict[str, Any]) -> Iterator[None]:
    """These are the site's databases meanwhile, by alias: URLs of PostgreSQL, or entries of DATABASES."""
    given = {alias: site.postgresql(url) if isinstance(url, str) else url for alias, url in urls.items()}
    before = dict(connections.settings)
    _forget(before)
    connections.settings.clear()
    connections.settings.update(connections.configure_settings({"default": before["default"], **given}))
    try:
        yield
    finally:
        _forget(connections.settings)
        connections.settings.clear()
        connections.settings.update(before)


@contextmanager
def another(alias: str, **changes: Any) -> Iterator[None]:
    """A further database meanwhile: `default` with these changes."""
    connections.settings[alias] = connections.settings["default"] | changes
    try:
        yield
    finally:
        _forget([alias])
        del connections.settings[alias]


def _forget(aliases: Any) -> None:
    for alias in list(aliases):
        if hasattr(connections._connections, alias):
            connections[alias].close()
            del connections[alias]


@contextmanager
def archive(storage: Path | dict[str, Any], **given: Any) -> Iterator[None]:
    """The site's storage is this folder (or entry of STORAGES), and PARQUET_ANALYTICS has these keys."""
    storages = OTHER_STORAGES | {"analytics": _entry(storage)}
    with override_settings(STORAGES=storages, PARQUET_ANALYTICS={"STORAGE": "analytics", **given}):
        yield


def _entry(storage: Path | dict[str, Any]) -> dict[str, Any]:
    if isinstance(storage, Path):
        return {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(storage)}}
    return storage


@contextmanager
def organizations(**members: list[str]) -> Iterator[Any]:
    """The site has organizations meanwhile, with these projects."""
    from parquet_analytics.demo.projects.models import Project

    try:
        with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "tests.organizations"]):
            from tests.organizations.models import Organization

            # Models remember which others refer to them.
            apps.clear_cache()
            for slug, projects in members.items():
                made = Organization.objects.create(name=slug, slug=slug)
                made.projects.set(Project.objects.filter(slug__in=projects))
            yield Organization
    finally:
        apps.clear_cache()


def insert(*days: datetime.date, sample: SampleData = SAMPLE) -> int:
    return site.insert(sample, days or [DAY])


def few(day: datetime.date, rows: int = 20, project: str = "docs") -> None:
    """A few rows of one project, one view each more than the one before."""
    from parquet_analytics.demo.analytics.models import PageView
    from parquet_analytics.demo.projects.models import Project

    owner, _ = Project.objects.get_or_create(slug=project, defaults={"name": project})
    PageView.objects.bulk_create(
        PageView(project=owner, path=f"/{number}", view_count=number, date=day) for number in range(rows)
    )


def run(command: str, *arguments: str) -> tuple[int, str, str]:
    """The exit code of a management command, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command(command, *arguments, stdout=out, stderr=err)
    except CommandError as error:
        code = error.returncode
        err.write(f"CommandError: {error}\n")
    return code, out.getvalue(), err.getvalue()


def export(*arguments: str) -> tuple[int, str, str]:
    return run("export_pageviews_to_parquet", *arguments)


def rows_in(url: str, day: datetime.date = DAY) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM analytics_pageview WHERE date = %s", [day]).fetchone()
    assert found is not None
    return int(found[0])


def s3_entry(place: Place, endpoint_url: str | None = None, **options: Any) -> dict[str, Any]:
    """An entry of STORAGES for a place in the S3 server."""
    who = place.s3.admin
    given = {
        "bucket_name": place.bucket,
        "location": place.location,
        "endpoint_url": endpoint_url or place.s3.endpoint_url,
        "region_name": place.s3.region,
        "access_key": who.access_key_id,
        "secret_key": who.secret_access_key,
        "addressing_style": "path",
    }
    return {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": given | options}


def manage(*arguments: str) -> list[str]:
    """A command line that runs a management command in a process of its own; see `environment`."""
    return [sys.executable, "-m", "django", *arguments]


def environment(
    url: str | dict[str, Any], storage: Path | dict[str, Any], more: dict[str, Any] | None = None, **given: Any
) -> dict[str, str]:
    """The environment of such a process: the site's database, its storage, other settings, and keys of
    PARQUET_ANALYTICS."""
    about = {
        "DATABASES": {"default": site.postgresql(url) if isinstance(url, str) else url},
        "STORAGES": OTHER_STORAGES | {"analytics": _entry(storage)},
        "PARQUET_ANALYTICS": {"STORAGE": "analytics", **given},
        **(more or {}),
    }
    return os.environ | {
        ENVIRONMENT: json.dumps(about),
        "DJANGO_SETTINGS_MODULE": "tests.site_settings",
        "PYTHONPATH": os.pathsep.join(path for path in (*sys.path, str(Path.cwd())) if path),
    }

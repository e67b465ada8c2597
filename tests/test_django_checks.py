"""System checks by their ids, and what having the app in INSTALLED_APPS costs a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.db import models
from django.test import override_settings
from parquet_analytics.django import conf
from parquet_analytics.django.conf import settings
from parquet_analytics.exceptions import ConfigurationError

from tests import sites

S3 = {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": {"bucket_name": "private"}}
MEDIA = "/srv/media"


class Visit(models.Model):
    """Page views with times."""

    project = models.ForeignKey("projects.Project", on_delete=models.DO_NOTHING, related_name="+")
    path = models.CharField(max_length=100)
    view_count = models.IntegerField()
    date = models.DateTimeField()

    class Meta:
        app_label = "analytics"

    def __str__(self) -> str:
        return self.path


PLAIN = {"version_id": None, "version_slug": None, "full_path": None, "status": None}


def found(**given: Any) -> dict[str, str]:
    """Ids of the checks and their messages with hints, for a PARQUET_ANALYTICS dict."""
    with sites.archive(S3, **given):
        return {message.id: f"{message.msg} {message.hint}" for message in run_checks(tags=["parquet_analytics"])}


def test_good_settings_pass() -> None:
    assert found() == {}
    assert found(MODEL="analytics.PageView", HOT_DAYS=30, QUEUE="reports", PER_PROJECT=True, FIELDS={}) == {}


@pytest.mark.parametrize(
    ("given", "number", "words"),
    [
        ({"HOTDAYS": 3}, "E002", "Did you mean 'HOT_DAYS'?"),
        ({"ZZZ": 3}, "E002", "The keys are MODEL, FIELDS"),
        ({"HOT_DAYS": 0}, "E003", "PARQUET_ANALYTICS['HOT_DAYS'] is 0; it has to be days, at least 1"),
        ({"HOT_DAYS": "90"}, "E003", "'90'"),
        ({"HOT_DAYS": True}, "E003", "True"),
        ({"LOOKBACK_DAYS": -1}, "E003", "LOOKBACK_DAYS"),
        ({"GRACE_MINUTES": -1}, "E003", "GRACE_MINUTES"),
        ({"QUEUE": ""}, "E003", "QUEUE"),
        ({"PER_PROJECT": "yes"}, "E003", "True or False"),
        ({"FIELDS": {"path": 3}}, "E003", "FIELDS"),
        ({"DAY_TIME_ZONE": "Mars/Olympus"}, "E003", "DAY_TIME_ZONE"),
        ({"DELETE_ROWS_PER_SECOND": 0}, "E003", "more than 0"),
        ({"MODEL": "analytics.Nope"}, "E004", "put its app into INSTALLED_APPS"),
        ({"MODEL": "PageView"}, "E004", "'app_label.Model'"),
        ({"FIELDS": {"path": "nowhere"}}, "E005", "PageView has no field 'nowhere', from where path should come"),
        ({"FIELDS": {"paht": "path"}}, "E005", "fields names paht"),
        ({"FIELDS": {"path": None}}, "E005", "page views have to have it"),
        ({"FIELDS": {"path": "view_count"}}, "E005", "view_count is a PositiveIntegerField, and path has to be text"),
        ({"FIELDS": {"view_count": "path"}}, "E005", "path is a CharField, and view_count has to be whole numbers"),
        ({"FIELDS": {"id": "date"}}, "E005", "date is a DateField, and id has to be whole numbers"),
        ({"FIELDS": {"project_id": "project__slug"}}, "E005", "is a SlugField, and project_id has to be whole numbers"),
        ({"READ_DATABASE": "replica"}, "E006", "DATABASES has no such alias"),
        ({"WRITE_DATABASE": "primary"}, "E006", "['WRITE_DATABASE'] is 'primary'"),
        ({"STORAGE": "nowhere"}, "E007", "Give page views a private one of their own"),
        ({"HOT_DAYS": 3}, "W005", "HOT_DAYS (3) is less than LOOKBACK_DAYS (7)"),
        ({"DELETE_CASCADES": "yes"}, "E003", "True or False"),
        ({"DELETE_COLUMNS": "referrer"}, "E003", "a list of columns"),
        ({"DELETE_COLUMNS": ["referer"]}, "E012", "DELETE_COLUMNS'] names referer"),
        ({"DELETE_COLUMNS": ["path"]}, "E012", "files hold that, or"),
        ({"FIELDS": {"full_path": None}}, "W007", "PageView has columns that no file holds: full_path"),
    ],
)
def test_each_mistake_has_an_id_and_a_hint(given: dict[str, Any], number: str, words: str) -> None:
    messages = found(**given)
    assert list(messages) == [f"parquet_analytics.{number}"]
    assert words in messages[f"parquet_analytics.{number}"]


@override_settings(PARQUET_ANALYTICS=["HOT_DAYS"])
def test_the_setting_has_to_be_a_dict() -> None:
    [message] = run_checks(tags=["parquet_analytics"])
    assert message.id == "parquet_analytics.E001"
    with pytest.raises(ConfigurationError, match="make it a dict"):
        _ = settings.HOT_DAYS


def test_times_need_time_zones() -> None:
    given = {"MODEL": "analytics.Visit", "FIELDS": PLAIN}
    assert found(**given) == {}
    with override_settings(USE_TZ=False):
        assert list(found(**given)) == ["parquet_analytics.E008"]
    assert list(found(DAY_TIME_ZONE="Europe/Berlin", **given)) == ["parquet_analytics.W006"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    messages = found()
    assert list(messages) == ["parquet_analytics.E009"]
    assert "pip install 'parquet-analytics[s3]'" in messages["parquet_analytics.E009"]


@pytest.mark.parametrize(
    ("entry", "number", "words"),
    [
        ({"BACKEND": "django.core.files.storage.InMemoryStorage"}, "E010", "forgets everything"),
        ({"BACKEND": "storages.backends.gcloud.GoogleCloudStorage"}, "E010", "only S3"),
        ({"BACKEND": "storages.backends.sftpstorage.SFTPStorage"}, "E010", "condition"),
        ({"BACKEND": "django.core.files.storage.FileSystemStorage"}, "W003", "served to everybody as MEDIA_ROOT"),
        (
            {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": f"{MEDIA}/stats"}},
            "W003",
            "'/srv/media/stats'",
        ),
        (S3 | {"OPTIONS": {"default_acl": "public-read"}}, "W004", "default_acl is 'public-read'"),
        (S3 | {"OPTIONS": {"querystring_auth": False}}, "W004", "querystring_auth is False"),
    ],
)
@override_settings(MEDIA_ROOT=MEDIA)
def test_storages_that_are_wrong_for_page_views(entry: dict[str, Any], number: str, words: str) -> None:
    with sites.archive(entry):
        messages = run_checks(tags=["parquet_analytics"])
    assert [message.id for message in messages] == [f"parquet_analytics.{number}"]
    assert words in f"{messages[0].msg} {messages[0].hint}"


def test_a_setting_that_django_ignores_is_pointed_out() -> None:
    with (
        override_settings(DEFAULT_FILE_STORAGE="storages.backends.s3.S3Storage", MEDIA_ROOT=MEDIA),
        sites.archive(S3, STORAGE="default"),
    ):
        ids = [message.id for message in run_checks(tags=["parquet_analytics"])]
    assert ids == ["parquet_analytics.W002", "parquet_analytics.W003"]


def test_columns_that_may_be_lost_are_named_by_field_or_column() -> None:
    fields = {"full_path": None, "version_id": None, "version_slug": None}
    message = found(FIELDS=fields)["parquet_analytics.W007"]
    assert [name for name in ("full_path", "version_id") if name not in message] == []
    assert list(found(FIELDS=fields, DELETE_COLUMNS=["full_path"])) == ["parquet_analytics.W007"]
    for version in ("version", "version_id"):
        assert found(FIELDS=fields, DELETE_COLUMNS=("full_path", version)) == {}


def test_local_days_are_asked_about() -> None:
    with override_settings(TIME_ZONE="Europe/Berlin"):
        assert list(found()) == ["parquet_analytics.W001"]
        assert found(DAY_TIME_ZONE="UTC") == {}
        assert found(DAY_TIME_ZONE="Europe/Berlin") == {}


def test_older_settings_are_defaults() -> None:
    assert (settings.HOT_DAYS, settings.PER_PROJECT) == (90, False)
    with override_settings(RTD_ANALYTICS_DEFAULT_RETENTION_DAYS=30, RTD_PARQUET_EXPORT_PER_PROJECT=True):
        assert (settings.HOT_DAYS, settings.PER_PROJECT) == (30, True)
        with override_settings(PARQUET_ANALYTICS={"HOT_DAYS": 60, "PER_PROJECT": False}):
            assert (settings.HOT_DAYS, settings.PER_PROJECT) == (60, False)
    with override_settings(RTD_ANALYTICS_DEFAULT_RETENTION_DAYS=0):
        assert "RTD_ANALYTICS_DEFAULT_RETENTION_DAYS is 0" in found()["parquet_analytics.E003"]


def test_an_unknown_key_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="PARQUET_ANALYTICS has no key 'HOTDAYS'"):
        _ = settings.HOTDAYS
    assert all(hasattr(settings, key) for key in conf.KEYS)


def test_the_app_is_what_it_says() -> None:
    config = apps.get_app_config("parquet_analytics")
    assert config.name == "parquet_analytics.django"
    assert config.default_auto_field == "django.db.models.BigAutoField"


def test_migrations_are_complete() -> None:
    assert sites.run("makemigrations", "parquet_analytics", "--check", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    "work",
    [
        "call_command('check')",
        "import celery; app = celery.Celery();"
        " app.autodiscover_tasks(lambda: [config.name for config in apps.get_app_configs()], force=True);"
        " assert 'parquet_analytics.export_pageviews_to_parquet' in app.tasks",
        "import parquet_analytics.django.admin",
        "import parquet_analytics; parquet_analytics.exceptions.StoreError",
    ],
)
def test_neither_check_nor_autodiscovery_loads_what_is_heavy(work: str, tmp_path: Path) -> None:
    program = f"""
import sys
import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
settings.configure(
    INSTALLED_APPS=["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
                    "parquet_analytics.demo.projects", "parquet_analytics.demo.builds",
                    "parquet_analytics.demo.analytics", "parquet_analytics.django"],
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    STORAGES={{"analytics": {S3}}}, PARQUET_ANALYTICS={{"STORAGE": "analytics"}}, USE_TZ=True,
    SILENCED_SYSTEM_CHECKS=["admin.E403", "admin.E406", "admin.E408", "admin.E409", "admin.E410"],
)
django.setup()
{work}
heavy = sorted(name for name in sys.modules if name.split(".")[0] in ("pyarrow", "boto3") or name.endswith("._native"))
assert heavy == [], heavy
assert "parquet_analytics.django.models" in sys.modules
print("looked")
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("looked\n")

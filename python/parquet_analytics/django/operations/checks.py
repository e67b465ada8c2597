"""System checks: what the settings say is looked at without any network, and without importing what is slow.

Ids are stable. What only the servers can tell (permissions, replicas, conditional writes) is
``manage.py parquet_analytics doctor``'s business.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.checks import register as register_check

from parquet_analytics.django import conf
from parquet_analytics.django.table import effects, mapping
from parquet_analytics.exceptions import ConfigurationError

__all__ = ["check_settings", "register"]

# Backends of Django and django-storages of which it is known that they are no store for page views.
_UNSUPPORTED = {
    "django.core.files.storage.InMemoryStorage": "it forgets everything when the process ends",
    "django.core.files.storage.memory.InMemoryStorage": "it forgets everything when the process ends",
    "storages.backends.azure_storage.AzureStorage": "only S3 and a local folder are supported as Django storages",
    "storages.backends.dropbox.DropboxStorage": "it cannot replace a file under a condition",
    "storages.backends.ftp.FTPStorage": "it cannot replace a file under a condition",
    "storages.backends.gcloud.GoogleCloudStorage": "only S3 and a local folder are supported as Django storages",
    "storages.backends.sftpstorage.SFTPStorage": "it cannot replace a file under a condition",
}


def register() -> None:
    register_check(check_settings, "parquet_analytics")


def check_settings(**_: Any) -> list[CheckMessage]:
    problems = list(conf.settings.problems())
    found: list[CheckMessage] = []
    for problem in problems:
        number = "E001" if problem.key is None else "E003" if problem.key in conf.KEYS else "E002"
        found.append(Error(problem.message, problem.hint, id=f"parquet_analytics.{number}"))
    wrong = {problem.key for problem in problems}
    if None in wrong:
        return found
    if not wrong & {"MODEL", "FIELDS"}:
        time_zone = None if "DAY_TIME_ZONE" in wrong else conf.settings.DAY_TIME_ZONE
        found += _check_model(time_zone, columns_named="DELETE_COLUMNS" not in wrong)
    found += _check_databases(wrong)
    if "STORAGE" not in wrong:
        found += _check_storage(conf.settings.STORAGE)
    if not wrong & {"HOT_DAYS", "LOOKBACK_DAYS"} and conf.settings.HOT_DAYS < conf.settings.LOOKBACK_DAYS:
        found.append(
            Warning(
                f"HOT_DAYS ({conf.settings.HOT_DAYS}) is less than LOOKBACK_DAYS ({conf.settings.LOOKBACK_DAYS}), so "
                "days are looked at again whose rows have gone.",
                "Keep rows at least as long as missed nights are made up for.",
                id="parquet_analytics.W005",
            )
        )
    return found


def _check_model(time_zone: str | None, *, columns_named: bool) -> Iterator[CheckMessage]:
    from django.apps import apps

    name = conf.settings.MODEL
    try:
        model = apps.get_model(name)
    except (LookupError, ValueError) as error:
        yield Error(
            f"{conf.NAME}['MODEL'] is {name!r}, and there is no such model: {error}",
            "Name the model of the page views as 'app_label.Model', and put its app into INSTALLED_APPS.",
            id="parquet_analytics.E004",
        )
        return
    try:
        found = mapping.PageViewMapping.of(model, conf.settings.FIELDS)
    except ConfigurationError as error:
        no_zone, composite = "USE_TZ" in str(error), "composite primary key" in str(error)
        yield Error(
            f"{conf.NAME}['FIELDS'] does not fit {model._meta.label}: {error}.",
            "Page views with times need USE_TZ = True."
            if no_zone
            else "Map each column that has another name in the model, as 'field' or 'relation__field'.",
            obj=model,
            id="parquet_analytics.E008"
            if no_zone
            else "parquet_analytics.E011"
            if composite
            else "parquet_analytics.E005",
        )
        return
    if columns_named:
        yield from _check_columns(found)
    local = django_settings.TIME_ZONE not in {"UTC", "Etc/UTC", "GMT"}
    if local and not found.timestamps and not conf.settings.given("DAY_TIME_ZONE"):
        yield Warning(
            f"TIME_ZONE is {django_settings.TIME_ZONE!r}, and {model._meta.label} counts by a DateField: are its days "
            "UTC's or local ones?",
            f"Set {conf.NAME}['DAY_TIME_ZONE'] to 'UTC' (timezone.now().date()) or to {django_settings.TIME_ZONE!r} "
            "(timezone.localdate()). It decides when a day is over.",
            obj=model,
            id="parquet_analytics.W001",
        )
    if time_zone not in {None, "UTC"} and found.timestamps:
        yield Warning(
            f"{conf.NAME}['DAY_TIME_ZONE'] is {time_zone!r}, but times are always cut into UTC days.",
            "Remove it; it is for a DateField.",
            obj=model,
            id="parquet_analytics.W006",
        )


def _check_columns(found: mapping.PageViewMapping) -> Iterator[CheckMessage]:
    label = found.model._meta.label
    if unknown := effects.unknown_columns(found):
        yield Error(
            f"{conf.NAME}['DELETE_COLUMNS'] names {', '.join(unknown)}: files hold that, or {label} lacks it.",
            f"No file holds {', '.join(found.unheld()) or 'others'}. If only the database has it, silence this id.",
            obj=found.model,
            id="parquet_analytics.E012",
        )
    may_go = effects.may_be_lost(found)
    if lost := [column for column in found.unheld() if column not in may_go]:
        yield Warning(
            f"{label} has columns that no file holds: {', '.join(lost)}. Its exported rows are not deleted, because a "
            "row that is brought back would have defaults there.",
            f"If they may be lost with exported rows, name them in {conf.NAME}['DELETE_COLUMNS'].",
            obj=found.model,
            id="parquet_analytics.W007",
        )


def _check_databases(wrong: set[str | None]) -> Iterator[CheckMessage]:
    for key in ("READ_DATABASE", "WRITE_DATABASE"):
        if key in wrong:
            continue
        alias = getattr(conf.settings, key)
        if alias is not None and alias not in django_settings.DATABASES:
            yield Error(
                f"{conf.NAME}[{key!r}] is {alias!r}, and DATABASES has no such alias.",
                f"DATABASES has {', '.join(map(repr, django_settings.DATABASES))}. None leaves it to the routers.",
                id="parquet_analytics.E006",
            )


def _check_storage(alias: str) -> Iterator[CheckMessage]:
    given = getattr(django_settings, "STORAGES", {})
    storage = given.get(alias)
    if storage is None:
        yield Error(
            f"{conf.NAME}['STORAGE'] is {alias!r}, and STORAGES has no such alias.",
            f"STORAGES has {', '.join(map(repr, given)) or 'none'}. Give page views a private one of their own.",
            id="parquet_analytics.E007",
        )
        return
    if alias == "default" and getattr(django_settings, "DEFAULT_FILE_STORAGE", None):
        yield Warning(
            "DEFAULT_FILE_STORAGE is set, which Django ignores since 5.1; the storage of the page views is "
            "STORAGES['default'].",
            f"Define the storage in STORAGES, and name it in {conf.NAME}['STORAGE'].",
            id="parquet_analytics.W002",
        )
    backend = str(storage.get("BACKEND", ""))
    options = storage.get("OPTIONS", {}) or {}
    if why := _UNSUPPORTED.get(backend):
        yield Error(
            f"STORAGES[{alias!r}] is a {backend.rsplit('.', 1)[-1]}: {why}.",
            "Use storages.backends.s3.S3Storage.",
            id="parquet_analytics.E010",
        )
    elif backend.startswith("storages."):
        missing = [name for name in ("storages", "boto3") if importlib.util.find_spec(name) is None]
        if missing:
            yield Error(
                f"STORAGES[{alias!r}] needs {' and '.join(missing)}, which cannot be imported.",
                "pip install 'parquet-analytics[s3]'",
                id="parquet_analytics.E009",
            )
        yield from _check_public(alias, options)
    elif backend == "django.core.files.storage.FileSystemStorage":
        folder = str(options.get("location") or django_settings.MEDIA_ROOT or "")
        media = str(django_settings.MEDIA_ROOT or "")
        if not folder or (media and Path(folder).resolve().is_relative_to(Path(media).resolve())):
            yield Warning(
                f"STORAGES[{alias!r}] is the folder {folder or 'the server was started in'!r}, "
                + ("which is served to everybody as MEDIA_ROOT." if media else "since no MEDIA_ROOT is set."),
                f"Give page views a storage of their own, and name it in {conf.NAME}['STORAGE'].",
                id="parquet_analytics.W003",
            )


def _check_public(alias: str, options: dict[str, Any]) -> Iterator[CheckMessage]:
    acl = options.get("default_acl", getattr(django_settings, "AWS_DEFAULT_ACL", None))
    signed = options.get("querystring_auth", getattr(django_settings, "AWS_QUERYSTRING_AUTH", True))
    if (acl and "public" in str(acl)) or signed is False:
        why = f"default_acl is {acl!r}" if acl and "public" in str(acl) else "querystring_auth is False"
        yield Warning(
            f"STORAGES[{alias!r}] looks like a public bucket ({why}); page views would be readable by everybody.",
            f"Give page views a private storage of their own, and name it in {conf.NAME}['STORAGE'].",
            id="parquet_analytics.W004",
        )

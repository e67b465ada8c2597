"""Which projects are erased: those that were deleted, until somebody takes it back. They are hidden at once; how they
are taken out of the store is in :mod:`parquet_analytics.django.erasure.sweep`."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable
from typing import Any

from django.db import DatabaseError, connections, router, transaction
from django.db.models import Q
from django.db.models.signals import pre_delete

from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.django.erasure.sweep import FITTING, erase_pending, erase_pending_or_log, erasures
from parquet_analytics.django.models import Erasure
from parquet_analytics.django.table import organizations
from parquet_analytics.django.table.mapping import PageViewMapping, configured
from parquet_analytics.exceptions import ParquetAnalyticsError

__all__ = ["connect", "erase_pending", "erase_pending_or_log", "hidden_projects", "unerase"]

# Older ones change only by being taken back.
_SETTLED = datetime.timedelta(hours=1)
_REMEMBERED_SECONDS = 60.0
_remembered: dict[tuple[str, ...], tuple[float | None, list[int]]] = {}

_log = logging.getLogger("parquet_analytics.django")


def connect() -> None:
    """Listens to deletions of the project model. Without a usable setting there is nothing to listen to."""
    try:
        model = configured().project_model
    except ParquetAnalyticsError:
        return
    if model is None:
        return
    from django.apps import apps

    # A project that is deleted as one of a proxy's is told of under the proxy's name.
    for sender in {model, *(each for each in apps.get_models() if each._meta.concrete_model is model)}:
        pre_delete.connect(_deleted, sender=sender, dispatch_uid="parquet_analytics.erasure")


def _deleted(sender: Any, instance: Any, using: str, **_: Any) -> None:  # noqa: ARG001 - the signal's arguments
    mapping = configured()
    alias = router.db_for_write(Erasure)
    about: dict[str, Any] = {"slug": _slug_of(instance, mapping)}
    project_id = getattr(instance, mapping.project_key.attname)

    def record() -> bool:
        try:
            with transaction.atomic(using=alias):
                _record(project_id, about, alias)
        except DatabaseError:
            # A site whose ledger is not there yet can delete its projects all the same.
            _log.exception("project %s is deleted, and its erasure from the archive could not be recorded", project_id)
            return False
        return True

    def record_and_send() -> None:
        if record():
            _send()

    try:
        with transaction.atomic(using=using):
            about["organizations"] = organizations.of_project(instance, using)
    except DatabaseError:
        _log.exception("project %s is deleted, and its organizations could not be asked for", project_id)
    if alias != using:
        # A ledger in another database keeps what this transaction may take back, and a project that lives on would
        # be erased.
        transaction.on_commit(record_and_send, using=using, robust=True)
    elif record():
        transaction.on_commit(_send, using=using, robust=True)


def _slug_of(instance: Any, mapping: PageViewMapping) -> str:
    value = instance
    for name in (mapping.project_slug or mapping.lookups["project_slug"].rsplit("__", 1)[-1]).split("__"):
        value = getattr(value, name, None)
    return str(value or "")[:255]


def _record(project_id: int, about: dict[str, Any], alias: str) -> None:
    """A project that was deleted before, and came back, is to be erased again."""
    erasure, new = Erasure.objects.using(alias).get_or_create(project_id=project_id, defaults=about)
    if new:
        return
    erasure.slugs = sorted({*(erasure.slugs or ()), erasure.slug, about["slug"]} - {""})
    erasure.organizations = sorted({*erasure.organizations, *about.get("organizations", ())})
    erasure.slug = about["slug"]
    erasure.requested_at = days.now()
    erasure.recorded_at = erasure.finished_at = erasure.withdrawn_at = erasure.note = None
    erasure.error = ""
    erasure.save(using=alias)


def _send() -> None:
    """Tells the workers. Without any, or when that fails, the nightly export does what is pending: whoever deletes a
    project does not wait for a broker that is away."""
    try:
        from parquet_analytics.django.tasks import erase_deleted_projects
    except ImportError:
        return
    queue = {} if settings.QUEUE is None else {"queue": settings.QUEUE}
    with erase_deleted_projects.app.connection_for_write() as connection:
        once = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
        connection.transport_options = {**(connection.transport_options or {}), **once}
        try:
            erase_deleted_projects.apply_async(connection=connection, ignore_result=True, retry=False, **queue)
        except erase_deleted_projects.OperationalError as error:
            _log.warning("no worker could be told of a deleted project; the next export does what it would: %s", error)


def hidden_projects() -> list[int]:
    """The ids of the projects that the ledger calls erased: whether or not the list in the store is told yet, still has
    them, and can be asked. New ones at once; those that are an hour old are remembered for a minute."""
    alias = router.db_for_write(Erasure)
    about = connections[alias].settings_dict
    database = (alias, *(str(about.get(name, "")) for name in ("ENGINE", "HOST", "PORT", "NAME")))
    erased = erasures().filter(**FITTING)
    asked, settled = _remembered.get(database, (None, []))
    if asked is not None and time.monotonic() - asked <= _REMEMBERED_SECONDS:
        # Twice as far back, so that none is too old for this and too new for what is remembered.
        recent = erased.filter(Q(recorded_at__isnull=True) | Q(recorded_at__gt=days.now() - 2 * _SETTLED))
        return sorted({*recent.values_list("project_id", flat=True), *settled})
    asked, before = time.monotonic(), days.now() - _SETTLED
    every = list(erased.values_list("project_id", "recorded_at"))
    _remembered[database] = asked, [project for project, at in every if at is not None and at <= before]
    return sorted(project for project, _ in every)


def unerase(project_ids: Iterable[int], *, accept_moved_database: bool = False) -> list[int]:
    """Take erasures back, of projects that live again say, and give the ids of those that were erased. Their rows are
    shown and exported again; those that were taken out of files come back from the table alone, when their days are
    exported again. Run it again if it fails.

    :raises ParquetAnalyticsError: when the list in the store could not be changed.
    """
    from parquet_analytics.django.runs import exporter

    wanted = set(project_ids)
    # First, so that no sweep puts back on the list what is taken off it.
    known = Erasure.objects.using(router.db_for_write(Erasure)).filter(project_id__in=wanted)
    found = set(known.values_list("project_id", flat=True))
    known.filter(withdrawn_at__isnull=True).update(withdrawn_at=days.now())
    fitting = {project for project in wanted if -(2**31) <= project < 2**31}
    found |= set(exporter().unerase_projects(fitting, accept_moved_database=accept_moved_database))
    _remembered.clear()
    return sorted(found)

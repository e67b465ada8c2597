"""Erases deleted projects from the archive: hidden at once, told to every reader, taken out of files and copies."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from django.db import DatabaseError, router, transaction
from django.db.models import Q
from django.db.models.signals import pre_delete

from parquet_analytics.django import days, organizations
from parquet_analytics.django.conf import settings
from parquet_analytics.django.ledger import Ledger, runs
from parquet_analytics.django.mapping import configured
from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.exceptions import DayNotStored, InvalidInput, ParquetAnalyticsError

__all__ = ["connect", "erase_pending", "erase_pending_or_log", "hidden_projects"]

# Readers of the store believe what they know for a minute; until then the ledger hides what it was told.
_SETTLED = datetime.timedelta(hours=1)

_COPIES = ("per_project", "per_organization")

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
    field = mapping.field("project_id").target_field
    slug = mapping.lookups["project_slug"].split("__")[-1]
    alias = router.db_for_write(Erasure)
    about: dict[str, Any] = {"slug": str(getattr(instance, slug, "") or "")[:255]}
    project_id = getattr(instance, field.attname)

    def record() -> bool:
        try:
            with transaction.atomic(using=alias):
                Erasure.objects.using(alias).get_or_create(project_id=project_id, defaults=about)
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
    """The ids of projects of which readers of the store may not know yet that they were erased."""
    recent = Q(recorded_at__isnull=True) | Q(recorded_at__gt=days.now() - _SETTLED)
    found = Erasure.objects.using(router.db_for_write(Erasure)).filter(recent)
    return list(found.values_list("project_id", flat=True))


def erase_pending(task_id: str = "") -> list[int]:
    """Erase the projects that are waiting: record each in the store, then take their rows out of each day that may
    hold some, with their copies. Gives their ids. May be broken off and run again.

    :raises ParquetAnalyticsError: the first that happened, after the other days were worked on.
    """
    from parquet_analytics.django.runs import exporter

    pending = list(Erasure.objects.using(router.db_for_write(Erasure)).filter(finished_at__isnull=True).order_by("id"))
    if not pending:
        return []
    who = exporter()
    if unrecorded := [erasure for erasure in pending if erasure.recorded_at is None]:
        who.erase_projects({each.project_id: each.slug if _has_key(each.slug) else None for each in unrecorded})
        told = Erasure.objects.using(router.db_for_write(Erasure))
        told.filter(pk__in=[erasure.pk for erasure in unrecorded]).update(recorded_at=days.now())
    slugs = sorted({erasure.slug for erasure in pending if _has_key(erasure.slug)})
    were_in = sorted({slug for erasure in pending for slug in erasure.organizations})
    # Those that have gone too have no projects any more.
    members: dict[str, list[str]] = {slug: [] for slug in were_in}
    if organizations.installed():
        members |= organizations.members()
    members = {slug: projects for slug, projects in members.items() if _has_key(slug)}
    failed: ParquetAnalyticsError | None = None
    known = _known_days(who.location)
    # Copies are asked for where there may be some: it takes a request for each day and slug.
    of_projects, of_organizations = (_known_days(who.location, **{flag: True}) for flag in _COPIES)
    # Also days whose file was written anew without the rows already, by an export, and their copies were not.
    chosen = {
        *_days_with([erasure.project_id for erasure in pending], known),
        *who.days_with_erased_copies(of_projects, slugs),
        *who.days_with_erased_copies(of_organizations, [], set(were_in) & set(members)),
    }
    for day in sorted(chosen):
        try:
            with Ledger(Run.Kind.ERASE, day, who.location, task_id=task_id) as ledger:
                result = who.erase_from_day(
                    day,
                    slugs=slugs if day in of_projects else (),
                    per_organization=members if day in of_organizations else None,
                )
                run = ledger.run
                run.key, run.outcome = who.get_parquet_path(day), result["outcome"]
                run.etag, run.sha256, run.run_id = result["etag"], result["sha256"], result["run_id"]
                run.rows, run.views, run.bytes = result["total_records"], result["total_views"], result["bytes"]
                run.state = Run.State.DONE
        except DayNotStored:
            continue
        except ParquetAnalyticsError as error:
            _log.warning("%s: erased projects could not be taken out: %s", day, error)
            failed = failed or error
    # Another run may have finished them meanwhile, and kept this one from it.
    ended = Erasure.objects.using(router.db_for_write(Erasure)).filter(finished_at__isnull=True)
    ended = ended.filter(pk__in=[erasure.pk for erasure in pending])
    if failed is not None:
        ended.update(error=str(failed)[:10_000])
    else:
        ended.update(error="", finished_at=days.now())
    if failed is not None:
        raise failed
    return [erasure.project_id for erasure in pending]


def _has_key(slug: str) -> bool:
    """Whether there can be copies below a slug: a project may have been named as no key can be."""
    from parquet_analytics._native import check_slug

    try:
        check_slug(slug)
    except InvalidInput:
        return False
    return True


def erase_pending_or_log(task_id: str = "") -> None:
    """:func:`erase_pending` for those who have other work to do: what fails is tried again by the next one."""
    try:
        erase_pending(task_id)
    except (ParquetAnalyticsError, DatabaseError) as error:
        _log.error("deleted projects could not be taken out of the archive: %s", " ".join(str(error).split()))


def _known_days(location: str, **about: bool) -> list[datetime.date]:
    """The days that the ledger has exports of."""
    known = runs().filter(kind=Run.Kind.EXPORT, location=location, **about).order_by()
    return sorted(set(known.values_list("day", flat=True)))


def _days_with(projects: list[int], found: list[datetime.date]) -> list[datetime.date]:
    """Those of the days whose file can have rows of one of the projects, by its statistics."""
    from parquet_analytics.querier import ParquetAnalyticsQuerier

    # What the first question finds out about the files is believed for the others.
    fresh, querier = ParquetAnalyticsQuerier(max_age=0), ParquetAnalyticsQuerier()
    chosen: set[datetime.date] = set()
    # A question spans some years at most.
    for start in range(0, len(found), 1_000):
        first, last = found[start], found[min(start + 999, len(found) - 1)]
        while first <= last:
            until = min(last, first + datetime.timedelta(days=3_000))
            for number, project in enumerate(projects):
                plan = (querier if number else fresh).explain(None, first, until, project_id=project)
                pairs = zip(plan["date"].to_pylist(), plan["rows_selected"].to_pylist(), strict=True)
                chosen |= {day for day, rows in pairs if rows}
            first = until + datetime.timedelta(days=1)
    return sorted(chosen)

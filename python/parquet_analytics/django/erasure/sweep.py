"""Takes what is erased out of the store: by what is stored, not by what is named today. An erasure is finished when a
look afterwards finds nothing, in days and copies; otherwise its row says where something is left."""

from __future__ import annotations

import datetime
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import DatabaseError, router
from django.db.models import QuerySet

from parquet_analytics.django import days
from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.django.runs.ledger import Ledger, runs
from parquet_analytics.django.table import organizations
from parquet_analytics.django.table.mapping import all_rows, configured
from parquet_analytics.exceptions import (
    CorruptFile,
    DayIsTaken,
    DayLost,
    DayNotStored,
    InvalidInput,
    ParquetAnalyticsError,
)

__all__ = ["FITTING", "erase_pending", "erase_pending_or_log", "erasures", "living"]

FITTING = {"project_id__gte": -(2**31), "project_id__lt": 2**31}
"""Ids that a file can hold."""

# With more copies for projects than these, those of projects that live are looked at on demand alone.
_MOST_COPIES = 100_000
# Two machines' clocks may differ so much.
_SKEW = datetime.timedelta(minutes=1)

_log = logging.getLogger("parquet_analytics.django")


def erasures() -> QuerySet[Erasure]:
    """What the ledger calls erased."""
    return Erasure.objects.using(router.db_for_write(Erasure)).filter(withdrawn_at__isnull=True)


def erase_pending(task_id: str = "", *, accept_moved_database: bool = False, every_copy: bool = False) -> list[int]:
    """Erase the projects that are waiting: record each in the store, then take their rows out of each day and copy that
    has some. Also what the list of erased projects has lost is recorded there again, and what only the list knows is
    entered into the ledger. Gives the ids that are finished. May be broken off and run again.

    ``accept_moved_database`` says that list and days are this database's from before a move, a promotion or a
    restoration. ``every_copy`` looks at copies of all projects also where those are very many.

    :raises ParquetAnalyticsError: the first that happened, after the other days were worked on.
    """
    from parquet_analytics.django.runs import exporter

    unfinished = erasures().filter(finished_at__isnull=True)
    unfinished.exclude(**FITTING).update(
        finished_at=days.now(),
        error="",
        note="No file has rows of it: the id is beyond 32 bits, which no file can hold.",
    )
    sweep = _Sweep(exporter(), task_id, accept_moved_database=accept_moved_database, every_copy=every_copy)
    try:
        sweep.record()
        return sweep.work(list(unfinished.order_by("id")))
    except ParquetAnalyticsError as error:
        if not sweep.told:
            unfinished.update(error=str(error)[:10_000])
        raise


def erase_pending_or_log(task_id: str = "") -> None:
    """:func:`erase_pending` for those who have other work to do: what fails is tried again by the next one."""
    try:
        if erasures().exists():
            erase_pending(task_id)
    except (ParquetAnalyticsError, DatabaseError) as error:
        _log.error("deleted projects could not be taken out of the archive: %s", " ".join(str(error).split()))


class _Sweep:
    def __init__(self, who: Any, task_id: str, *, accept_moved_database: bool, every_copy: bool) -> None:
        self._who, self._task_id = who, task_id
        self._every_copy = every_copy
        self._accept = accept_moved_database
        self._claim: dict[str, Any] | None = None
        self._failed: ParquetAnalyticsError | None = None
        self.told = False
        """Whether each erasure says what became of it."""

    def claim(self) -> dict[str, Any]:
        """On whose behalf it is done, asked once."""
        from parquet_analytics.django.source import native_source

        if self._claim is None:
            source = native_source()
            owner = None if source is None else source.identity()
            self._claim = {"owner": owner, "accept_moved_database": self._accept}
        return self._claim

    def record(self) -> None:
        """Tells every reader of the store: what is new, and what the list has lost. While it lacked something, exports
        may have written that again, so it is looked for once more."""
        told = {each["project_id"]: each for each in erasures().filter(**FITTING).values("pk", "project_id", "slug")}
        listed = set(self._who.erased_projects())
        lacking = {project: each for project, each in told.items() if project not in listed}
        if lacking or self._accept:
            slugs = {project: each["slug"] if _has_key(each["slug"]) else None for project, each in lacking.items()}
            self._who.erase_projects(slugs, **self.claim())
        for some in _chunks([each["pk"] for each in lacking.values()]):
            erasures().filter(pk__in=some).update(recorded_at=days.now(), finished_at=None, error="")
        for some in _chunks([each["pk"] for project, each in told.items() if project in listed]):
            erasures().filter(pk__in=some, recorded_at__isnull=True).update(recorded_at=days.now())
        # Somebody may have taken one back meanwhile.
        back = set(lacking) - set(erasures().values_list("project_id", flat=True)) if lacking else set()
        if back:
            self._who.unerase_projects(back, **self.claim())
        self._enter(listed)

    def _enter(self, listed: set[int]) -> None:
        """Enters into the ledger what only the list has (erased by the library, or before the ledger was restored), so
        that it stays hidden when the store is down or the list is lost. Only where the list is this database's."""
        every = Erasure.objects.using(router.db_for_write(Erasure))
        unknown = listed - set(every.values_list("project_id", flat=True))
        if not unknown or self.claim()["owner"] is None:
            return
        self._who.check_erasure(**self.claim())
        back = dict(living(unknown))
        now = days.now()
        lives = "Found on the list in the store. The project lives, so nothing was taken out of files."
        new = [
            # What somebody may want back is hidden, and no more.
            Erasure(project_id=each, recorded_at=now, **({"finished_at": now, "note": lives} if each in back else {}))
            for each in sorted(unknown)
        ]
        every.bulk_create(new, batch_size=1_000, ignore_conflicts=True)

    def work(self, pending: list[Erasure]) -> list[int]:
        if not pending:
            return []
        for erasure in pending:
            erasure.error = ""
        under_way = self._under_way()
        look = self._look(pending)
        if look["files"]:
            if self._remember_slugs(pending, look) and not look["every_copy"]:
                look = self._look(pending)
            for day, files in _by_day(look).items():
                self._day(day, files)
            under_way = self._under_way()
            look = self._look(pending)
        if look["months"]:
            self._months()
            look = self._look(pending)
        return self._finish(pending, look, under_way)

    def _look(self, pending: list[Erasure]) -> dict[str, Any]:
        slugs = {slug for erasure in pending for slug in (erasure.slug, *(erasure.slugs or ()))}
        used = None if self._every_copy else _slugs_in_use()
        found: dict[str, Any] = self._who.erased_rows(living=used, slugs=slugs, most_copies=_MOST_COPIES)
        return found

    def _remember_slugs(self, pending: list[Erasure], look: dict[str, Any]) -> bool:
        """Before anything is written anew: the day's file is what knows under which slugs there can be copies. Says
        whether others than before were found."""
        others = False
        found: dict[int, set[str]] = defaultdict(set)
        for file in look["files"]:
            for project, slugs in file["projects"].items():
                found[project].update(slugs)
        for erasure in pending:
            slugs = {*(erasure.slugs or ()), *found[erasure.project_id]}
            if slugs - {erasure.slug, *(erasure.slugs or ())}:
                others, erasure.slugs = True, sorted(slugs)
                erasures().filter(pk=erasure.pk).update(slugs=erasure.slugs)
        return others

    def _day(self, day: datetime.date, files: list[dict[str, Any]]) -> None:
        who = self._who
        members = organizations.members() if organizations.installed() else {}
        # An organization that has gone too has no projects any more.
        stale = [file["organization"] for file in files if file["organization"] is not None]
        try:
            with Ledger(Run.Kind.ERASE, day, who.location, task_id=self._task_id) as ledger:
                run = ledger.run
                run.key, run.state = who.get_parquet_path(day), Run.State.DONE
                try:
                    result = who.erase_from_day(
                        day,
                        slugs=[file["project"] for file in files if file["project"] is not None],
                        per_organization={slug: members.get(slug, []) for slug in stale} or None,
                        **self.claim(),
                    )
                except (DayLost, DayNotStored):
                    # Copies alone, which are gone by now.
                    return
                run.outcome = result["outcome"]
                run.etag, run.sha256, run.run_id = result["etag"], result["sha256"], result["run_id"]
                run.rows, run.views, run.bytes = result["total_records"], result["total_views"], result["bytes"]
        except ParquetAnalyticsError as error:
            _log.warning("%s: erased projects could not be taken out: %s", day, error)
            self._failed = self._failed or error

    def _months(self) -> None:
        """What is derived of the days is made anew without these rows."""
        from parquet_analytics.django.runs import compact

        try:
            compact(existing=True, task_id=self._task_id)
        except ParquetAnalyticsError as error:
            _log.warning("erased projects could not be taken out of what is derived: %s", error)
            self._failed = self._failed or error

    def _under_way(self) -> list[tuple[datetime.date, datetime.datetime]]:
        """Exports and compactions at work: one that began before a project was recorded may still write a file with its
        rows. It looks at the list again when it is done; should it be killed before, nobody would."""
        kinds = [Run.Kind.EXPORT, Run.Kind.COMPACT]
        found = runs().filter(kind__in=kinds, state=Run.State.RUNNING, location=self._who.location)
        return list(found.filter(lease_until__gt=days.now()).values_list("day", "started_at"))

    def _finish(
        self, pending: list[Erasure], look: dict[str, Any], under_way: list[tuple[datetime.date, datetime.datetime]]
    ) -> list[int]:
        left: dict[int, list[str]] = defaultdict(list)
        for file in look["files"]:
            for project in file["projects"]:
                left[project].append(file["key"])
        for month, projects in look["months"].items():
            # Of one whose index is damaged nobody can tell.
            for project in projects or [erasure.project_id for erasure in pending]:
                left[project].append(f"the file of {month} below _derived/")
        note = None
        if not look["every_copy"]:
            note = "Copies below the slugs of other projects were not looked at; manage.py parquet_analytics erase "
            note += "--every-copy does."
        finished, trouble = [], []
        self.told = True
        for erasure in pending:
            why = self._why(erasure, left[erasure.project_id], look["unreadable"], under_way)
            # Another run may have finished it meanwhile, and kept this one from it.
            mine = erasures().filter(pk=erasure.pk, finished_at__isnull=True)
            if why is None:
                mine.update(finished_at=days.now(), error="", note=note)
                finished.append(erasure.project_id)
            else:
                mine.update(error=str(why)[:10_000])
                trouble.append(why)
        if trouble:
            raise self._failed or trouble[0]
        return finished

    def _why(
        self,
        erasure: Erasure,
        left: list[str],
        unreadable: dict[str, str],
        under_way: list[tuple[datetime.date, datetime.datetime]],
    ) -> ParquetAnalyticsError | None:
        """Why an erasure is not finished."""
        if left:
            about = f"; {self._failed}" if self._failed else ""
            retryable = self._failed is None or self._failed.retryable
            return ParquetAnalyticsError(
                f"rows of project {erasure.project_id} are still in {_shown(left)}{about}", retryable=retryable
            )
        if unreadable:
            key, why = next(iter(unreadable.items()))
            shown = _shown(list(unreadable))
            return CorruptFile(
                f"it cannot be told whether rows of project {erasure.project_id} are in {shown}: {why}", key=key
            )
        recorded = Erasure.objects.using(router.db_for_write(Erasure)).get(pk=erasure.pk).recorded_at or days.now()
        for day, started in under_way:
            if started < recorded + _SKEW:
                return DayIsTaken(
                    f"{day}: an export or compaction that began before project {erasure.project_id} was erased is "
                    "under way; what it writes is looked at when it is done",
                    day=day,
                    retryable=True,
                )
        return None


def _by_day(look: dict[str, Any]) -> dict[datetime.date, list[dict[str, Any]]]:
    found: dict[datetime.date, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(look["files"], key=lambda file: file["date"]):
        found[file["date"]].append(file)
    return found


def living(erased: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Those of the projects that there are, with their slugs. The primary is asked: a replica may not know of a
    deletion."""
    mapping = configured()
    model = mapping.project_model
    if model is None:
        return
    key, slug = mapping.project_key.attname, mapping.project_slug
    projects = all_rows(model, router.db_for_write(model))
    for some in _chunks(sorted(erased)):
        found = projects.filter(**{f"{key}__in": some})
        yield from found.order_by(key).values_list(key, slug or key)


def _slugs_in_use() -> set[str] | None:
    """The slugs that projects have now, where the model says."""
    mapping = configured()
    model, slug = mapping.project_model, mapping.project_slug
    if model is None or slug is None:
        return None
    found = all_rows(model, router.db_for_write(model)).values_list(slug, flat=True)
    return {each for each in found.iterator() if isinstance(each, str)}


def _has_key(slug: str) -> bool:
    """Whether there can be copies below a slug: a project may have been named as no key can be."""
    from parquet_analytics._native import check_slug

    try:
        check_slug(slug)
    except InvalidInput:
        return False
    return True


def _chunks(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + 1_000] for start in range(0, len(values), 1_000)]


def _shown(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more files" if len(keys) > 5 else "")

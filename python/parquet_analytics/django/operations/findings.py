"""What the doctor finds about erased projects: whether ledger, list and database agree, and whether one waits."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from django.db import Error as AnyDatabaseError
from django.db import OperationalError, ProgrammingError, router

from parquet_analytics.django import days
from parquet_analytics.django.erasure.sweep import erasures, living
from parquet_analytics.django.models import Erasure
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import ErasureRefused, ParquetAnalyticsError

__all__ = ["Finding", "erasure_findings"]

_TWO_NIGHTS = datetime.timedelta(hours=50)
_ERASE = "Run manage.py parquet_analytics erase, and see to what it says."


class Finding(NamedTuple):
    check: str
    state: str
    """``ok``, ``warning``, ``failed`` or ``skipped``."""
    message: str
    hint: str = ""


def erasure_findings() -> Iterator[Finding]:
    try:
        rows = {each.project_id: each for each in erasures()}
    except (ProgrammingError, OperationalError) as error:
        if isinstance(error, OperationalError) and "no such table" not in str(error):
            raise
        yield Finding("erasures", "skipped", "the ledger has no table", "See the ledger's line.")
        return
    found = list(_waiting(rows.values()))
    try:
        found += _differences(rows)
    except ParquetAnalyticsError as error:
        found.append(Finding("erasures", "failed", f"the list in the store cannot be used: {error}", _ERASE))
    except AnyDatabaseError as error:
        about = " ".join(str(error).split())
        found.append(
            Finding("erasures", "failed", f"projects cannot be asked for: {about}", "See the database's line.")
        )
    if configured().project_model is None:
        found.append(
            Finding(
                "erasures",
                "warning",
                "projects are plain numbers to the page views, so it is not noticed when one is deleted",
                "Call exporter.erase_project(project_id, slug) wherever projects are deleted.",
            )
        )
    yield from found or [Finding("erasures", "ok", "no deleted project waits to be taken out of the archive")]


def _waiting(rows: Iterable[Erasure]) -> Iterator[Finding]:
    waiting = sorted((each for each in rows if each.finished_at is None), key=lambda each: each.pk)
    if not waiting:
        return
    oldest = min(each.requested_at for each in waiting)
    late = days.now() - oldest > _TWO_NIGHTS
    message = f"to be taken out of the archive: {len(waiting)} deleted projects, since {oldest:%F}"
    if errors := [each.error for each in waiting if each.error]:
        message += f"; the last attempt said: {errors[-1]}"
    yield Finding("erasures", "failed" if late else "ok", message, _ERASE if late else "")


def _differences(rows: dict[int, Erasure]) -> Iterator[Finding]:
    from parquet_analytics.django.runs import exporter

    who = exporter()
    listed = set(who.erased_projects())
    told = {project for project, each in rows.items() if each.recorded_at is not None}
    if lost := sorted(told - listed):
        yield Finding(
            "erasures",
            "failed",
            f"the list of erased projects in the store lacks {_shown(lost)}, which the ledger calls erased; other "
            "readers than Django's show what files have of them",
            _ERASE,
        )
    every = Erasure.objects.using(router.db_for_write(Erasure))
    back = set(every.filter(withdrawn_at__isnull=False).values_list("project_id", flat=True))
    if half := sorted(listed & back):
        yield Finding(
            "erasures",
            "failed",
            f"the list of erased projects in the store has {_shown(half)}, whose erasure was taken back",
            f"Run again: manage.py parquet_analytics unerase {' '.join(f'--project {each}' for each in half[:10])}.",
        )
    if unknown := sorted(listed - set(rows) - back):
        yield Finding(
            "erasures",
            "warning",
            f"the list of erased projects in the store has {_shown(unknown)}, of which the ledger knows nothing",
            "Erased by the library, or before the ledger was lost or restored. Until the ledger knows, they are not "
            "hidden while the store is out of reach. manage.py parquet_analytics erase enters them; of one that was "
            "erased by mistake, manage.py parquet_analytics unerase --project ID.",
        )
    for project, slug in living(listed | set(rows)):
        yield Finding(
            "erasures",
            "failed",
            f"project {project} ({slug}) is erased, and lives: it is neither shown nor exported",
            f"manage.py parquet_analytics unerase --project {project}, and export its days again. Or delete it again.",
        )
    if listed or rows:
        try:
            who.check_erasure()
        except ErasureRefused as error:
            yield Finding(
                "erasures",
                "failed",
                str(error),
                "Correct the bucket or PREFIX; or, after a move that was meant, run manage.py parquet_analytics erase "
                "--accept-moved-database.",
            )


def _shown(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")

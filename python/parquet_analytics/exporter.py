"""Exporting: one finished day of page views becomes one sorted Parquet file in the store."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parquet_analytics import _native
from parquet_analytics._arguments import Date, count, day_text, open_store, source_of, today
from parquet_analytics.exceptions import InvalidInput

__all__ = ["ParquetAnalyticsExporter"]

Progress = Callable[[int, int | None], object]
"""Called with the rows read so far and, where known, the rows there are."""


class ParquetAnalyticsExporter:
    """Exports days of page views to a store.

    ``storage`` is a URL (``s3://bucket/prefix``, ``file:///folder``, ``memory://name``; experimental:
    ``gs://bucket/prefix``, ``az://container/prefix``), a Django storage object, or ``None`` for the alias in
    Django's ``PARQUET_ANALYTICS["STORAGE"]``, else ``default``. ``storage_options`` belong to a URL:
    ``endpoint_url``, ``region``, ``access_key_id`` and so on.

    ``source`` is a PostgreSQL URL or key/value string, a :class:`PostgresSource`, an object with
    ``__arrow_c_stream__``, a callable that takes the day (:class:`datetime.date`) and returns one, a Django model
    or queryset, or ``None`` for the model in Django's settings.

    ``sort_memory`` bounds the bytes of rows held in memory; above it rows go to ``temp_dir`` (by default the
    system's temporary folder). Constructing does no I/O.
    """

    def __init__(
        self,
        storage: Any = None,
        *,
        source: Any = None,
        prefix: str = "analytics/pageviews",
        storage_options: Mapping[str, str] | None = None,
        sort_memory: int = 512 * 1024 * 1024,
        temp_dir: str | os.PathLike[str] | None = None,
        row_group_rows: int = 122_880,
    ) -> None:
        self._store = open_store(storage, storage_options)
        self._source = source
        self._prefix = _native.check_prefix(prefix)
        self._settings: dict[str, Any] = {
            "sort_memory": count(sort_memory, "sort_memory"),
            "temp_dir": None if temp_dir is None else os.fspath(temp_dir),
            "row_group_rows": count(row_group_rows, "row_group_rows"),
        }
        if row_group_rows == 0:
            raise InvalidInput("row_group_rows is 0; a row group holds at least one row")

    def __repr__(self) -> str:
        return f"ParquetAnalyticsExporter({self._store.url!r}, prefix={self._prefix!r})"

    def get_parquet_path(
        self, target_date: Date | None = None, organization: str | None = None, project: str | None = None
    ) -> str:
        """The key of a day's file, or of an organization's or project's copy of it.

        The default day is yesterday in UTC. A slug that could leave its folder is :class:`InvalidInput`.
        """
        if organization is not None and project is not None:
            raise InvalidInput("a copy is an organization's or a project's; pass one of the two")
        return _native.parquet_path(self._prefix, _target(target_date), organization, project)

    def export_daily_pageviews(
        self,
        target_date: Date | None = None,
        *,
        per_project: bool | None = None,
        per_organization: bool | Mapping[str, Iterable[str]] | None = None,
        replace: bool = False,
        discard_stored: bool = False,
        allow_empty: bool = False,
        allow_open_day: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Export one day (by default yesterday in UTC) and say what was written.

        The result has ``date`` ("YYYY-MM-DD"), ``dry_run``, ``total_records`` (rows), ``total_views``, ``files``
        ({key of the day's file: rows}), ``project_files`` and ``organization_files`` (numbers of copies), ``bytes``,
        ``sha256``, ``etag``, ``run_id``, ``source`` and ``snapshot_time``. A dry run writes nothing; it counts the
        rows (``total_records`` is ``None`` where only reading them would tell), and its result has ``date``,
        ``dry_run``, ``total_records``, ``files`` and ``url``.

        ``per_project`` writes a copy for each project with rows. ``per_organization`` writes one for each
        organization: a mapping of its slug to its projects' slugs, or ``True`` for the tables of Read the Docs in
        the PostgreSQL source. Copies are written after the day's file; no query needs them.

        A day that is stored already is :class:`InvalidInput` unless ``replace``; a replacement that would drop
        stored rows is refused unless ``discard_stored``. A day without rows is :class:`DayHasNoRows` unless
        ``allow_empty``. Today is refused unless ``allow_open_day``, and so are rows of another day. A value that does
        not fit is :class:`BadRow` and nothing is written. ``progress`` is called about twenty times a second with
        (rows read, rows there are or ``None``).
        """
        day = _target(target_date)
        source = source_of(self._source)
        organizations = _organizations(per_organization, source)
        if dry_run:
            return _native.plan_export(self._store, source, self._prefix, day, allow_open_day)
        return _native.export_day(
            self._store,
            source,
            self._prefix,
            day,
            per_project=bool(per_project),
            organizations=organizations,
            replace=replace,
            discard_stored=discard_stored,
            allow_empty=allow_empty,
            allow_open_day=allow_open_day,
            progress=progress,
            **self._settings,
        )


def _target(value: Date | None) -> str:
    return day_text(today() - datetime.timedelta(days=1) if value is None else value, "target_date")


def _organizations(given: bool | Mapping[str, Iterable[str]] | None, source: Any) -> dict[str, list[str]] | None:
    if given is None or given is False:
        return None
    if given is True:
        if isinstance(source, _native.PostgresSource):
            return source.organizations()
        raise InvalidInput("per_organization=True needs a PostgreSQL source; pass {organization: [projects]} instead")
    members = {}
    for organization, projects in given.items():
        if isinstance(projects, str):
            raise InvalidInput(f"per_organization[{organization!r:.80}] is text; pass a list of project slugs")
        members[organization] = list(projects)
    return members

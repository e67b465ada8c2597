"""Exporting: one finished day of page views becomes one sorted Parquet file in the store."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

from parquet_analytics import _native
from parquet_analytics._arguments import Date, count, day_text, open_store, project, settings_prefix, source_of, today
from parquet_analytics._native import PostgresSource
from parquet_analytics.exceptions import ConfigurationError, InvalidInput

__all__ = ["ParquetAnalyticsExporter"]

Progress = Callable[[int, int | None], object]
"""Called with the rows read so far and, where known, the rows there are: when that changes, and at least once a second.
Where it has an attribute ``wants_total`` that is ``False``, PostgreSQL is spared counting the rows first."""


class ParquetAnalyticsExporter:
    """Exports days of page views to a store.

    ``storage`` is a URL (``s3://bucket/prefix``, ``file:///folder``, ``memory://name``; experimental:
    ``gs://bucket/prefix``, ``az://container/prefix``), a Django storage object, or ``None`` for the alias in
    Django's ``PARQUET_ANALYTICS["STORAGE"]``, else ``default``. ``storage_options`` belong to a URL:
    ``endpoint_url``, ``region``, ``access_key_id`` and so on.

    ``source`` is a PostgreSQL URL or key/value string, a :class:`PostgresSource`, an object with
    ``__arrow_c_stream__``, a callable that takes the day (:class:`datetime.date`) and returns one, a Django model
    or queryset, or ``None`` for the model in Django's settings.

    ``prefix`` is the folder below the storage's location: by default ``analytics/pageviews``, or, for the storage in
    Django's settings, ``PARQUET_ANALYTICS["PREFIX"]``.

    ``sort_memory`` bounds the bytes of rows held in memory; above it rows go to ``temp_dir`` (by default the
    system's temporary folder). Constructing does no I/O.
    """

    def __init__(
        self,
        storage: Any = None,
        *,
        source: Any = None,
        prefix: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        sort_memory: int = 512 * 1024 * 1024,
        temp_dir: str | os.PathLike[str] | None = None,
        row_group_rows: int = 122_880,
    ) -> None:
        self._store = open_store(storage, storage_options)
        self._source = source
        self._prefix = _native.check_prefix(settings_prefix(storage) if prefix is None else prefix)
        self._settings: dict[str, Any] = {
            "sort_memory": count(sort_memory, "sort_memory"),
            "temp_dir": None if temp_dir is None else os.fspath(temp_dir),
            "row_group_rows": count(row_group_rows, "row_group_rows"),
        }
        if not 1 <= row_group_rows <= 1 << 20:
            raise InvalidInput(f"row_group_rows is {row_group_rows}; a row group holds 1 to {1 << 20} rows")

    def __repr__(self) -> str:
        return f"ParquetAnalyticsExporter({self._store.url!r}, prefix={self._prefix!r})"

    @property
    def location(self) -> str:
        """The URL of the folder below which all keys are, without credentials."""
        return "/".join(part for part in (self._store.url.rstrip("/"), self._prefix) if part)

    def probe(self) -> bool:
        """Find out whether the store heeds conditions on writes and reads, on which deletion depends. Writes and reads
        a small object below ``_derived/``; :class:`PermissionDenied` and other :class:`StoreError` when it cannot."""
        return not self.ignored_conditions()

    def ignored_conditions(self) -> list[str]:
        """The conditions that :meth:`probe` finds the store to ignore, such as "If-Match on reads"; none is right."""
        return self._store.probe(self._prefix)

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
        on_bad_row: Literal["fail", "leave"] = "fail",
        on_id_conflict: Literal["fail", "leave", "database"] = "fail",
        expect_stored: bool = False,
        accept_moved_database: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Export one day (by default yesterday in UTC), read the file back, and say what was written.

        The result has ``date`` ("YYYY-MM-DD"), ``dry_run``, ``outcome`` ("created", "merged", "replaced" or
        "unchanged"), ``total_records`` (rows of the file), ``total_views``, ``ids`` (the smallest and the greatest of
        the file, ``None`` without rows), ``files`` ({key of the day's file: rows}), ``project_files`` and
        ``organization_files`` (numbers of copies), ``added``, ``changed`` and ``kept`` (rows new to the file, rows of
        which a copied column changed, stored rows that the source no longer has; with ``discard_stored`` all rows
        count as added), ``source_records`` and ``source_views`` (of the source alone), ``left`` and ``left_rows`` (see
        ``on_bad_row``), ``bytes``, ``sha256``, ``etag``, ``run_id``, ``source``, ``snapshot_time``, ``standby`` and
        ``position`` (whether the source is a standby, and where in its history the snapshot was taken; ``None`` where
        that means nothing) and ``verified``. A dry run writes nothing; it counts the rows (``total_records`` is
        ``None`` where only reading them would tell), and its result has ``date``, ``dry_run``, ``total_records``,
        ``files`` and ``url``.

        A day that is stored already is merged by id: the source's rows win, rows that only the store has are kept. If
        others write the day at the same time, it is merged again. :class:`StaleSnapshot` when the source shows an
        older state than the stored one (a lagging replica), or is another database, unless ``accept_moved_database``;
        :class:`IdConflict` when an id has another project or path than stored, or is that of a row that was deleted;
        ``on_id_conflict="leave"`` leaves such rows in the source and exports the others, ``"database"`` takes
        corrections of rows that the database still has. Rows that live on another date now leave the file (``moved``).
        :class:`DayLost` when rows of the day were deleted from the database, by what the store knows or as
        ``expect_stored`` says, and its file is gone. ``replace`` writes the source's rows
        alone, and refuses to when that would drop stored rows, unless ``discard_stored``, which implies it.

        ``per_project`` writes a copy for each project with rows. ``per_organization`` writes one for each
        organization: a mapping of its slug to its projects' slugs, or ``True`` for the tables of Read the Docs in
        the PostgreSQL source. Copies are written after the day's file; no query needs them.

        A day without rows is recorded as empty (a file with zero rows) when the source holds an earlier day or with
        ``allow_empty``; otherwise it is :class:`DayHasNoRows`. Today is refused unless ``allow_open_day``, and so are
        rows of another day. A value that does not fit is :class:`BadRow` and nothing is written; with
        ``on_bad_row="leave"`` such rows stay in the source, and ``left_rows`` lists the first 100 (``id``, ``column``,
        ``reason``). ``progress`` is called about twenty times a second with (rows read, rows there are or ``None``).

        The published file is read back whole and compared (SHA-256, rows, views, ids, rows by status) with what the
        database counted in the same snapshot: :class:`VerificationFailed`. :class:`CommitStateUnknown` when it cannot
        be found out whether the file was written; exporting again is safe.
        """
        if on_bad_row not in ("fail", "leave"):
            raise InvalidInput(f"on_bad_row is {on_bad_row!r:.80}; pass 'fail' or 'leave'")
        if on_id_conflict not in ("fail", "leave", "database"):
            raise InvalidInput(f"on_id_conflict is {on_id_conflict!r:.80}; pass 'fail', 'leave' or 'database'")
        day = _target(target_date)
        source = source_of(self._source, day)
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
            leave_bad_rows=on_bad_row == "leave",
            on_id_conflict=on_id_conflict,
            expect_stored=expect_stored,
            accept_moved_database=accept_moved_database,
            progress=progress,
            count_first=getattr(progress, "wants_total", True),
            **self._settings,
        )

    def compact(
        self,
        since: Date | None = None,
        until: Date | None = None,
        *,
        existing: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[dict[str, Any]]:
        """Bring the derived files of months up to date: of each month that has a day from ``since`` to ``until`` (by
        default all that are stored) one file of what its finished days add up to, so that questions about many days
        take few requests. Reads of a month only the days that have changed since, and asks the store about each
        of the others. Days stay the only truth: what is derived can be deleted and is made anew, and a day that is
        written is read itself until it is compacted again. With ``existing``, months that have no such file get none.
        Rows of erased projects are taken out of it. Safe beside exports, deletions and other compactions.

        For each month a dict: ``month`` ("YYYY-MM"), ``outcome`` ("created", "updated", "unchanged", "removed" when it
        has no days any more, "too large" when its file would not go up: its days are read then), ``days`` that have a
        file, ``days_read``, ``rows`` and ``bytes`` of the derived file. ``progress`` is called with the months that are
        done and that there are, when that changes and at least once a second. :class:`ConfigurationError` when the
        store ignores conditions.
        """
        first, last = (
            None if day is None else day_text(day, name) for day, name in ((since, "since"), (until, "until"))
        )
        if first is not None and last is not None and first > last:
            raise InvalidInput(f"since ({first}) lies after until ({last})")
        return _native.compact_days(
            self._store,
            self._prefix,
            first,
            last,
            existing=existing,
            temp_dir=self._settings["temp_dir"],
            progress=progress,
        )

    def verify(self, target_date: Date | None = None, *, against: Literal["database"] | None = None) -> dict[str, Any]:
        """Read a day's file back whole, and compare its bytes with the SHA-256 and its rows with the numbers (rows,
        views, ids, rows by status) that were recorded when it was written.

        The result has ``date``, ``key``, ``etag``, ``run_id``, ``bytes``, ``sha256``, ``total_records``,
        ``total_views`` and ``statuses`` ({status: rows}). With ``against="database"`` the rows are compared with those
        that the source has now: ``missing`` (not in the file), ``changed`` (a copied column differs) and
        ``archive_only`` (not in the source) are numbers of rows, ``missing_ids`` and so on the first 1,000 of their
        ids; ``left`` and ``left_rows`` tell of rows with values that no file can hold.

        :class:`DayNotStored` when there is no file, :class:`VerificationFailed` or :class:`CorruptFile` when it is
        not what was written.
        """
        if against not in (None, "database"):
            raise InvalidInput(f"against is {against!r:.80}; pass 'database', or leave it out")
        day = _target(target_date)
        source = None if against is None else source_of(self._source, day)
        return _native.verify_day(self._store, self._prefix, day, source)

    def delete_exported_pageviews(
        self,
        target_date: Date | None = None,
        *,
        database: str | PostgresSource | None = None,
        verification: Mapping[str, Any] | None = None,
        allow_local_delete: bool = False,
        accept_moved_database: bool = False,
        allow_cascades: bool = False,
        lose_columns: Iterable[str] = (),
        batch_rows: int = 5_000,
        pause: float = 0.0,
        max_rows_per_second: float | None = None,
        max_replica_lag: float | None = None,
        lock_timeout: float = 2.0,
        statement_timeout: float = 30.0,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Delete from the database the rows of one day that are in its file, unchanged.

        The file is read back and verified first. Then, ``batch_rows`` at a time and each in a transaction of its own,
        rows are locked (those locked by others are skipped), compared in every copied column, deleted and committed.
        Rows that changed since, or came late, stay; export the day again to merge them, and to take those that live on
        another date out of the file. May be broken off at any moment, and run again.

        ``database`` is a PostgreSQL URL (with the tables and columns of the exporter's source) or a
        :class:`PostgresSource`, by default the exporter's source. ``verification``, the result of an export or of
        :meth:`verify`, demands that the file still is that version. ``pause`` (seconds between transactions),
        ``max_rows_per_second`` and ``max_replica_lag`` (seconds; needs the role ``pg_monitor``) go easy on the
        database; ``lock_timeout`` and ``statement_timeout`` (seconds) bound how long a transaction waits for locks
        and holds its own. ``progress`` is called with (rows looked at, rows in the file).

        ``lose_columns`` names columns of the table that no file holds and that may go with the rows: a restored row
        has their defaults. ``allow_cascades`` accepts what the files do not have either: rows of other tables that are
        deleted, changed or left without the row that they refer to (foreign keys with ``CASCADE``, ``SET NULL`` or
        ``SET DEFAULT``, or that are not enforced), triggers and rules on ``DELETE``.

        The result has ``date``, ``key``, ``etag`` and ``bytes`` (of the file, which says which rows are left),
        ``deleted``, ``changed``, ``late``, ``busy`` and ``moved`` (rows that the database keeps because they changed,
        are not in the file, were locked by somebody else, or live on another date), ``changed_ids``, ``late_ids``,
        ``busy_ids`` and ``moved_ids`` (the first 1,000),
        ``left`` (rows that no file can hold), ``batches`` and ``seconds``.

        :class:`DeletionRefused` when it is not certain that the rows are safe: a local or in-memory store (unless
        ``allow_local_delete``), a store that ignores conditional writes, a day that is not over, a version that was
        not verified, a standby, a table whose ids can repeat, another database than the one exported from (unless
        ``accept_moved_database``), columns that would be lost, effects on other rows. :class:`DayNotStored`,
        :class:`VerificationFailed` and :class:`CorruptFile` as in :meth:`verify`.
        """
        if isinstance(lose_columns, str):
            raise InvalidInput(f"lose_columns is {lose_columns!r:.80}; pass a list of columns")
        if count(batch_rows, "batch_rows") == 0:
            raise InvalidInput("batch_rows is 0; a batch holds at least one row")
        if max_rows_per_second is not None and not max_rows_per_second > 0:
            raise InvalidInput(f"max_rows_per_second is {max_rows_per_second!r:.80}; pass more than zero")
        etag = None
        if verification is not None:
            etag = verification.get("etag")
            day = _target(target_date)
            if not isinstance(etag, str) or verification.get("date") != day:
                raise InvalidInput(f"verification is not the result of an export or verification of {day}")
        return _native.delete_day(
            self._store,
            self._writable(database),
            self._prefix,
            _target(target_date),
            etag=etag,
            allow_local=allow_local_delete,
            accept_moved_database=accept_moved_database,
            allow_cascades=allow_cascades,
            lose_columns=list(lose_columns),
            batch_rows=batch_rows,
            pause=pause,
            max_rows_per_second=max_rows_per_second,
            max_replica_lag=max_replica_lag,
            lock_timeout=lock_timeout,
            statement_timeout=statement_timeout,
            progress=progress,
        )

    def erase_project(
        self, project_id: int, slug: str | None = None, *, owner: Any = None, accept_moved_database: bool = False
    ) -> bool:
        """Erase a project for good: from now on its rows are not shown by any querier of this store and prefix (within
        its ``max_age``, two seconds by default), and neither exported nor merged again, wherever they
        come from. Says whether it was not erased before.

        The project is known by its id alone, so that whoever gets its slug is not concerned. ``slug`` is recorded
        beside it. The list of erased projects is one small object, ``_erased/projects.json`` below the prefix, changed
        only under a condition and read back; :class:`CommitStateUnknown` when it cannot be found out whether it was,
        and erasing again is safe. Rows stay in files until :meth:`erase_from_day`.

        Ids mean something in one database only, so the list says whose they are, and so do the stored days.
        :class:`ErasureRefused`, and nothing is changed, when one of them is another database's than ``owner``: a
        PostgreSQL URL, a :class:`PostgresSource` or its ``identity()``, by default the exporter's source. Without any
        database, projects are erased only where none is named. ``accept_moved_database`` says once that the databases
        that list and days name held the same data, before a move, a promotion or a restoration.
        """
        erased = self.erase_projects({project_id: slug}, owner=owner, accept_moved_database=accept_moved_database)
        return bool(erased)

    def erase_projects(
        self, projects: Mapping[int, str | None], *, owner: Any = None, accept_moved_database: bool = False
    ) -> list[int]:
        """:meth:`erase_project` for many at once, ids with their slugs, in one change of the list. Gives the ids that
        were not erased before. The list has room for some 800,000; slugs are kept of the latest 10,000. The footer of
        each stored day is read."""
        wanted = []
        for project_id, slug in projects.items():
            _, number = project(None, project_id)
            if slug is not None:
                _native.check_slug(slug)
            wanted.append((cast(int, number), slug))
        return _native.erase_projects(self._store, self._prefix, wanted, self._owner(owner), accept_moved_database)

    def unerase_projects(
        self, project_ids: Iterable[int], *, owner: Any = None, accept_moved_database: bool = False
    ) -> list[int]:
        """Take projects off the list of erased ones, after a mistaken deletion was undone say, and give the ids that
        were on it. Their rows are shown again where files have them, and exported again. What was taken out of files
        comes back only from the source: export their days again. ``owner`` and ``accept_moved_database`` as in
        :meth:`erase_project`."""
        ids = [cast(int, project(None, project_id)[1]) for project_id in project_ids]
        return _native.unerase_projects(self._store, self._prefix, ids, self._owner(owner), accept_moved_database)

    def check_erasure(self, *, owner: Any = None, accept_moved_database: bool = False) -> None:
        """Raise what :meth:`erase_project` would raise because list or days are another database's. Changes nothing."""
        _native.check_erasure(self._store, self._prefix, self._owner(owner), accept_moved_database)

    def erased_projects(self) -> list[int]:
        """The ids of the projects that were erased."""
        return _native.erased_projects(self._store, self._prefix)

    def stored_days(self) -> list[datetime.date]:
        """The days that have a file, as the store lists them."""
        return _native.stored_days(self._store, self._prefix)

    def erased_rows(
        self, *, living: Iterable[str] | None = None, slugs: Iterable[str] = (), most_copies: int = 100_000
    ) -> dict[str, Any]:
        """Look where rows of erased projects still are, in all files that the store lists: days, and copies.

        The result has ``files``, a list of dicts with ``date``, ``key``, ``project`` or ``organization`` (the slug of a
        copy, else ``None``) and ``projects`` ({id: [slugs that its rows have]}); ``unreadable``, damaged files of which
        nobody can say what they hold ({key: why}); ``months``, those whose derived file holds some ({"YYYY-MM": [ids]},
        without ids where its index is damaged), which :meth:`compact` takes out; and ``every_copy``.

        It takes a request for each day and copy. ``living``, the slugs that projects have now, bounds that: when there
        are more than ``most_copies`` copies for projects, those below these slugs are left out (``every_copy`` is
        ``False`` then), but for ``slugs``, the slugs of erased projects where they are known.
        """
        known = None if living is None else set(living)
        return _native.erased_rows(self._store, self._prefix, known, set(slugs), count(most_copies, "most_copies"))

    def days_with_erased_copies(
        self, target_dates: Iterable[Date], slugs: Iterable[str], organizations: Iterable[str] = ()
    ) -> list[datetime.date]:
        """Those of the days of which the copy of one of these projects' ``slugs`` or ``organizations`` has rows of
        erased projects. The day's own file may have none any more, since an export leaves them out too. One request
        for each day and slug."""
        dates = [_target(date) for date in target_dates]
        return _native.days_with_erased_copies(self._store, self._prefix, dates, list(slugs), list(organizations))

    def erase_from_day(
        self,
        target_date: Date,
        *,
        slugs: Iterable[str] = (),
        per_organization: Mapping[str, Iterable[str]] | None = None,
        owner: Any = None,
        accept_moved_database: bool = False,
    ) -> dict[str, Any]:
        """Write a stored day again without the rows of erased projects, and read it back; ``outcome`` is
        ``"unchanged"`` when it has none. The result is that of :meth:`export_daily_pageviews`.

        Before, copies with rows of erased projects are deleted: those below these ``slugs``, and those of the
        organizations in ``per_organization``, which are then written anew for the projects that it gives. Copies
        without such rows stay as they are. :class:`DayNotStored` when there is no file, :class:`ErasureRefused` when
        the day or the list is another database's (``owner`` and ``accept_moved_database`` as in
        :meth:`erase_project`).
        """
        return _native.erase_from_day(
            self._store,
            self._prefix,
            _target(target_date),
            slugs=list(slugs),
            organizations=_organizations(per_organization, None),
            owner=self._owner(owner),
            accept_moved_database=accept_moved_database,
            **self._settings,
        )

    def _owner(self, given: Any) -> dict[str, Any] | None:
        """Which database asks, where there is one."""
        if isinstance(given, Mapping):
            return dict(given)
        if given is not None and not isinstance(given, (str, PostgresSource)):
            kind = type(given).__name__
            raise InvalidInput(f"owner is {kind}; pass a PostgreSQL URL, a PostgresSource or its identity")
        source = self._source if given is None else given
        if source is None:
            source = _of_settings()
        if isinstance(source, str):
            source = source_of(source)
        return source.identity() if isinstance(source, PostgresSource) else None

    def _writable(self, database: str | PostgresSource | None) -> PostgresSource:
        """The database to delete from: with the tables and columns of the source, wherever it is."""
        if isinstance(database, PostgresSource):
            return database
        if database is not None and not isinstance(database, str):
            raise InvalidInput(f"database is {type(database).__name__}; pass a PostgreSQL URL or a PostgresSource")
        if database is not None and not isinstance(self._source, (str, PostgresSource)):
            return PostgresSource(database)
        source = _of_writable() if self._source is None and database is None else source_of(self._source)
        if not isinstance(source, PostgresSource):
            raise ConfigurationError("rows are deleted from PostgreSQL alone; name it with database=")
        return source if database is None else source.at(database)


def _of_settings() -> PostgresSource | None:
    """The database of Django's model, where there are settings and it is read natively."""
    try:
        from parquet_analytics.django.source import native_source
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != "django":
            raise
        return None
    from django.conf import settings

    if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    try:
        return native_source()
    except ConfigurationError:
        # No model of page views, so no database that has one.
        return None


def _of_writable() -> Any:
    """The database that Django's settings say may be written to."""
    from parquet_analytics.django.source import configured_source

    return configured_source(write=True)


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

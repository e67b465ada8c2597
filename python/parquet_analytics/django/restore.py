"""Brings a stored day back into the table."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import InterfaceError, OperationalError, connections

from parquet_analytics import _native
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import exporter
from parquet_analytics.django.runs.ledger import Ledger, refuse_without_autocommit
from parquet_analytics.django.source import configured_source
from parquet_analytics.django.table import outages
from parquet_analytics.django.table.databases import write_alias
from parquet_analytics.django.table.insertion import Table, all_rows, chunks
from parquet_analytics.django.table.mapping import PageViewMapping, configured
from parquet_analytics.exceptions import (
    ConfigurationError,
    Conflict,
    DatabaseError,
    DayIsTaken,
    InvalidInput,
    ParquetAnalyticsError,
)

__all__ = ["restore_day"]

_log = logging.getLogger("parquet_analytics.django")


def restore_day(day: datetime.date, *, dry_run: bool = False, accept_moved_database: bool = False) -> dict[str, Any]:
    """Insert the rows of a stored day, all in one transaction, with their ids, past the model's hooks; what the table
    then has of the day is compared with them before it is committed.

    Rows of one natural key (project, version, path and status) become one, under the lowest id and with the sum of
    their views: a merged file may hold such rows (one was deleted, another came late), and the table's constraints
    allow one. The file is then written again in the same way, right before the commit, so that the next export does not
    count them twice. Rows whose project (or, for a model with versions, version) is gone are skipped; the file keeps
    them.

    The day has to be that of the very table, unless ``accept_moved_database``. The file says afterwards which rows the
    table has.

    The result has ``date``, ``restored``, ``summed`` (rows that went into another), ``skipped`` (rows),
    ``skipped_projects`` and ``skipped_versions`` (ids), ``views``, ``columns_lost`` (columns of the table that no file
    holds, which have their defaults) and ``unsettled`` (why the file could not be told that the rows are back, or
    ``None``; the day's next export does that).

    Where the table has exactly these rows already, as after a commit whose answer was lost, none is inserted.

    :raises InvalidInput: when the table has other rows of the day, or another row has one of the ids; when it is
        another table than the day's; when the database makes something else of the rows.
    :raises DayIsTaken: when the file was written anew meanwhile. Nothing is restored then.
    :raises DayNotStored: when there is no file.
    """
    with outages.translating():
        return _restore_day(day, dry_run=dry_run, accept_moved_database=accept_moved_database)


def _restore_day(day: datetime.date, *, dry_run: bool, accept_moved_database: bool) -> dict[str, Any]:
    mapping = configured()
    alias = write_alias(mapping)
    _check(mapping)
    refuse_without_autocommit(alias)
    who = exporter()
    if dry_run:
        work = _Restoration(mapping, alias, day, who, lambda: None)
        work.read(accept_moved_database)
        if not work.is_back():
            work.refuse_to_overwrite()
        return work.result
    of_caller = connections[alias].in_atomic_block
    with Ledger(Run.Kind.RESTORE, day, who.location, database=alias) as ledger, outages.translating():
        # Read while no other run can add to the file.
        work = _Restoration(mapping, alias, day, who, ledger.renew)
        run = ledger.run
        _record(run, work.read(accept_moved_database))
        try:
            with outages.atomic(alias):
                work.insert()
                ledger.renew(now=True)
                _record(run, work.prepare())
                ledger.hold()
        except Conflict as error:
            message = f"{day}: the file was written anew meanwhile, so nothing was restored; restore it again"
            raise DayIsTaken(message, day=day, key=error.key, retryable=True) from error
        except AnyDatabaseError as error:
            raise _failed(day, error) from error
        run.rows, run.views, run.left = len(work.wanted), work.result["views"], work.result["skipped"]
        run.state = Run.State.DONE
        if of_caller:
            work.result["unsettled"] = f"{day}: the rows are part of a transaction that the caller has yet to commit"
            return work.result
        try:
            _record(run, work.finish())
        except ParquetAnalyticsError as error:
            # The rows are there; a file that does not say so yet is only more careful than it has to be.
            _log.warning("%s: the rows are back, and the file does not say so yet: %s", day, error)
            work.result["unsettled"] = str(error)
    return work.result


def _record(run: Run, file: dict[str, Any]) -> None:
    run.key, run.etag, run.sha256, run.run_id = file["key"], file["etag"], file["sha256"], file["run_id"] or ""


def _failed(day: datetime.date, error: AnyDatabaseError) -> ParquetAnalyticsError:
    about = " ".join(str(error).split())
    if isinstance(error, (OperationalError, InterfaceError)):
        return DatabaseError(
            f"{day}: the database failed while the rows were brought back: {about}; restore it again, whether or not "
            "they are there",
            day=day,
            retryable=True,
        )
    return InvalidInput(f"{day}: the table does not take the rows back, so nothing was restored: {about}", day=day)


class _Restoration:
    """One version of the day's file, its rows, and the table."""

    def __init__(
        self, mapping: PageViewMapping, alias: str, day: datetime.date, who: Any, alive: Callable[[], object]
    ) -> None:
        self.mapping, self.alias, self.day, self.who, self.alive = mapping, alias, day, who, alive
        self._file: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self.wanted: list[dict[str, Any]] = []
        self.result: dict[str, Any] = {}

    def read(self, accept_moved_database: bool) -> dict[str, Any]:
        """The file's rows, one for each natural key, those that the table can have, and what is said of them."""
        import pyarrow as pa

        self._file, stream = _native.read_for_restoration(
            self.who._store,
            self.who._prefix,
            str(self.day),
            source=_identified(self.mapping, self.alias),
            accept_moved_database=accept_moved_database,
            alive=self.alive,
        )
        found: list[dict[str, Any]] = []
        for batch in pa.RecordBatchReader.from_stream(stream):
            found += batch.to_pylist()
            self.alive()
        self._rows, summed = _natural(sorted(found, key=lambda row: row["id"]))
        missing = {what: _gone(self.mapping, what, self.alias, self._rows) for what in ("project", "version")}
        self.alive()
        self.wanted = [
            row for row in self._rows if not any(row[f"{what}_id"] in gone for what, gone in missing.items())
        ]
        self.table = Table(self.mapping, self.alias)
        self._refuse_unfilled()
        self.result = {
            "date": str(self.day),
            "key": self._file["key"],
            "restored": len(self.wanted),
            "views": sum(row["view_count"] for row in self.wanted),
            "summed": summed,
            "skipped": len(self._rows) - len(self.wanted),
            "skipped_projects": sorted(missing["project"]),
            "skipped_versions": sorted(missing["version"]),
            "columns_lost": self.table.lost,
            "unsettled": None,
        }
        return self._file

    def _refuse_unfilled(self) -> None:
        if self.wanted and (unfilled := self.table.unfilled):
            raise InvalidInput(
                f"{self.day}: no file holds {', '.join(unfilled)}, which may not be NULL, and neither the table nor "
                "the model has a default; give the column a DEFAULT, at least meanwhile. Nothing was restored",
                day=self.day,
            )

    def is_back(self) -> bool:
        """Whether the table has the rows already."""
        if not self.wanted or self.table.of_day(self.day).count() != len(self.wanted):
            return False
        try:
            self.table.compare(self.day, self.wanted, self.alive)
        except InvalidInput:
            return False
        return True

    def refuse_to_overwrite(self) -> None:
        present = self.table.of_day(self.day).count()
        if present:
            raise InvalidInput(
                f"{self.day}: the table has {present} rows of this day, and nothing is overwritten; export the day, so "
                "that its file has all of them, delete the rows, then restore it",
                day=self.day,
            )
        id = self.mapping.lookups["id"]
        for chunk in chunks([row["id"] for row in self.wanted]):
            there = all_rows(self.mapping.model, self.alias).filter(**{f"{id}__in": chunk})
            taken = there.values_list(id, flat=True).first()
            if taken is not None:
                raise InvalidInput(
                    f"{self.day}: the table has a row with id {taken} on another day, so this is not the table that"
                    " the day was exported from",
                    day=self.day,
                    row_id=taken,
                )
            self.alive()

    def insert(self) -> None:
        """Inserts the rows, unless they are there, and looks at what the table then has, with all constraints
        checked."""
        self.table.take_time()
        if self.is_back():
            return
        self.refuse_to_overwrite()
        self.table.insert(self.wanted, self.alive)
        self.table.advance_sequence(self.wanted)
        self.table.check_constraints()
        self.table.compare(self.day, self.wanted, self.alive)

    def prepare(self) -> dict[str, Any]:
        """The file, if it still is the version that was read, has the rows as they were inserted, and says that it is
        not known which of them the table has: that is so until the commit has been answered."""
        import pyarrow as pa

        rows = pa.Table.from_pylist(self._rows) if self.result["summed"] else None
        self._file = _native.prepare_restoration(
            self.who._store,
            self.who._prefix,
            str(self.day),
            over=self._file["etag"],
            rows=None if rows is None else lambda _day: rows,
            alive=self.alive,
            **self.who._settings,
        )
        return self._file

    def finish(self) -> dict[str, Any]:
        """The file says which rows the table has. Only after the commit: before, it would promise rows that a crash
        keeps from coming, and another row with the id of one could take its place."""
        return _native.finish_restoration(
            self.who._store,
            self.who._prefix,
            str(self.day),
            over=self._file["etag"],
            present=[row["id"] for row in self.wanted] if self.result["skipped"] else None,
            alive=self.alive,
        )


def _identified(mapping: PageViewMapping, alias: str) -> _native.PostgresSource | None:
    """The table that is written to, where it can say which it is."""
    from parquet_analytics.django.table.postgres import seen_by

    connection = connections[alias]
    if connection.vendor != "postgresql":
        return None
    if connection.in_atomic_block or isinstance(mapping.native_tables(), str):
        seen_by(alias, [mapping.model._meta.db_table])
        return None
    source = configured_source(write=True, alias=alias)
    return source if isinstance(source, _native.PostgresSource) else None


def _natural(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """One row for each natural key, and how many rows went into others. Rows come by id, the lowest first."""
    by_key: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["project_id"], row["version_id"], row["path"], row["status"])
        if key in by_key:
            by_key[key]["view_count"] += row["view_count"]
        else:
            by_key[key] = dict(row)
    return list(by_key.values()), len(rows) - len(by_key)


def _gone(mapping: PageViewMapping, what: str, alias: str, rows: list[dict[str, Any]]) -> set[int]:
    """Ids of projects or versions that the rows name and the database does not have."""
    field = mapping.field(f"{what}_id")
    model = getattr(field, "related_model", None)
    if model is None:
        return set()
    ids = {row[f"{what}_id"] for row in rows} - {None}
    name = field.target_field.attname
    found: set[int] = set()
    for chunk in chunks(sorted(ids)):
        present = all_rows(model, alias).filter(**{f"{name}__in": chunk})
        found |= set(present.values_list(name, flat=True))
    return ids - found


def _check(mapping: PageViewMapping) -> None:
    """Only plain columns of the page views' own table can be written."""
    for column in ("id", "project_id", "path", "view_count", "date"):
        field = mapping.field(column)
        if "__" in mapping.lookups[column] or field.model._meta.db_table != mapping.model._meta.db_table:
            raise ConfigurationError(
                f"{column} comes from {mapping.lookups[column]!r}, another table; rows cannot be restored to it"
            )
    if mapping.timestamps:
        raise ConfigurationError(
            f"{mapping.model._meta.label} holds times, and files hold days; its rows cannot be brought back exactly"
        )

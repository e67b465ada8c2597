"""Exceptions of parquet-analytics: one base class, attributes instead of text to parse, and safe to pickle."""

from __future__ import annotations

import datetime
from typing import Any

__all__ = [
    "BadRow",
    "CommitStateUnknown",
    "ConfigurationError",
    "Conflict",
    "CorruptFile",
    "DatabaseError",
    "DayHasNoRows",
    "DayIsTaken",
    "DayLost",
    "DayNotStored",
    "DeletionRefused",
    "ErasureRefused",
    "IdConflict",
    "Interrupted",
    "InternalError",
    "InvalidInput",
    "LocalFileError",
    "ParquetAnalyticsError",
    "PermissionDenied",
    "QueryError",
    "SourceError",
    "SourceSchemaError",
    "StaleSnapshot",
    "StoreError",
    "VerificationFailed",
]


class ParquetAnalyticsError(Exception):
    """Base of all errors raised by this package.

    Attributes, each ``None`` where it says nothing about the error:

    - ``day`` (:class:`datetime.date`): the day that was being worked on
    - ``key``: the object in the store, below the store's location
    - ``row_id``, ``column``: the row and column of the source that cannot be exported
    - ``sqlstate``: PostgreSQL's five-character code
    - ``run_id``: the export run whose outcome is unknown
    - ``export_first`` (a tuple, never ``None``): days that have to be exported before rows of ``day`` may go
    - ``retryable`` (bool, never ``None``): whether the same call can succeed later with nothing changed
    """

    def __init__(
        self,
        message: str = "",
        *,
        day: datetime.date | None = None,
        key: str | None = None,
        row_id: int | None = None,
        column: str | None = None,
        sqlstate: str | None = None,
        run_id: str | None = None,
        export_first: tuple[datetime.date, ...] = (),
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.day = day
        self.key = key
        self.row_id = row_id
        self.column = column
        self.sqlstate = sqlstate
        self.run_id = run_id
        self.export_first = export_first
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (type(self), self.args, self.__dict__.copy()))


def _restore(
    kind: type[ParquetAnalyticsError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> ParquetAnalyticsError:
    error = kind(*args)
    error.__dict__.update(attributes)
    return error


class InvalidInput(ParquetAnalyticsError, ValueError):
    """An argument that cannot be accepted: a malformed date, a hostile slug, a replacement that would drop rows."""


class ConfigurationError(ParquetAnalyticsError):
    """A URL, option, setting or credential that has to be changed."""


class SourceError(ParquetAnalyticsError):
    """The source of rows failed."""


class SourceSchemaError(SourceError):
    """A table or ``column`` is missing, or has a type that cannot be copied without loss."""


class BadRow(SourceError):
    """A value does not fit the schema; ``row_id`` and ``column`` say where."""


class DayHasNoRows(SourceError):
    """The source has no rows for ``day``, and an empty file was not asked for."""


class StaleSnapshot(SourceError):
    """The source shows an older state than the stored file has (a lagging replica), or is another database."""


class IdConflict(SourceError):
    """The source has the id ``row_id`` for another project or path than the stored file: a restored database?"""


class DatabaseError(SourceError):
    """PostgreSQL refused, failed or went away; ``sqlstate`` says how where the server did."""


class StoreError(ParquetAnalyticsError):
    """The store failed or could not be reached."""


class PermissionDenied(StoreError):
    """The credentials do not allow this; the message names the missing permission."""


class Conflict(StoreError):
    """Somebody else wrote the object first."""


class CorruptFile(StoreError):
    """A stored object is not a page-view file that this version can read."""


class DayNotStored(StoreError):
    """The store has no file for ``day``."""


class VerificationFailed(StoreError):
    """What was read back from the store is not what was written, or not what the database counted."""


class DayLost(VerificationFailed):
    """The file of ``day`` is gone, and rows that it held are in the database no more."""


class DeletionRefused(ParquetAnalyticsError):
    """Rows are not deleted, because it is not certain that they are safe in the store."""


class ErasureRefused(ParquetAnalyticsError):
    """Nothing is erased, because the list of erased projects, or a stored day, belongs to another database."""


class CommitStateUnknown(StoreError):
    """A write may or may not have taken effect. Change nothing until that is known."""


class DayIsTaken(ParquetAnalyticsError):
    """Another run is at work on ``day``."""


class QueryError(ParquetAnalyticsError):
    """SQL that is refused, wrong, or took longer than allowed."""


class LocalFileError(ParquetAnalyticsError, OSError):
    """A local file or folder failed, such as a full temporary folder."""

    # OSError defines its own; the message is all there is to show.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Interrupted(ParquetAnalyticsError):
    """The call was asked to stop."""


class InternalError(ParquetAnalyticsError):
    """A defect in this package."""

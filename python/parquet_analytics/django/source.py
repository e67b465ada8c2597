"""Page views out of Django: through the ORM from any database, or natively where it is PostgreSQL.

Which model and columns those are is :mod:`parquet_analytics.django.table.mapping`'s business; which of the two ways is
taken is decided here, anew for each run.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa

from parquet_analytics import _native
from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.django.table.databases import connection_string, read_alias, write_alias
from parquet_analytics.django.table.mapping import FIELDS, PageViewMapping, all_rows, configured
from parquet_analytics.django.table.postgres import seen_by
from parquet_analytics.exceptions import BadRow, ConfigurationError

__all__ = [
    "FIELDS",
    "ModelSource",
    "configured_source",
    "native_source",
    "read_alias",
    "source_for_caller",
    "write_alias",
]

# Wider than what is stored, so that a value out of range is refused further on with its row's id.
_TYPES = {
    "id": pa.int64(),
    "project_id": pa.int64(),
    "project_slug": pa.string(),
    "version_id": pa.int64(),
    "version_slug": pa.string(),
    "path": pa.string(),
    "full_path": pa.string(),
    "view_count": pa.int64(),
    "date": pa.date32(),
    "status": pa.int64(),
}


def configured_source(
    day: datetime.date | None = None, *, write: bool = False, alias: str | None = None
) -> Callable[[datetime.date], Any] | _native.PostgresSource:
    """The source that the settings describe: natively from PostgreSQL, else (another database, lookups that only
    the ORM can follow, or a transaction of the caller that others cannot see into) through the ORM.

    ``day`` is the one that will be asked for; without it a transaction of the caller is an error, since the ORM has
    to read in the caller's thread, now. ``alias`` is the database, where settings and routers were asked already:
    a router may answer differently the next time.
    """
    from django.db import connections

    mapping = configured()
    if alias is None:
        alias = write_alias(mapping) if write else read_alias(mapping)
    connection = connections[alias]
    if connection.vendor == "postgresql" and (isinstance(mapping.native_tables(), str) or _is_private(connection)):
        seen_by(alias, [mapping.model._meta.db_table])
        return source_for_caller(ModelSource(mapping, using=alias), day)
    native = _native_source(mapping, alias, day, write)
    return source_for_caller(ModelSource(mapping, using=alias), day) if native is None else native


def native_source() -> _native.PostgresSource | None:
    """The database that page views are read from, where PostgreSQL is read natively; also for a caller in a
    transaction, who wants to know which one it is."""
    mapping = configured()
    return _native_source(mapping, read_alias(mapping), None, write=False)


def _native_source(
    mapping: PageViewMapping, alias: str, day: datetime.date | None, write: bool
) -> _native.PostgresSource | None:
    from django.db import connections

    tables = mapping.native_tables()
    if connections[alias].vendor != "postgresql" or isinstance(tables, str):
        return None
    seen = seen_by(alias, [tables.table, tables.projects_table, tables.versions_table])
    if seen.temporary:
        raise ConfigurationError(
            f"the connection {alias!r} sees a temporary table by the name {seen.temporary[0]}, which no other "
            "connection can see; drop it, or give it another name"
        )
    primary = write_alias(mapping)
    grace = datetime.timedelta(minutes=settings.GRACE_MINUTES)
    if day is not None:
        utc_end = datetime.datetime.combine(day, datetime.time.min, datetime.UTC) + datetime.timedelta(days=1)
        grace += days.end_of(day) - utc_end
    return _native.PostgresSource(
        connection_string(alias),
        schema=seen.schemas[0],
        table=tables.table,
        projects_schema=seen.schemas[1],
        projects_table=tables.projects_table,
        versions_schema=seen.schemas[2],
        versions_table=tables.versions_table,
        columns=tables.columns,
        role=seen.role,
        relation=seen.relation,
        user=seen.user,
        database_id=settings.DATABASE_ID,
        primary=None if write or primary == alias else connection_string(primary),
        standby_grace=grace.total_seconds(),
    )


def source_for_caller(source: ModelSource, day: datetime.date | None) -> Callable[[datetime.date], Any]:
    """The source itself, or the day's rows read now when only the caller's connection can see them.

    An export reads in a thread, and so through a connection, of its own. What a transaction of the caller (such as a
    ``TestCase``'s) has not committed, or a database in memory holds, would look like nothing there.
    """
    from django.db import connections

    if not _is_private(connections[source.alias]):
        return source
    if day is None:
        raise ConfigurationError(
            f"the database {source.alias!r} is in a transaction that nobody else can see into; end it (atomic) before"
        )
    rows = source(day).read_all()
    earlier = source.has_earlier_rows(day) if rows.num_rows == 0 else None

    def read(_day: datetime.date) -> Any:
        return rows

    read.has_earlier_rows = lambda _day: earlier  # type: ignore[attr-defined]
    return read


def _is_private(connection: Any) -> bool:
    """Whether another connection would see other rows than this one."""
    if connection.in_atomic_block:
        return True
    in_memory: Callable[[], bool] = getattr(connection, "is_in_memory_db", lambda: False)
    return connection.vendor == "sqlite" and in_memory()


class ModelSource:
    """A callable that takes a day and returns its rows as a ``pyarrow.RecordBatchReader``, in flat memory.

    ``source`` is a model, a manager, a queryset (which may filter, but not be sliced) or a
    :class:`~parquet_analytics.django.table.mapping.PageViewMapping`. ``fields`` says where a column comes from when it
    differs from :data:`FIELDS`; ``None`` says that the model has no such thing, which ``version_id``,
    ``version_slug``, ``full_path`` and ``status`` (200 then) allow. ``using`` is the database's alias.

    Each call opens its own iterator and sees what the database's default isolation shows, in the calling thread's
    connection.

    :raises ConfigurationError: for a field that the model lacks, and a ``date`` that is no date.
    """

    def __init__(
        self,
        source: Any,
        *,
        fields: Mapping[str, str | None] | None = None,
        using: str | None = None,
        chunk_size: int = 10_000,
    ) -> None:
        if isinstance(source, PageViewMapping):
            self.mapping = source
            self._queryset = _queryset(source.model)
        else:
            self._queryset = _queryset(source)
            self.mapping = PageViewMapping.of(self._queryset.model, fields)
        if using is not None:
            self._queryset = self._queryset.using(using)
        self._chunk_size = chunk_size
        self.failure: Exception | None = None
        """What the database raised when a day was last read, which an Arrow stream hands on as text alone."""

    @property
    def alias(self) -> str:
        """The database that is asked."""
        return str(self._queryset.db)

    def __repr__(self) -> str:
        return f"ModelSource({self.mapping.model._meta.label}, using={self.alias!r})"

    def __call__(self, day: datetime.date) -> pa.RecordBatchReader:
        schema = pa.schema([(column, _TYPES[column]) for column in self.mapping.lookups])
        return pa.RecordBatchReader.from_batches(schema, self._batches(day, schema))

    def has_earlier_rows(self, day: datetime.date) -> bool:
        """Whether there are rows of an earlier day, so that ``day`` without rows had no views. The exporter asks."""
        with self._connection():
            earlier = self.mapping.dated(self._queryset, days.FIRST, day - datetime.timedelta(days=1))
            return bool(earlier.order_by().exists())

    def _batches(self, day: datetime.date, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        from django.db import Error as AnyDatabaseError
        from django.db import connections

        chosen = self._queryset.order_by().filter(**self.mapping.of_days(day, day))
        self.failure = None
        try:
            # What closes a cursor fails as the driver says it.
            with self._connection(), connections[self.alias].wrap_database_errors:
                # First, since what follows may be asked for by other threads, which have connections of their own.
                self._refuse_orphans(chosen, day)
                rows = chosen.values_list(*self.mapping.lookups.values()).iterator(self._chunk_size)
                while chunk := list(islice(rows, self._chunk_size)):
                    columns = dict(zip(schema.names, zip(*chunk, strict=True), strict=True))
                    if self.mapping.timestamps:
                        columns["date"] = (day,) * len(chunk)
                    yield pa.record_batch([_array(name, columns[name], chunk) for name in schema.names], schema=schema)
        except AnyDatabaseError as error:
            self.failure = error
            raise

    @contextmanager
    def _connection(self) -> Iterator[None]:
        from django.db import connections

        connection = connections[self.alias]
        opened_here = connection.connection is None
        thread = threading.get_ident()
        try:
            yield
        finally:
            # Connections belong to threads; that of an export's thread would be left open.
            if opened_here and threading.get_ident() == thread:
                connection.close()

    def _refuse_orphans(self, chosen: Any, day: datetime.date) -> None:
        """Joining leaves out rows that refer to nothing, which a database without the constraint may hold."""
        from django.db.models import Exists, OuterRef

        for column, lookup in self.mapping.lookups.items():
            relation = self.mapping.relation(column)
            if relation is None or relation.null:
                continue
            there = all_rows(relation.related_model, self.alias)
            there = there.filter(**{relation.target_field.attname: OuterRef(relation.attname)})
            orphan = chosen.filter(~Exists(there)).values_list(self.mapping.lookups["id"], relation.attname).first()
            if orphan is not None:
                raise BadRow(
                    f"{day}: the row with id {orphan[0]} cannot be exported, column {column}: its {relation.name} "
                    f"{orphan[1]!r:.80} does not exist, so there is no {lookup}",
                    row_id=orphan[0] if isinstance(orphan[0], int) else None,
                    column=column,
                )


def _array(column: str, values: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> pa.Array:
    try:
        return pa.array(values, type=_TYPES[column])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for value, row in zip(values, rows, strict=True):
            try:
                pa.array([value], type=_TYPES[column])
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                # The id is the first lookup.
                raise BadRow(
                    f"the row with id {row[0]} cannot be exported, column {column}: {value!r:.80} ({error})",
                    row_id=row[0] if isinstance(row[0], int) else None,
                    column=column,
                ) from None
        raise


def _queryset(source: Any) -> Any:
    from django.db.models import Manager, QuerySet
    from django.db.models.base import ModelBase

    if isinstance(source, ModelBase):
        if source._meta.abstract or source._meta.swapped:
            raise ConfigurationError(f"{source._meta.label} has no table of its own")
        return all_rows(source, None)
    if isinstance(source, Manager):
        return source.all()
    if not isinstance(source, QuerySet):
        raise ConfigurationError(f"a {type(source).__name__} is no source; pass a Django model, manager or queryset")
    if source.query.is_sliced or source.query.combinator:
        raise ConfigurationError(
            f"this queryset of {source.model._meta.label} is sliced or combined, and so cannot be narrowed to a day; "
            "pass it before slicing"
        )
    return source.all()

"""A Django model or queryset, on any database Django knows, as a source of page views.

Rows are read with the ORM in chunks. PostgreSQL has a faster way, :class:`parquet_analytics.PostgresSource`.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa

from parquet_analytics.exceptions import BadRow, ConfigurationError

__all__ = ["FIELDS", "ModelSource", "model_source"]

FIELDS: Mapping[str, str] = {
    "id": "pk",
    "project_id": "project_id",
    "project_slug": "project__slug",
    "version_id": "version_id",
    "version_slug": "version__slug",
    "path": "path",
    "full_path": "full_path",
    "view_count": "view_count",
    "date": "date",
    "status": "status",
}
"""Where each column comes from in the model of Read the Docs, as lookups from the page-view model."""

OPTIONAL = frozenset({"version_id", "version_slug", "full_path", "status"})

DEFAULT_MODEL = "analytics.PageView"

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


def model_source(source: Any = None, *, fields: Mapping[str, str | None] | None = None) -> ModelSource:
    """The source behind a model, manager or queryset, or behind the model that Django's settings name.

    Those are ``PARQUET_ANALYTICS["MODEL"]`` (default ``"analytics.PageView"``) and ``PARQUET_ANALYTICS["FIELDS"]``;
    a ``READ_DATABASE`` there is the database that is read.
    """
    from django.apps import apps
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    if source is not None:
        return ModelSource(source, fields=fields)
    try:
        given = getattr(settings, "PARQUET_ANALYTICS", {})
        name = given.get("MODEL") or DEFAULT_MODEL
        model = apps.get_model(name)
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"no source was given, and Django has no settings here: {error}") from error
    except (LookupError, ValueError) as error:
        raise ConfigurationError(
            f"Django has no model {name!r}; name the page views' model in PARQUET_ANALYTICS['MODEL']: {error}"
        ) from error
    return ModelSource(model, fields=fields or given.get("FIELDS"), using=given.get("READ_DATABASE"))


class ModelSource:
    """A callable that takes a day and returns its rows as a ``pyarrow.RecordBatchReader``, in flat memory.

    ``source`` is a model, a manager or a queryset (which may filter, but not be sliced). ``fields`` says where a
    column comes from when it differs from :data:`FIELDS`; ``None`` says that the model has no such thing, which
    ``version_id``, ``version_slug``, ``full_path`` and ``status`` allow. ``using`` is the database's alias.

    Each call opens its own iterator and sees what the database's default isolation shows, also where the caller is in a
    transaction: an export reads in a thread, and so through a connection, of its own.

    :raises ConfigurationError: for a field that the model lacks, and a ``date`` that is no ``DateField``.
    """

    def __init__(
        self,
        source: Any,
        *,
        fields: Mapping[str, str | None] | None = None,
        using: str | None = None,
        chunk_size: int = 10_000,
    ) -> None:
        self._queryset = _queryset(source)
        if using is not None:
            self._queryset = self._queryset.using(using)
        self._model = self._queryset.model
        self._lookups = _lookups(self._model, fields or {})
        self._chunk_size = chunk_size

    def __repr__(self) -> str:
        return f"ModelSource({self._model._meta.label}, using={self._queryset.db!r})"

    def __call__(self, day: datetime.date) -> pa.RecordBatchReader:
        schema = pa.schema([(column, _TYPES[column]) for column in self._lookups])
        return pa.RecordBatchReader.from_batches(schema, self._batches(day, schema))

    def _batches(self, day: datetime.date, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        from django.db import connections

        connection = connections[self._queryset.db]
        opened_here = connection.connection is None
        thread = threading.get_ident()
        chosen = self._queryset.order_by().filter(**{self._lookups["date"]: day})
        try:
            rows = chosen.values_list(*self._lookups.values()).iterator(self._chunk_size)
            while chunk := list(islice(rows, self._chunk_size)):
                columns = zip(*chunk, strict=True)
                arrays = [_array(name, values, chunk) for name, values in zip(schema.names, columns, strict=True)]
                yield pa.record_batch(arrays, schema=schema)
        finally:
            # Connections belong to threads; that of an export's thread would be left open.
            if opened_here and threading.get_ident() == thread:
                connection.close()


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
        # The plain manager: a site's own default one may hide rows.
        return source._base_manager.all()
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


def _lookups(model: Any, given: Mapping[str, str | None]) -> dict[str, str]:
    """Column to lookup, in the columns' order, each looked up in the model."""
    from django.db import models

    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        raise ConfigurationError(f"fields names {', '.join(unknown)}; the columns are {', '.join(FIELDS)}")
    lookups = {}
    for column, default in FIELDS.items():
        lookup = given.get(column, default)
        if lookup is None:
            if column not in OPTIONAL:
                raise ConfigurationError(f"fields[{column!r}] is None, but page views have to have it")
            continue
        field = _field(model, column, lookup)
        if column == "date" and (not isinstance(field, models.DateField) or isinstance(field, models.DateTimeField)):
            raise ConfigurationError(
                f"{model._meta.label}.{lookup} is a {type(field).__name__}; date has to be a DateField with the UTC day"
            )
        lookups[column] = lookup
    return lookups


def _field(model: Any, column: str, lookup: str) -> Any:
    from django.core.exceptions import FieldDoesNotExist

    current, field = model, None
    for part in lookup.split("__"):
        if current is None:
            raise ConfigurationError(f"fields[{column!r}] is {lookup!r}, which follows {part!r} from no relation")
        try:
            field = current._meta.pk if part == "pk" else _by_name_or_column(current, part)
        except FieldDoesNotExist:
            raise ConfigurationError(
                f"{current._meta.label} has no field {part!r}, from where {column} should come; name another in "
                f"fields[{column!r}]" + (", or None for a model without it" if column in OPTIONAL else "")
            ) from None
        current = getattr(field, "related_model", None)
    return field


def _by_name_or_column(model: Any, name: str) -> Any:
    """``project_id`` is no field's name, but the attribute of the field ``project``."""
    from django.core.exceptions import FieldDoesNotExist

    for field in model._meta.concrete_fields:
        if name in (field.name, field.attname):
            return field
    raise FieldDoesNotExist(name)

"""What else goes when page views are deleted, as far as Django alone knows it: relations that no constraint looks
after, and the columns that the settings give up. What the database does by itself, the deletion finds out there."""

from __future__ import annotations

import datetime
from typing import Any

from django.db import connections, router

from parquet_analytics.django.conf import settings
from parquet_analytics.django.table.mapping import PageViewMapping
from parquet_analytics.exceptions import DeletionRefused

__all__ = ["dangling", "may_be_lost", "refuse_dangling", "unknown_columns"]


def may_be_lost(mapping: PageViewMapping) -> list[str]:
    """The columns in DELETE_COLUMNS, which may name fields too."""
    columns = {name: column for column, field in mapping.unheld().items() for name in (field.name, field.attname)}
    return sorted({columns.get(name, name) for name in settings.DELETE_COLUMNS})


def unknown_columns(mapping: PageViewMapping) -> list[str]:
    """Those in DELETE_COLUMNS that are no columns of the model which files lack."""
    return [name for name in may_be_lost(mapping) if name not in mapping.unheld()]


def dangling(mapping: PageViewMapping, alias: str) -> list[str]:
    """Relations to the page views that no constraint in the database looks after, in words: their rows would refer
    to nothing. Where there is one, it holds rows back, or the database itself says what it does."""
    relations = {relation.field: relation.related_model for relation in _relations(mapping.model)}
    enforced, tables = _enforced(mapping, alias)
    found = [
        f"{model._meta.label}.{field.name} ({_name(field.remote_field.on_delete)}, without a constraint)"
        for field, model in relations.items()
        # A table that is not there has no rows, and one in another database no constraint.
        if (model._meta.db_table in tables or router.db_for_write(model) != alias)
        and (model._meta.db_table, field.column) not in enforced
    ]
    generic = [field for field in mapping.model._meta.private_fields if hasattr(field, "bulk_related_objects")]
    found += [f"{field.related_model._meta.label} (generic, by {field.name})" for field in generic]
    return sorted(found)


def refuse_dangling(mapping: PageViewMapping, alias: str, day: datetime.date) -> None:
    """:class:`DeletionRefused` for relations that would dangle, unless DELETE_CASCADES."""
    if settings.DELETE_CASCADES:
        return
    if found := dangling(mapping, alias):
        raise DeletionRefused(
            f"{day}: rows that refer to page views would refer to nothing: {', '.join(found)}; if that is wanted, set "
            "DELETE_CASCADES",
            day=day,
        )


def _name(on_delete: Any) -> str:
    return str(getattr(on_delete, "__name__", "SET"))


def _relations(model: Any) -> list[Any]:
    """Of all relations to the model, also hidden ones, those with a column."""
    relations = model._meta.get_fields(include_hidden=True)
    return [
        relation
        for relation in relations
        if relation.auto_created
        and not relation.concrete
        and getattr(relation, "on_delete", None) is not None
        and getattr(relation.field, "column", None) is not None
    ]


def _enforced(mapping: PageViewMapping, alias: str) -> tuple[set[tuple[str, str]], set[str]]:
    """Tables and columns that refer to the page views' table by a foreign key of the database, and all tables."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return set(), set()
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor, include_views=True))
        cursor.execute(
            "SELECT c.relname, a.attname FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid"
            " JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = ANY(f.conkey)"
            " WHERE f.contype = 'f' AND f.confrelid = to_regclass(%s)",
            [connection.ops.quote_name(mapping.model._meta.db_table)],
        )
        return {(str(table), str(column)) for table, column in cursor.fetchall()}, tables

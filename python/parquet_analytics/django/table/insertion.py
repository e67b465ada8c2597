"""Puts rows of a file into the page views' table exactly as they are: no manager, signal, default or ``pre_save`` of
the site has a say in them, and what the table has afterwards is compared with what was to be inserted."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import connections, models
from django.db.models.query import QuerySet
from django.db.models.sql import InsertQuery

from parquet_analytics.django.table.mapping import PageViewMapping
from parquet_analytics.exceptions import InvalidInput

__all__ = ["Table", "all_rows", "chunks"]

_CHUNK = 5_000


def all_rows(model: Any, alias: str) -> Any:
    """All rows of a model's table; managers of the site may hide some."""
    return QuerySet(model, using=alias)


def chunks(values: list[Any], size: int = _CHUNK) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


class _Columns(NamedTuple):
    """The columns that the table has in the database."""

    names: list[str]
    generated: set[str]
    """Made by the database from others."""
    numbered: set[str]
    """``GENERATED ALWAYS AS IDENTITY``."""
    needed: set[str]
    """Not NULL, and the database has no value of its own for them."""


class Table:
    """The page views' own table in a database, and those of its columns that files hold."""

    def __init__(self, mapping: PageViewMapping, alias: str) -> None:
        self.mapping, self.alias = mapping, alias
        self.connection = connections[alias]
        self.model = mapping.model
        self.name = self.connection.ops.quote_name(self.model._meta.db_table)
        self._columns = self._described()
        self._held = {
            column: field
            for column in mapping.lookups
            if not column.endswith("_slug")
            and "__" not in mapping.lookups[column]
            and (field := mapping.field(column)).model._meta.db_table == self.model._meta.db_table
        }

    @property
    def lost(self) -> list[str]:
        """Columns that no file holds, which come back as defaults."""
        held = {field.column for field in self._held.values()}
        return [name for name in self._columns.names if name not in held | self._columns.generated]

    @property
    def unfilled(self) -> list[str]:
        """Those for which there is no value at all, although there has to be one: no row can come back."""
        blank = self.model()
        filled = {field.column for field in self._others() if field.pre_save(blank, add=True) is not None}
        return [name for name in self.lost if name in self._columns.needed - filled]

    def take_time(self) -> None:
        """Some databases end a transaction in which nothing is asked for a while, as when the file is written."""
        if self.connection.vendor == "postgresql":
            with self.connection.cursor() as cursor:
                cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")

    def of_day(self, day: datetime.date) -> Any:
        return all_rows(self.model, self.alias).filter(**self.mapping.of_days(day, day))

    def insert(self, rows: list[dict[str, Any]], alive: Callable[[], object]) -> None:
        """Inserts rows of files; columns that no file holds get what a new row would."""
        held = {field: column for column, field in self._held.items() if field.column not in self._columns.generated}
        others = self._others()
        fields = [*held, *others]
        for chunk in chunks(rows):
            made = []
            for row in chunk:
                values = {field.attname: row[column] for field, column in held.items()}
                if others:
                    blank = self.model()
                    values |= {field.attname: field.pre_save(blank, add=True) for field in others}
                made.append(SimpleNamespace(**values))
            size = max(1, self.connection.ops.bulk_batch_size(fields, made))
            for some in chunks(made, size):
                self._execute(fields, some)
            alive()

    def _others(self) -> list[Any]:
        """Fields that no file holds and for which the database itself has no value."""
        return [
            field
            for field in self.model._meta.local_concrete_fields
            if field not in self._held.values()
            and field.column in self._columns.names
            and field.column not in self._columns.generated
            and not isinstance(field, models.AutoField)
            and not field.has_db_default()
        ]

    def _execute(self, fields: list[Any], rows: list[Any]) -> None:
        query = InsertQuery(self.model)
        query.insert_values(fields, rows, raw=True)
        with self.connection.cursor() as cursor:
            for sql, parameters in query.get_compiler(using=self.alias).as_sql():
                if self._columns.numbered & {field.column for field in fields}:
                    names = ", ".join(self.connection.ops.quote_name(field.column) for field in fields)
                    sql = sql.replace(f"({names})", f"({names}) OVERRIDING SYSTEM VALUE", 1)
                cursor.execute(sql, parameters)

    def compare(self, day: datetime.date, rows: list[dict[str, Any]], alive: Callable[[], object]) -> None:
        """The table has these rows of the day and no others, each as it was to be inserted.

        :raises InvalidInput: that names the difference.
        """
        columns = list(self._held)
        wanted = {row["id"]: tuple(row[column] for column in columns if column != "date") for row in rows}
        lookups = [self.mapping.lookups[column] for column in columns]
        number, views, differs = 0, 0, ""
        id, count = columns.index("id"), columns.index("view_count")
        # What closes a cursor fails as the driver says it.
        with self.connection.wrap_database_errors:
            for found in self.of_day(day).order_by().values_list(*lookups).iterator(_CHUNK):
                number += 1
                views += found[count] or 0
                before = wanted.pop(found[id], None)
                now = tuple(value for column, value in zip(columns, found, strict=True) if column != "date")
                if before != now:
                    differs = differs or _difference(
                        found[id], [name for name in columns if name != "date"], before, now
                    )
                if number % _CHUNK == 0:
                    alive()
        if wanted:
            differs = differs or f"the row with id {min(wanted)} is not there on this day"
        if differs:
            expected = sum(row["view_count"] for row in rows)
            raise InvalidInput(
                f"{day}: {len(rows)} rows with {expected} views were to come back, and the table would have "
                f"{number} rows with {views} views of this day: {differs}. Does a trigger, rule or generated column "
                "make something else of them, or did somebody write meanwhile? Nothing was restored",
                day=day,
            )

    def _described(self) -> _Columns:
        with self.connection.cursor() as cursor:
            if self.connection.vendor != "postgresql":
                found = self.connection.introspection.get_table_description(cursor, self.model._meta.db_table)
                fields = self.model._meta.local_concrete_fields
                generated = {field.column for field in fields if getattr(field, "generated", False)}
                return _Columns([column.name for column in found], generated, set(), set())
            cursor.execute(
                "SELECT attname, attgenerated <> '', attidentity = 'a',"
                " attnotnull AND NOT atthasdef AND attidentity = '' FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                [self.name],
            )
            described = cursor.fetchall()
        return _Columns(
            [str(name) for name, *_ in described],
            {str(name) for name, generated, *_ in described if generated},
            {str(name) for name, _, numbered, _ in described if numbered},
            {str(name) for name, *_, needed in described if needed},
        )

    def check_constraints(self) -> None:
        """Those that are deferred to the end of the transaction."""
        if self.connection.vendor == "postgresql":
            self.connection.check_constraints()

    def advance_sequence(self, rows: list[dict[str, Any]]) -> None:
        """Makes sure that no new row gets the id of a restored one. A sequence that is ahead stays where it is."""
        if self.connection.vendor != "postgresql" or not rows:
            return
        highest = max(row["id"] for row in rows)
        with self.connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT setval(sequence, %s)
                FROM (SELECT pg_get_serial_sequence(%s, %s)::regclass AS sequence) AS of_id
                WHERE sequence IS NOT NULL AND coalesce(pg_sequence_last_value(sequence), 0) < %s
                """,
                [highest, self.name, self.mapping.field("id").column, highest],
            )


def _difference(id: Any, columns: list[str], before: tuple[Any, ...] | None, now: tuple[Any, ...]) -> str:
    if before is None:
        return f"it has a row with id {id} that was not to be there"
    changed = (each for each in zip(columns, before, now, strict=True) if each[1] != each[2])
    column, wanted, found = next(changed)
    return f"{column} of the row with id {id} is {found!r:.80}, not {wanted!r:.80}"

"""Page views that are still in the table, as rows for the same questions that files answer. Which days are asked for
here is not decided here."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa
from django.db.models import DateField, Q, Sum
from django.db.models.functions import TruncDate

from parquet_analytics.coverage import spans
from parquet_analytics.django.mapping import PageViewMapping
from parquet_analytics.django.source import read_alias
from parquet_analytics.exceptions import BadRow
from parquet_analytics.querier import Question

__all__ = ["LiveRows"]

_DAY = datetime.timedelta(days=1)
_CHUNK = 10_000
_MOST = 2**31 - 1
_SUM = "parquet_analytics_sum"


class LiveRows:
    """The table's rows, through the ORM and the calling thread's connection to the database that is read from."""

    def __init__(self, mapping: PageViewMapping, schema: pa.Schema) -> None:
        self._mapping = mapping
        self._schema = schema

    @property
    def alias(self) -> str:
        return read_alias(self._mapping)

    def rows(self, question: Question, days: Iterable[datetime.date], hidden: Iterable[int] = ()) -> pa.Table:
        """What the table has for a question on these days, with all columns, without the ``hidden`` projects. Where
        views are going to be summed, the database has summed them already, and other columns mean nothing."""
        wanted = sorted(days)
        chosen = self._chosen(question, wanted, set(hidden))
        if chosen is None:
            return self._schema.empty_table()
        if question.summed_by is None:
            found = chosen.values_list(*self._mapping.lookups.values()).iterator(_CHUNK)
            tables = [self._schema.empty_table()]
            # Columns take a tenth of the memory that rows of Python objects do.
            while chunk := list(islice(found, _CHUNK)):
                tables.append(self._table(chunk))
            return pa.concat_tables(tables)
        return self._summed(chosen, question, wanted)

    def days_with_rows(self, days: Iterable[datetime.date]) -> set[datetime.date]:
        """Those of the days that have any row in the table, whosever. A look at the index on the date for each, or for
        each gap in the table."""
        date = self._mapping.lookups["date"]
        found = set()
        following = None
        for day in sorted(days):
            if following is None or following < day:
                rows = self._manager().order_by(date)
                if day > datetime.date.min:
                    rows = rows.filter(**self._mapping.later_than(day - _DAY))
                following = self._mapping.day_of(rows.values_list(date, flat=True).first())
                if following is None:
                    break
            if following == day:
                found.add(day)
        return found

    def _manager(self) -> Any:
        return self._mapping.model._base_manager.using(self.alias)

    def _concerned(self, question: Question, hidden: set[int]) -> list[int]:
        """Those of the hidden projects that a question is about: of years of deleted ones, one or none."""
        if question.project_id is not None:
            hidden = hidden & {question.project_id}
        elif question.slugs is not None and hidden:
            named = self._mapping.projects_named(question.slugs, self.alias)
            hidden = hidden if named is None else hidden & named
        return sorted(hidden)

    def _chosen(self, question: Question, days: list[datetime.date], hidden: set[int]) -> Any | None:
        lookups = self._mapping.lookups
        among = Q()
        for first, last in spans(days):
            among |= Q(**self._mapping.of_days(first, last))
        chosen = self._manager().filter(among).order_by()
        if concerned := self._concerned(question, hidden):
            chosen = chosen.exclude(**{f"{lookups['project_id']}__in": concerned})
        if question.slugs is not None:
            chosen = chosen.filter(**{f"{lookups['project_slug']}__in": question.slugs})
        if question.project_id is not None:
            chosen = chosen.filter(**{lookups["project_id"]: question.project_id})
        if question.status is not None:
            if "status" in lookups:
                chosen = chosen.filter(**{lookups["status"]: question.status})
            elif question.status != 200:
                return None
        return chosen if days else None

    def _summed(self, chosen: Any, question: Question, days: list[datetime.date]) -> pa.Table:
        by = [column for column in question.summed_by or () if column in self._mapping.lookups]
        groups: list[Any] = [self._group(column) for column in by]
        sums = chosen.values_list(*groups).annotate(**{_SUM: Sum(self._mapping.lookups["view_count"])})
        blank = {
            "id": 0,
            "project_id": question.project_id or 0,
            "project_slug": "",
            "version_id": None,
            "version_slug": None,
            "path": "",
            "full_path": None,
            "date": days[0],
            "status": 200 if question.status is None else question.status,
        }
        rows = []
        for *values, views in sums:
            row = blank | dict(zip(by, values, strict=True))
            # A sum may be more than one row can hold.
            while views > _MOST:
                rows.append(row | {"view_count": _MOST})
                views -= _MOST
            rows.append(row | {"view_count": views})
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _group(self, column: str) -> Any:
        lookup = self._mapping.lookups[column]
        if column == "date" and self._mapping.timestamps:
            return TruncDate(lookup, output_field=DateField(), tzinfo=datetime.UTC)
        return lookup

    def _table(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        names = list(self._mapping.lookups)
        columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
        arrays = []
        for field in self._schema:
            values: Any = columns.get(field.name)
            if values is None:
                values = [200 if field.name == "status" else None] * len(rows)
            elif field.name == "date":
                values = [self._mapping.day_of(value) for value in values]
            try:
                arrays.append(pa.array(values, type=field.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise BadRow(
                    f"a row of the table has a value that no file can hold, column {field.name}: {error}",
                    column=field.name,
                ) from None
        return pa.table(arrays, schema=self._schema)

"""Page views that are still in the table, as rows for the same questions that files answer. Which days are asked for
here is not decided here."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa
from django.db.models import Case, Count, DateField, F, Q, Sum, When
from django.db.models.functions import TruncDate

from parquet_analytics.coverage import spans
from parquet_analytics.django.table.databases import read_alias
from parquet_analytics.django.table.mapping import PageViewMapping
from parquet_analytics.querier import Question

__all__ = ["LiveRows"]

_CHUNK = 10_000
_MOST = 2**31 - 1
_SUM, _BAD = "parquet_analytics_sum", "parquet_analytics_bad"

_REMEMBERED = 1_000
_told: set[Any] = set()
"""Ids of rows that this process has warned of."""

_log = logging.getLogger("parquet_analytics.django")


class LiveRows:
    """The table's rows, through the ORM and the calling thread's connection to the database that is read from. As in
    files, texts are the same when their bytes are, whatever a collation says, and rows with a value that no file can
    hold do not count; a warning tells of those once."""

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
            bad = Case(When(self._bad(question), then=F(self._mapping.lookups["id"])))
            found = chosen.values_list(*self._mapping.lookups.values(), bad).iterator(_CHUNK)
            tables = [self._schema.empty_table()]
            # Columns take a tenth of the memory that rows of Python objects do.
            while chunk := list(islice(found, _CHUNK)):
                _warn_of(row[-1] for row in chunk)
                tables.append(self._table([row[:-1] for row in chunk if row[-1] is None]))
            return pa.concat_tables(tables)
        return self._summed(chosen, question, wanted)

    def days_with_rows(self, days: Iterable[datetime.date]) -> set[datetime.date]:
        """Those of the days that have any row in the table, whosever. A look at the index on the date for each, or for
        each gap in the table."""
        date = self._mapping.lookups["date"]
        found = set()
        following = None
        wanted = sorted(days)
        for day in wanted:
            if following is None or following < day:
                rows = self._mapping.dated(self._rows(), day, wanted[-1]).order_by(date)
                following = self._mapping.day_of(rows.values_list(date, flat=True).first())
                if following is None:
                    break
            if following == day:
                found.add(day)
        return found

    def _rows(self) -> Any:
        return self._mapping.rows(self.alias)

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
        chosen = self._rows().filter(among)
        if concerned := self._concerned(question, hidden):
            chosen = chosen.exclude(**{f"{lookups['project_id']}__in": concerned})
        if question.slugs is not None:
            # The first by an index, the second by bytes.
            chosen = chosen.filter(**{f"{lookups['project_slug']}__in": question.slugs})
            chosen = chosen.alias(parquet_analytics_slug=self._mapping.exact("project_slug", self.alias))
            chosen = chosen.filter(parquet_analytics_slug__in=question.slugs)
        if question.project_id is not None:
            chosen = chosen.filter(**{lookups["project_id"]: question.project_id})
        if question.versions is not None:
            these = self._of_versions(question.versions)
            if these is None:
                return None
            chosen = chosen.filter(these)
        if question.status is not None:
            if "status" in lookups:
                chosen = chosen.filter(**{lookups["status"]: question.status})
            elif question.status != 200:
                return None
        return chosen if days else None

    def _of_versions(self, versions: Iterable[int | None]) -> Q | None:
        """The condition for rows of these versions; ``None`` when there cannot be any."""
        wanted = set(versions)
        if "version_id" not in self._mapping.lookups:
            return Q() if None in wanted else None
        lookup = self._mapping.lookups["version_id"]
        among = Q(**{f"{lookup}__in": [number for number in wanted if number is not None]})
        return among | Q(**{f"{lookup}__isnull": True}) if None in wanted else among

    def _summed(self, chosen: Any, question: Question, days: list[datetime.date]) -> pa.Table:
        by = [column for column in question.summed_by or () if column in self._mapping.lookups]
        groups: list[Any] = [self._group(column) for column in by]
        bad = self._bad(question)
        count = F(self._mapping.lookups["view_count"])
        # No id, which an index that has all the rest lacks.
        sums = chosen.values_list(*groups).annotate(
            **{_SUM: Sum(Case(When(bad, then=None), default=count)), _BAD: Count(Case(When(bad, then=1)))}
        )
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
        has_bad = False
        for *values, views, bad_rows in sums:
            has_bad = has_bad or bad_rows > 0
            if views is None:
                continue
            row = blank | dict(zip(by, values, strict=True))
            # A sum may be more than one row can hold.
            while views > _MOST:
                rows.append(row | {"view_count": _MOST})
                views -= _MOST
            rows.append(row | {"view_count": views})
        if has_bad:
            _warn_of(chosen.filter(bad).values_list(self._mapping.lookups["id"], flat=True)[:10])
        return self._table([tuple(row[field.name] for field in self._schema) for row in rows], self._schema.names)

    def _bad(self, question: Question) -> Q:
        """Rows that no file can hold. A slug that is asked for is one that can be held; and sums that are not about
        versions are spared a look at their ids, for which an index may not be enough."""
        without = set() if question.slugs is None else {"project_slug"}
        if question.summed_by is not None and not {"version_id", "version_slug"} & set(question.summed_by):
            without |= {"version_id", "version_slug"}
        return self._mapping.bad(self.alias, without)

    def _group(self, column: str) -> Any:
        if column == "date" and self._mapping.timestamps:
            return TruncDate(self._mapping.lookups[column], output_field=DateField(), tzinfo=datetime.UTC)
        return self._mapping.exact(column, self.alias)

    def _table(self, rows: list[tuple[Any, ...]], names: list[str] | None = None) -> pa.Table:
        names = names or list(self._mapping.lookups)
        columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
        arrays = []
        for field in self._schema:
            values: Any = columns.get(field.name)
            if values is None:
                values = [200 if field.name == "status" else None] * len(rows)
            elif field.name == "date":
                values = [self._mapping.day_of(value) for value in values]
            if (array := _array(values, field.type)) is None:
                # What only Python sees, as of a field of the site's own.
                fits = [_array([value], field.type) is not None for value in values]
                _warn_of(row[names.index("id")] for row, fit in zip(rows, fits, strict=True) if not fit)
                return self._table([row for row, fit in zip(rows, fits, strict=True) if fit], names)
            arrays.append(array)
        return pa.table(arrays, schema=self._schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array | None:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _warn_of(ids: Iterable[Any]) -> None:
    for number in ids:
        if number is not None and number not in _told and len(_told) < _REMEMBERED:
            _told.add(number)
            _log.warning(
                "the row with id %s has a value that no file can hold, so it is not counted; an export of its day says "
                "which",
                number,
            )

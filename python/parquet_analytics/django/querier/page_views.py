"""The querier for a Django site: finished days that are verified come from files, the others from the table, and each
day from exactly one of the two.

A day may be exported and its rows deleted while a question is under way. So the table is asked first, and then it is
made sure that what was taken for live still is; if not, the question is begun again.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from django.db import Error as AnyDatabaseError
from django.db import InterfaceError, OperationalError, connections, router, transaction
from django.db.models import Q

from parquet_analytics._arguments import Date, span
from parquet_analytics.coverage import Coverage, spans
from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.django.erasure import hidden_projects
from parquet_analytics.django.models import Run
from parquet_analytics.django.querier.live import LiveRows
from parquet_analytics.django.runs.ledger import runs
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import StoreError
from parquet_analytics.querier import Extent, ParquetAnalyticsQuerier, Question, table_of, with_coverage

__all__ = ["Evaluate", "Ledger", "PageViewsQuerier", "Split"]

_ATTEMPTS = 5
# The extent of a question that reads nothing.
_NO_DAY: Extent = ("2000-01-01", "2000-01-01", [], None, [])
_DOWN = (OperationalError, InterfaceError)

_log = logging.getLogger("parquet_analytics.django")

Days = set[datetime.date]
Evaluate = Callable[["Split", "pa.Table | None"], tuple[Any, Any]]
"""Answers from a split and the table's rows; gives the answer, and the rows of each day's file."""


@dataclass
class Ledger:
    """What the ledger says of some days. ``asked`` is whether it could be asked at all."""

    verified: Days = field(default_factory=set)
    known: Days = field(default_factory=set)
    """Days with a run, whatever became of it."""
    deleted: Days = field(default_factory=set)
    """Days of which rows may have been deleted, so that the table may hold a part."""
    hidden: list[int] = field(default_factory=list)
    """Ids of projects that are being erased."""
    asked: bool = False


@dataclass
class Split:
    """Where each day of a question is answered from; days in neither set are missing."""

    archived: Days
    live: Days
    ledger: Ledger

    def missing(self, question: Question) -> Days:
        return set(days.days(question.since, question.until)) - self.archived - self.live


class PageViewsQuerier(ParquetAnalyticsQuerier):
    """:class:`~parquet_analytics.ParquetAnalyticsQuerier` with the settings' storage and prefix, which also answers
    days that are not in the store: from the model in the settings, in the database that is read from.

    A finished day is answered from its file when the ledger calls it verified (or knows nothing of it and there is a
    file), else from the table. ``coverage.live`` says which days came from the table; ``coverage.missing`` which are
    in neither. With the database or the store out of reach it answers what it can, logs a warning, and the days that
    it cannot answer are missing; with both it raises. ``explain`` is about files alone.
    """

    def __init__(
        self, *, timeout: float | None = 60.0, memory_limit: int = 1024**3, max_age: float | None = None
    ) -> None:
        super().__init__(timeout=timeout, memory_limit=memory_limit, max_age=max_age, cache_dir=settings.CACHE_DIR)
        # Asked of the native module, so that the schema stands in one place. Reads nothing.
        nothing = self._native.pageviews(("-", None), _NO_DAY, None, None)
        self._schema = pa.schema(nothing.schema())
        self._live = LiveRows(configured(), self._schema)
        self._location = "/".join(part for part in (self._native.url.rstrip("/"), self._native.prefix) if part)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._native.url!r}, prefix={self._native.prefix!r})"

    def _span(self, since: Date | None, until: Date | None) -> tuple[str, str]:
        """Until today by the days that the table counts on, which can be another zone's."""
        today = days.today()
        first = today - datetime.timedelta(days=30) if since is None else since
        return span(first, today if until is None else until)

    def _report(self, question: Question, evaluate: Callable[[Extent], Any]) -> pa.Table:
        def answer(split: Split, live: pa.Table | None) -> tuple[Any, Any]:
            found = evaluate((*question.days, _texts(split.archived), live, split.ledger.hidden))
            return found, found[2]

        found, split, files = self._decide(question, answer)
        return self._covered(self._answer(question, found), question, split, files)

    def _read(self, question: Question, columns: list[str] | None) -> pa.Table:
        schema, segments = self._columns(columns), self._segments(question, columns)

        def answer(split: Split, live: pa.Table | None) -> tuple[Any, Any]:
            tables, stats = [schema.empty_table()], None
            found, files = segments(split, live)
            for segment in found:
                if isinstance(segment, pa.Table):
                    tables.append(segment)
                    continue
                # Read in here, where a store that is down, or a file that has gone, is made up for.
                stream, told, seen = segment.read_all()
                files += seen or []
                tables.append(table_of(stream).cast(schema))
                stats = told if stats is None else {name: stats[name] + told[name] for name in told}
            return (pa.concat_tables(tables), stats), files

        (table, self._stats), split, files = self._decide(question, answer)
        return self._covered(table, question, split, files)

    def _stream(self, question: Question, columns: list[str] | None) -> pa.RecordBatchReader:
        segments = self._segments(question, columns)

        def answer(split: Split, live: pa.Table | None) -> tuple[Any, Any]:
            found, files = segments(split, live)
            # A store that is down is found out by the first rows of the first file, while it can be made up for.
            stream = next((segment for segment in found if not isinstance(segment, pa.Table)), None)
            return (found, stream, None if stream is None else stream.next_batch()), files

        (found, begun, first), split, files = self._decide(question, answer)
        schema = with_coverage(self._columns(columns), _coverage(question, split, files))

        def batches() -> Iterator[pa.RecordBatch]:
            for segment in found:
                if isinstance(segment, pa.Table):
                    yield from (batch.replace_schema_metadata(schema.metadata) for batch in segment.to_batches())
                    continue
                batch = first if segment is begun else segment.next_batch()
                while batch is not None:
                    yield pa.record_batch(batch).replace_schema_metadata(schema.metadata)
                    batch = segment.next_batch()

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _segments(self, question: Question, columns: list[str] | None) -> Evaluate:
        """Runs of days that come from one place, the newest first: streams of files' rows, and tables of live ones."""

        def answer(split: Split, live: pa.Table | None) -> tuple[Any, Any]:
            places = [(first, last, True) for first, last in spans(split.archived)]
            places += [(first, last, False) for first, last in spans(split.live)]
            segments: list[Any] = []
            files: list[Any] = []
            for first, last, archived in sorted(places, reverse=True):
                if archived:
                    extent = (first.isoformat(), last.isoformat(), None, None, split.ledger.hidden)
                    stream = self._native.pageviews(
                        question.project, extent, question.status, columns, question.versions
                    )
                    files += stream.coverage() or []
                    segments.append(stream)
                elif live is not None:
                    segments.append(_sorted(live, first, last).select(self._columns(columns).names))
            return segments, files

        return answer

    def _columns(self, columns: list[str] | None) -> pa.Schema:
        if columns is None:
            return self._schema
        # Names are checked by the native module, which knows what to say about an unknown one.
        self._native.pageviews(("-", None), _NO_DAY, None, columns)
        return pa.schema([self._schema.field(name) for name in columns])

    def _decide(self, question: Question, evaluate: Evaluate) -> tuple[Any, Split, Any]:
        """Asks the table, then the files, and begins again when a day has changed its place meanwhile."""
        gone: Days = set()
        # Of these the table has what is left.
        partial: Days = set()
        for _ in range(_ATTEMPTS):
            ledger = self._ledger(question)
            try:
                split = self._split(question, ledger, gone)
                split.live -= partial
                live, overtaken = self._ask_table(question, split, gone, partial)
                if overtaken:
                    continue
                found, files = evaluate(split, live)
                # The ledger knows of files that the store does not have, or did not have when it was last asked.
                lost = {day for day, rows in files or () if rows is None} - gone
                if lost and split.ledger.asked:
                    gone |= lost - self._present(lost, fresh=True)
                    continue
            except StoreError as error:
                if not error.retryable or not ledger.asked:
                    raise
                return self._without_store(question, ledger, evaluate, error)
            return found, split, files
        raise StoreError(
            f"{question.since} to {question.until}: days keep moving from the table to the store; ask again",
            retryable=True,
        )

    def _split(self, question: Question, ledger: Ledger, gone: Days) -> Split:
        """By the ledger, and for days that it has no run of by whether there is a file."""
        today = days.today()
        asked = set(days.days(question.since, question.until))
        finished = {day for day in asked if day < today}
        unknown = finished - ledger.known - gone
        archived = (ledger.verified & finished) | self._present(unknown, fresh=False)
        archived -= gone
        # Of a day that was deleted and whose file does not count (any more), the table has a part at most.
        return Split(archived, asked - archived - (finished & ledger.deleted), ledger)

    def _deleted(self, wanted: Days, *, fresh: bool) -> Days:
        """Those of the days of which rows have left the table, as the store knows."""
        return wanted & set(self._native.days_with_deleted_rows(fresh)) if wanted else set()

    def _present(self, wanted: Days, *, fresh: bool) -> Days:
        return set(self._native.present(_texts(wanted), fresh)) if wanted else set()

    def _ask_table(self, question: Question, split: Split, gone: Days, partial: Days) -> tuple[pa.Table | None, bool]:
        """The table's rows of the live days, and whether one of those days is not live any more. Days that the table
        knows nothing of are live no longer, but missing."""
        if not split.live:
            return None, False
        # Erased without a word to the ledger, or rows that came back with a restored database.
        hidden = {*split.ledger.hidden, *self._native.erased()}
        try:
            with self._savepoint(self._live.alias):
                live = self._live.rows(question, split.live, hidden)
                finished = {day for day in split.live if day < days.today()}
                held = self._live.days_with_rows(finished)
            if finished:
                # A row that was deleted before it was read here was in a file by then. That a day without rows has no
                # file either is believed as long as the library believes it: it is missing, not zero.
                now = self._ledger(question)
                unknown = finished - now.known - gone
                doubtful = unknown & held if now.asked else unknown
                moved = now.verified & finished
                moved |= self._present(doubtful, fresh=True) | self._present(unknown - doubtful, fresh=False)
                # The ledger may be another one by now than the one that knew of a deletion. Days that may be deleted
                # now are asked about anew.
                old = any(day < days.deletable_before() for day in finished & held)
                left = self._deleted(finished & held, fresh=old)
                partial |= left
                if moved - gone or finished & now.deleted or left:
                    return None, True
                split.live -= finished - held
        except _DOWN as error:
            _log.warning("the database cannot be asked for %s: %s", _shown(split.live), _line(error))
            self._close(self._live.alias)
            split.live.clear()
            return None, False
        return live, False

    def _without_store(
        self, question: Question, ledger: Ledger, evaluate: Evaluate, error: StoreError
    ) -> tuple[Any, Split, Any]:
        """From the table alone: days of which no rows were deleted, and of which it has some. Where the ledger knows of
        no day at all, a day that may have been deleted cannot be shown to be whole."""
        asked = set(days.days(question.since, question.until))
        purged = not ledger.known
        unsure = {day for day in asked if purged and day < days.deletable_before()}
        split = Split(set(), asked - ledger.deleted - unsure, ledger)
        try:
            with self._savepoint(self._live.alias):
                finished = {day for day in split.live if day < days.today()}
                split.live -= finished - self._live.days_with_rows(finished)
                live = self._live.rows(question, split.live, ledger.hidden) if split.live else None
        except _DOWN:
            raise error from None
        missing = split.missing(question)
        _log.warning("the store cannot be asked; from the table without %s: %s", _shown(missing), _line(error))
        found, files = evaluate(split, live)
        return found, split, files

    def _ledger(self, question: Question) -> Ledger:
        """What the ledger says; nothing when there is none, or its database is down."""
        alias = router.db_for_write(Run)
        found = Ledger(asked=True)
        wanted = runs().filter(day__gte=question.since, day__lte=question.until)
        # Rows that were deleted after an export to another place are in the table no more either.
        wanted = wanted.filter(
            Q(kind=Run.Kind.EXPORT, location=self._location) | Q(kind__in=[Run.Kind.DELETE, Run.Kind.RESTORE])
        )
        try:
            with self._savepoint(alias):
                found.hidden = hidden_projects()
                columns = ("kind", "day", "state", "left", "snapshot_at", "started_at")
                for kind, day, state, left, *taken in wanted.order_by("id").values_list(*columns):
                    if kind == Run.Kind.DELETE:
                        found.deleted.add(day)
                        continue
                    if kind == Run.Kind.RESTORE:
                        if state == Run.State.DONE and not left:
                            found.deleted.discard(day)
                        continue
                    found.known.add(day)
                    if state == Run.State.VERIFIED and days.is_complete(day, *taken):
                        found.verified.add(day)
                    elif state == Run.State.MISMATCH:
                        found.verified.discard(day)
        except AnyDatabaseError as error:
            if isinstance(error, _DOWN) and "no such table" not in str(error):
                _log.warning("the ledger cannot be asked, so files decide: %s", _line(error))
            self._close(alias)
            return Ledger()
        return found

    def _covered(self, table: pa.Table, question: Question, split: Split, files: Any) -> pa.Table:
        self._coverage = _coverage(question, split, files)
        return table.replace_schema_metadata(with_coverage(table.schema, self._coverage).metadata)

    @staticmethod
    def _savepoint(alias: str) -> contextlib.AbstractContextManager[Any]:
        """A question that fails spoils a transaction of the caller unless it has a savepoint of its own."""
        shared = connections[alias].in_atomic_block
        return transaction.atomic(using=alias) if shared else contextlib.nullcontext()

    @staticmethod
    def _close(alias: str) -> None:
        connection = connections[alias]
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _coverage(question: Question, split: Split, files: Iterable[tuple[datetime.date, int | None]] | None) -> Coverage:
    rows = dict(files or ())
    complete = {day for day in split.archived if rows.get(day)}
    empty = {day for day in split.archived if rows.get(day) == 0}
    missing = set(days.days(question.since, question.until)) - complete - empty - split.live
    return Coverage(
        question.since,
        question.until,
        complete=tuple(sorted(complete)),
        empty=tuple(sorted(empty)),
        missing=tuple(sorted(missing)),
        live=tuple(sorted(split.live)),
    )


def _sorted(live: pa.Table, first: datetime.date, last: datetime.date) -> pa.Table:
    """The rows of these days in the order of a file, the newest day first."""
    import pyarrow.compute as pc

    chosen = live.filter((pc.field("date") >= pa.scalar(first)) & (pc.field("date") <= pa.scalar(last)))
    # Rows without a version come first; sorting itself puts NULL last.
    keyed = chosen.append_column("has_version", pc.is_valid(chosen["version_slug"]))
    order = ("project_slug", "status", "path", "has_version", "version_slug", "id")
    return chosen.take(pc.sort_indices(keyed, [("date", "descending"), *((name, "ascending") for name in order)]))


def _texts(wanted: Iterable[datetime.date]) -> list[str]:
    return [day.isoformat() for day in sorted(wanted)]


def _shown(wanted: Iterable[datetime.date]) -> str:
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans(wanted)) or "no day"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

"""Questions that a dashboard or a notebook asks, answered from the files in the store."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from parquet_analytics import _native
from parquet_analytics._arguments import (
    Date,
    count,
    open_store,
    project,
    projects,
    settings_prefix,
    span,
    status_code,
    versions,
)
from parquet_analytics.coverage import METADATA, Coverage
from parquet_analytics.exceptions import InvalidInput

__all__ = ["ParquetAnalyticsQuerier", "Question", "table_of", "with_coverage"]

Extent = tuple[str, str, list[str] | None, pa.Table | None, list[int]]
"""First and last day, the days whose files are read (``None``: all), rows that come from elsewhere, and the ids of
projects that are not shown."""


@dataclass(frozen=True)
class Question:
    """What a report is about, checked."""

    since: datetime.date
    until: datetime.date
    slugs: tuple[str, ...] | None
    project_id: int | None
    status: int | None
    summed_by: tuple[str, ...] | None = None
    """The columns by which views are going to be summed; ``None`` when single rows are asked for."""
    versions: tuple[int | None, ...] | None = None
    """The ids of the versions whose rows count, ``None`` among them for rows outside of versions."""

    @property
    def days(self) -> tuple[str, str]:
        return self.since.isoformat(), self.until.isoformat()

    @property
    def project(self) -> tuple[str | None, int | None]:
        return (self.slugs[0] if self.slugs else None), self.project_id


class ParquetAnalyticsQuerier:
    """Answers questions about page views from the files in a store.

    ``storage``, ``storage_options`` and ``prefix`` are those of :class:`ParquetAnalyticsExporter`. Constructing does no
    I/O, and footers, connections and DuckDB belong to the process, so make one wherever you need one. An object may be
    shared by threads; only ``stats`` then tells about whichever question ended last.

    ``timeout`` (seconds) bounds the time of a question, ``memory_limit`` (bytes) its memory, ``threads``
    its threads (by default one for each core, 4 at most). Data is read of the versions
    that are stored now. ``max_age`` (seconds, 2 by default) is how long the store is believed to be as it was without
    asking, which takes no further round trip: days without a file, and those of which nothing has to be read. The
    answer to a report that is asked again is given again when nothing has changed: after a second that is asked.

    ``months=False`` leaves out what :meth:`ParquetAnalyticsExporter.compact` has derived, and reads the days' own files
    alone; answers are the same. In ``cache_dir``, a folder of this host that many processes may share and anybody may
    empty, up to ``cache_bytes`` are kept of what plans are made from (footers, indexes, lists; no page views, but
    slugs of projects), so that a new process asks like one that has asked before. It makes no difference to stores that
    are on disk themselves.

    Everywhere ``since`` (default: 30 days ago) and ``until`` (default: today) are UTC days and included, and a
    project is named by slug, by ``project_id`` or by both. Slugs are those of the day when a file was written: they can
    change, and pass to another owner, so that ``None`` and ``project_id`` find all of a project and nothing else.
    ``versions`` are ids of versions whose rows alone count, with ``None`` among them for pages outside of versions.
    Days without a file are simply absent: no error. Errors: :class:`InvalidInput`, :class:`StoreError`
    (:class:`PermissionDenied`, :class:`CorruptFile`), :class:`QueryError`.
    """

    def __init__(
        self,
        storage: Any = None,
        *,
        prefix: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
        memory_limit: int = 1024 * 1024 * 1024,
        threads: int | None = None,
        max_age: float | None = None,
        months: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        cache = None if cache_dir is None else (os.fspath(cache_dir), count(cache_bytes, "cache_bytes"))
        self._native = _native.Querier(
            open_store(storage, storage_options),
            settings_prefix(storage) if prefix is None else prefix,
            timeout=timeout,
            memory_limit=count(memory_limit, "memory_limit"),
            threads=threads,
            max_age=max_age,
            months=months,
            cache=cache,
        )
        self._stats: dict[str, int] | None = None
        self._coverage: Coverage | None = None

    def __repr__(self) -> str:
        return f"ParquetAnalyticsQuerier({self._native.url!r}, prefix={self._native.prefix!r})"

    @property
    def stats(self) -> dict[str, int] | None:
        """What the last question took: ``objects`` (days asked about), ``present``, ``absent``, ``requests``
        (``footer_requests``, ``data_requests``, ``erasure_requests`` for the list of erased projects,
        ``manifest_requests`` and ``index_requests`` for what is derived), ``days_derived`` (days that were answered by
        files of whole months), ``answers_remembered`` (1 when the report was asked before and nothing of what
        it was made of has changed), ``waves`` (round trips in a row), ``bytes`` received, ``row_groups``,
        ``row_groups_read``, ``rows_decoded`` and ``rows``. ``None`` before the first question."""
        return self._stats

    @property
    def coverage(self) -> Coverage | None:
        """Which of the last question's days have a file with rows, one that says that there were none, or none. Each
        answer has it as JSON in its schema's metadata too, under ``parquet_analytics.coverage``. ``None`` before the
        first question, and after SQL that reads no page views."""
        return self._coverage

    def get_s3_url(self, path: str) -> str:
        """The URL of an object below the store's location, as other tools take it: ``s3://bucket/location/key``,
        or a ``file://`` URL for a local store. ``path`` is a key such as
        :meth:`ParquetAnalyticsExporter.get_parquet_path` gives."""
        return self._native.url_of(path)

    def query_pageviews(
        self,
        project_slug: str | None,
        since: Date | None = None,
        until: Date | None = None,
        *,
        project_id: int | None = None,
        status: int | None = None,
        columns: Sequence[str] | None = None,
        versions: Iterable[int | None] | None = None,
    ) -> pa.Table:
        """The project's rows: newest day first, then by status, path, version_slug and id.

        Columns: id int64, project_id int32, project_slug string, version_id int32, version_slug string, path string,
        full_path string, view_count int32, date date32, status int16; or those named in ``columns``.
        """
        who, days = (project_slug, project_id), self._span(since, until)
        return self._read(_question(who, days, status, versions=versions), _names(columns))

    def iter_pageviews(
        self,
        project_slug: str | None,
        since: Date | None = None,
        until: Date | None = None,
        *,
        project_id: int | None = None,
        status: int | None = None,
        columns: Sequence[str] | None = None,
        versions: Iterable[int | None] | None = None,
    ) -> pa.RecordBatchReader:
        """:meth:`query_pageviews` as a stream, in memory that does not grow with the answer. Sets no ``stats``."""
        who, days = (project_slug, project_id), self._span(since, until)
        return self._stream(_question(who, days, status, versions=versions), _names(columns))

    def _read(self, question: Question, columns: list[str] | None) -> pa.Table:
        extent: Extent = (*question.days, None, None, [])
        native = self._native.pageviews(question.project, extent, question.status, columns, question.versions)
        return self._answer(question, native.read_all())

    def _stream(self, question: Question, columns: list[str] | None) -> pa.RecordBatchReader:
        extent: Extent = (*question.days, None, None, [])
        stream = self._native.pageviews(question.project, extent, question.status, columns, question.versions)
        covered = _coverage(question, stream.coverage())
        schema = with_coverage(pa.schema(stream.schema()), covered)

        def batches() -> Iterator[pa.RecordBatch]:
            while (batch := stream.next_batch()) is not None:
                yield pa.record_batch(batch).replace_schema_metadata(schema.metadata)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def top_pages(
        self,
        project: str | None,
        since: Date | None = None,
        until: Date | None = None,
        *,
        project_id: int | None = None,
        limit: int = 10,
        offset: int = 0,
        status: int | None = 200,
        per_version: bool = False,
        by: str = "path",
        versions: Iterable[int | None] | None = None,
    ) -> pa.Table:
        """Pages by views: columns path (string) and count (int64), the most viewed first, ties by path.

        ``status=None`` counts all statuses. ``per_version`` counts each version apart and adds the column
        version_slug (null for pages outside versions). ``by="full_path"`` counts by the path with language and version:
        columns full_path (null where there was none) and count.
        """
        page = count(limit, "limit"), count(offset, "offset")
        columns = _page_columns(by, per_version=per_version)
        question = _question((project, project_id), self._span(since, until), status, columns, versions)
        return self._report(
            question,
            lambda extent: self._native.top_pages(
                question.project, extent, page, question.status, _PAGES[columns], question.versions
            ),
        )

    def daily_totals(
        self,
        project: str | None,
        since: Date | None = None,
        until: Date | None = None,
        *,
        project_id: int | None = None,
        status: int | None = 200,
        fill: bool = False,
        versions: Iterable[int | None] | None = None,
    ) -> pa.Table:
        """Views by day: columns date (date32) and count (int64), the oldest day first.

        Days without views are left out, or zero with ``fill``. ``status=None`` counts all statuses.
        """
        question = _question((project, project_id), self._span(since, until), status, ("date",), versions)
        return self._report(
            question,
            lambda extent: self._native.daily_totals(
                question.project, extent, question.status, fill, question.versions
            ),
        )

    def get_top_pages_from_parquet(
        self,
        project_slug: str | None,
        since: Date | None = None,
        limit: int = 10,
        status: int | None = 200,
        *,
        project_id: int | None = None,
    ) -> list[dict[str, Any]]:
        """:meth:`top_pages` until today as a list of ``{"path": ..., "count": ...}``."""
        table = self.top_pages(project_slug, since, project_id=project_id, limit=limit, status=status)
        return table.to_pylist()

    def get_daily_totals_from_parquet(
        self,
        project_slug: str | None,
        since: Date | None = None,
        status: int | None = 200,
        *,
        project_id: int | None = None,
    ) -> dict[str, list[Any]]:
        """:meth:`daily_totals` until today for a chart: ``{"labels": ["01 Jul", ...], "int_data": [...]}``, only days
        with views; two empty lists for none."""
        table = self.daily_totals(project_slug, since, project_id=project_id, status=status)
        days: list[datetime.date] = table["date"].to_pylist()
        return {"labels": [_label(day) for day in days], "int_data": table["count"].to_pylist()}

    def sql(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        since: Date | None = None,
        until: Date | None = None,
        projects: Iterable[str] | None = None,
        project_id: int | None = None,
        versions: Iterable[int | None] | None = None,
    ) -> pa.Table:
        """One ``SELECT`` in DuckDB's SQL over the relation ``pageviews`` (the ten columns of
        :meth:`query_pageviews`).

        Only ``since``, ``until``, ``projects`` (slugs) and ``project_id`` decide which files and row groups are read;
        what the query itself filters is filtered afterwards, and so are ``versions``. ``params`` are values for ``?``
        and ``$1``, or a mapping for ``$name``: bool, int, float, str, bytes, date or None. Anything but one reading
        statement is :class:`QueryError`.
        """
        if not isinstance(query, str):
            raise InvalidInput(f"the query is {query!r:.80}; pass SQL as text")
        _, number = project(None, project_id, required=False)
        values = dict(params) if isinstance(params, Mapping) else list(params or ())
        slugs = _projects(projects)
        first, last = map(datetime.date.fromisoformat, self._span(since, until))
        chosen = _versions(versions)
        question = Question(first, last, None if slugs is None else tuple(slugs), number, None, versions=chosen)
        return self._report(
            question, lambda extent: self._native.sql(query, values, extent, slugs, number, versions=chosen)
        )

    def explain(
        self,
        project: str | None = None,
        since: Date | None = None,
        until: Date | None = None,
        *,
        project_id: int | None = None,
        status: int | None = None,
        columns: Sequence[str] = ("path", "view_count"),
    ) -> pa.Table:
        """What a question would read, one row a day, the newest first, without reading it (footers are read).

        Columns: date, key, state ("absent", or where the footer came from: "cached", "confirmed", "read"), size
        (bytes), rows, row_groups, row_groups_selected, rows_selected, requests and bytes (of data).
        """
        who, days = _project(project, project_id, required=False), self._span(since, until)
        return pa.Table.from_pylist(
            self._native.explain(who, days, status_code(status), list(columns)), schema=_EXPLAINED
        )

    def _span(self, since: Date | None, until: Date | None) -> tuple[str, str]:
        return span(since, until)

    def _report(self, question: Question, evaluate: Callable[[Extent], Any]) -> pa.Table:
        return self._answer(question, evaluate((*question.days, None, None, [])))

    def _answer(self, question: Question, answer: Any) -> pa.Table:
        stream, self._stats, files = answer
        self._coverage = _coverage(question, files)
        table = table_of(stream)
        return table.replace_schema_metadata(with_coverage(table.schema, self._coverage).metadata)


def table_of(stream: Any) -> pa.Table:
    """``pa.table(stream)`` looks first whether it is a data frame, for which it imports pandas."""
    return pa.RecordBatchReader.from_stream(stream).read_all()


def _question(
    who: tuple[str | None, int | None],
    days: tuple[str, str],
    status: int | None,
    summed_by: tuple[str, ...] | None = None,
    versions: Iterable[int | None] | None = None,
) -> Question:
    slug, number = project(*who)
    since, until = map(datetime.date.fromisoformat, days)
    slugs = None if slug is None else (slug,)
    return Question(since, until, slugs, number, status_code(status), summed_by, _versions(versions))


_PAGES = {("path",): "path", ("path", "version_slug"): "version", ("full_path",): "full_path"}
"""The native module's names for what the views of pages are summed by."""


def _page_columns(by: str, *, per_version: bool) -> tuple[str, ...]:
    columns = (by, "version_slug") if per_version else (by,)
    if by not in ("path", "full_path"):
        raise InvalidInput(f"by is {by!r:.80}; pass 'path' or 'full_path'")
    if columns not in _PAGES:
        raise InvalidInput("by='full_path' tells versions apart by itself; leave per_version out")
    return columns


def _names(columns: Sequence[str] | None) -> list[str] | None:
    if isinstance(columns, str):
        raise InvalidInput(f"columns is {columns!r:.80}; pass a list of names")
    return None if columns is None else list(columns)


def _coverage(question: Question, files: Iterable[tuple[datetime.date, int | None]] | None) -> Coverage | None:
    """From the rows of each day's file."""
    if files is None:
        return None
    known = sorted(files)
    return Coverage(
        question.since,
        question.until,
        complete=tuple(day for day, rows in known if rows),
        empty=tuple(day for day, rows in known if rows == 0),
        missing=tuple(day for day, rows in known if rows is None),
    )


def with_coverage(schema: pa.Schema, coverage: Coverage | None) -> pa.Schema:
    metadata = {name: value for name, value in (schema.metadata or {}).items() if name != METADATA}
    return schema.with_metadata(metadata if coverage is None else metadata | {METADATA: str(coverage)})


# The arguments of the same names hide these in the methods above.
_project, _projects, _versions = project, projects, versions

_EXPLAINED = pa.schema(
    [
        ("date", pa.date32()),
        ("key", pa.string()),
        ("state", pa.string()),
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("row_groups", pa.int64()),
        ("row_groups_selected", pa.int64()),
        ("rows_selected", pa.int64()),
        ("requests", pa.int64()),
        ("bytes", pa.int64()),
    ]
)

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _label(day: datetime.date) -> str:
    """``01 Jul``, whatever the locale."""
    return f"{day.day:02d} {_MONTHS[day.month - 1]}"

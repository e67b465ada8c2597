"""Sample traffic: believable page views of many documentation sites, the same for the same seed."""

from __future__ import annotations

import pyarrow as pa

from parquet_analytics import _native
from parquet_analytics._arguments import Date, count, day_text
from parquet_analytics.exceptions import InvalidInput

__all__ = ["SampleData"]


class SampleData:
    """Page views of ``projects`` documentation sites, about ``rows_per_day`` rows on an ordinary day.

    Views follow Zipf's law over projects and pages; there are versions, languages, 404s with and without a version, a
    weekly rhythm and a yearly ``growth`` (0.3 is 30 %). Without rhythm and growth every day has exactly
    ``rows_per_day`` rows. Rows are generated as they are read, in flat memory, and are equal for equal arguments.
    """

    def __init__(
        self,
        *,
        rows_per_day: int = 10_000,
        projects: int = 200,
        seed: int = 0,
        growth: float = 0.3,
        weekly_rhythm: bool = True,
    ) -> None:
        self._native = _native.Sample(
            count(rows_per_day, "rows_per_day"),
            count(projects, "projects"),
            count(seed, "seed"),
            growth,
            weekly_rhythm,
        )

    def rows(self, day: Date) -> int:
        """How many rows ``day`` has."""
        return self._native.rows(day_text(day, "day"))

    def day(self, day: Date) -> pa.RecordBatchReader:
        """The day's rows in the ten columns of a day's file, in no order. Pass the method itself as a source:
        ``ParquetAnalyticsExporter(storage, source=sample.day)``."""
        return pa.RecordBatchReader.from_stream(self._native.day(day_text(day, "day")))

    def projects(self) -> pa.Table:
        """The projects: id, slug, name, language and main_language_project_id."""
        return _table(self._native.projects())

    def versions(self) -> pa.Table:
        """The versions: id, project_id and slug."""
        return _table(self._native.versions())

    def organizations(self) -> pa.Table:
        """The organizations' members: organization and project by id and slug."""
        return _table(self._native.organizations())

    def special_projects(self) -> dict[str, str]:
        """Slugs of projects worth testing with: ``largest``, ``only_404`` (every view), ``no_versions`` and
        ``tiny`` (a row a day)."""
        return dict(zip(("largest", "only_404", "no_versions", "tiny"), self._native.special(), strict=True))

    def load_postgres(
        self, url: str, since: Date, until: Date, *, schema: str | None = None, create_tables: bool = True
    ) -> int:
        """Load all days from ``since`` to ``until`` into PostgreSQL with COPY, and say how many rows that were.

        The tables are those of Read the Docs (``analytics_pageview`` and what it refers to); with ``create_tables``
        they are made where they are missing, in ``schema`` or wherever the search path says.
        """
        first, last = day_text(since, "since"), day_text(until, "until")
        if first > last:
            raise InvalidInput(f"since ({first}) lies after until ({last})")
        return self._native.load_postgres(url, first, last, schema, create_tables)


def _table(batch: object) -> pa.Table:
    return pa.Table.from_batches([pa.record_batch(batch)])

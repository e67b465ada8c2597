"""Page views from PostgreSQL to one sorted Parquet file a day, and fast answers from the files.

>>> from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier
>>> exporter = ParquetAnalyticsExporter("s3://bucket/docs", source="postgresql://reader@db/docs")
>>> exporter.export_daily_pageviews("2026-07-01")  # doctest: +SKIP
>>> querier = ParquetAnalyticsQuerier("s3://bucket/docs")
>>> querier.top_pages("my-project")  # doctest: +SKIP
"""

from __future__ import annotations

from parquet_analytics import exceptions
from parquet_analytics._native import PostgresSource, __version__
from parquet_analytics.exceptions import ParquetAnalyticsError
from parquet_analytics.exporter import ParquetAnalyticsExporter
from parquet_analytics.querier import ParquetAnalyticsQuerier
from parquet_analytics.sample import SampleData

__all__ = [
    "ParquetAnalyticsError",
    "ParquetAnalyticsExporter",
    "ParquetAnalyticsQuerier",
    "PostgresSource",
    "SampleData",
    "__version__",
    "exceptions",
]

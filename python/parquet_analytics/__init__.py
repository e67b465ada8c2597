"""Page views from PostgreSQL to one sorted Parquet file a day, and fast answers from the files.

>>> from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier
>>> exporter = ParquetAnalyticsExporter("s3://bucket/docs", source="postgresql://reader@db/docs")
>>> exporter.export_daily_pageviews("2026-07-01")  # doctest: +SKIP
>>> querier = ParquetAnalyticsQuerier("s3://bucket/docs")
>>> querier.top_pages("my-project")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from parquet_analytics import exceptions
from parquet_analytics.exceptions import ParquetAnalyticsError

if TYPE_CHECKING:
    from parquet_analytics._native import PostgresSource, __version__
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

# Loaded when first asked for: a Django process that neither exports nor asks pays for neither pyarrow nor the native
# module, although the app in its INSTALLED_APPS lies below this package.
_HOME = {
    "ParquetAnalyticsExporter": "exporter",
    "ParquetAnalyticsQuerier": "querier",
    "PostgresSource": "_native",
    "SampleData": "sample",
    "__version__": "_native",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""One day exported or deleted, and which days are due. What the command and the tasks share."""

from parquet_analytics.django.runs.compact import compact
from parquet_analytics.django.runs.delete import delete_day
from parquet_analytics.django.runs.due import (
    Counted,
    Due,
    Odd,
    counted,
    due_days,
    first_day,
    odd_rows,
    page_views,
    table_days,
)
from parquet_analytics.django.runs.export import export_day, exporter

__all__ = [
    "Counted",
    "Due",
    "Odd",
    "compact",
    "counted",
    "delete_day",
    "due_days",
    "export_day",
    "exporter",
    "first_day",
    "odd_rows",
    "page_views",
    "table_days",
]

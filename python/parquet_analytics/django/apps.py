"""The app's name and what is registered when Django starts. Imports nothing that is slow."""

from __future__ import annotations

from django.apps import AppConfig


class ParquetAnalyticsConfig(AppConfig):
    name = "parquet_analytics.django"
    label = "parquet_analytics"
    verbose_name = "Page view archive"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from parquet_analytics.django import erasure
        from parquet_analytics.django.operations import checks

        checks.register()
        erasure.connect()

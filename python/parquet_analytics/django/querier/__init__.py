"""The questions of a Django site."""

from __future__ import annotations

from parquet_analytics.django.conf import settings
from parquet_analytics.django.querier.page_views import PageViewsQuerier

__all__ = ["PageViewsQuerier", "pageviews_querier"]


def pageviews_querier() -> PageViewsQuerier:
    """The querier that the settings ask for: with ``SHADOW`` one that answers from the table and compares."""
    if settings.SHADOW:
        # Starts no thread before one is asked for.
        from parquet_analytics.django.shadow import ShadowQuerier

        return ShadowQuerier()
    return PageViewsQuerier()

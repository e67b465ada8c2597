"""What an export would write: exact rows, about how many bytes, and the keys. Writes nothing, not even a run."""

from __future__ import annotations

import datetime
from typing import Any

from django.db.models import Sum

from parquet_analytics.django.conf import settings
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import exporter
from parquet_analytics.django.runs.ledger import latest_verified, runs
from parquet_analytics.django.table import organizations
from parquet_analytics.django.table.databases import read_alias
from parquet_analytics.django.table.mapping import configured

__all__ = ["Plan"]

_RECENT = 30


class Plan:
    def __init__(
        self, *, per_project: bool | None = None, per_organization: bool | None = None, allow_open_day: bool = False
    ) -> None:
        self._exporter = exporter()
        self._mapping = configured()
        self._per_project = settings.PER_PROJECT if per_project is None else per_project
        self._per_organization = settings.PER_ORGANIZATION if per_organization is None else per_organization
        self._allow_open_day = allow_open_day
        self._bytes_per_row = self._ratio()

    def of(self, day: datetime.date) -> dict[str, Any]:
        """``rows``, ``bytes`` (``None`` when nothing was exported before), ``keys``, ``url``, ``verified``."""
        rows = self._mapping.rows(read_alias(self._mapping))
        rows = rows.filter(**self._mapping.of_days(day, day))
        slugs: list[str] = []
        if self._per_project or self._per_organization:
            exact = self._mapping.exact("project_slug", read_alias(self._mapping))
            found = rows.values_list(exact, flat=True).distinct()
            slugs = sorted(slug for slug in found if slug)
        planned = self._exporter.export_daily_pageviews(day, dry_run=True, allow_open_day=self._allow_open_day)
        count = planned["total_records"]
        count = rows.count() if count is None else count
        path = self._exporter.get_parquet_path
        keys = [path(day)]
        if self._per_project:
            keys += [path(day, project=slug) for slug in slugs]
        if self._per_organization:
            present = set(slugs)
            members = organizations.members()
            keys += [path(day, organization=slug) for slug, projects in members.items() if present & set(projects)]
        return {
            "rows": count,
            "bytes": None if self._bytes_per_row is None else round(count * self._bytes_per_row),
            "keys": keys,
            "url": planned["url"],
            "verified": day in latest_verified(self._exporter.location, day, day),
        }

    def _ratio(self) -> float | None:
        """Bytes a row in the last files that were written."""
        recent = runs().filter(kind=Run.Kind.EXPORT, state=Run.State.VERIFIED, rows__gt=0, bytes__isnull=False)
        recent = recent.filter(location=self._exporter.location).order_by("-id")[:_RECENT]
        totals = runs().filter(pk__in=list(recent.values_list("pk", flat=True))).aggregate(Sum("rows"), Sum("bytes"))
        return totals["bytes__sum"] / totals["rows__sum"] if totals["rows__sum"] else None

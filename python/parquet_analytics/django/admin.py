"""The ledger in the admin, to look at: filters, and a page that says how the archive is."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import path

from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.exceptions import ParquetAnalyticsError

__all__ = ["RunAdmin"]


class _ReadOnly(admin.ModelAdmin):
    """What has happened is not edited."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's signature
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(Erasure)
class ErasureAdmin(_ReadOnly):
    list_display = ("project_id", "slug", "requested_at", "recorded_at", "finished_at", "withdrawn_at", "note", "error")
    search_fields = ("=project_id", "slug")


@admin.register(Run)
class RunAdmin(_ReadOnly):
    list_display = ("day", "kind", "state", "outcome", "rows", "views", "bytes", "deleted", "started_at", "seconds")
    list_filter = ("state", "kind", "day", "outcome", "database", "error_type")
    search_fields = ("=key", "=run_id", "=task_id", "=sha256", "error")
    search_help_text = "A key, run id, task id or SHA-256, or words of an error."
    date_hierarchy = "day"
    ordering = ("-id",)
    show_full_result_count = False
    list_per_page = 100
    fieldsets = (
        (None, {"fields": ("day", "kind", "state", "location", "key")}),
        ("When and where", {"fields": ("started_at", "finished_at", "snapshot_at", "worker", "task_id")}),
        (
            "The file",
            {
                "fields": (
                    "outcome",
                    "etag",
                    "sha256",
                    "run_id",
                    "greatest_id",
                    "rows",
                    "views",
                    "bytes",
                    "per_project",
                    "per_organization",
                )
            },
        ),
        (
            "The rows",
            {
                "fields": (
                    "source_rows",
                    "source_views",
                    "added",
                    "changed",
                    "kept",
                    "vanished",
                    "left",
                    "deleted",
                    "late",
                    "moved",
                )
            },
        ),
        ("The database", {"fields": ("database", "source", "standby", "position")}),
        ("What went wrong", {"fields": ("error_type", "error", "retryable")}),
    )
    change_list_template = "admin/parquet_analytics/run/change_list.html"

    @admin.display(description="seconds")
    def seconds(self, run: Run) -> str:
        if run.finished_at is None:
            return "-"
        return f"{(run.finished_at - run.started_at).total_seconds():.1f}"

    def get_urls(self) -> list[Any]:
        page = self.admin_site.admin_view(self.status_page)
        return [path("status/", page, name="parquet_analytics_run_status"), *super().get_urls()]

    def status_page(self, request: HttpRequest) -> TemplateResponse:
        """The last days and how far the archive is behind, from the ledger alone: no row is counted for a page."""
        from django.core.exceptions import PermissionDenied

        if not self.has_view_permission(request):
            raise PermissionDenied
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": "Page view archive",
            "opts": Run._meta,
        }
        try:
            from parquet_analytics.django.operations.status import status

            found = status(look_for_late=False)
            counted = {day.state: found.count(day.state) for day in found.days}
            context |= {"found": found, "days": list(reversed(found.days)), "counts": sorted(counted.items())}
        except ParquetAnalyticsError as error:
            context["trouble"] = str(error)
        return TemplateResponse(request, "admin/parquet_analytics/run/status.html", context)

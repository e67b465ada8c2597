import datetime
from collections import namedtuple

from django.db import models
from django.db.models import Sum
from django.utils import timezone

from readthedocs.builds.models import Version
from readthedocs.projects.models import Project


def _last_30_days_iter():
    thirty_days_ago = timezone.now().date() - timezone.timedelta(days=30)
    return (thirty_days_ago + timezone.timedelta(days=n) for n in range(31))


class PageView(models.Model):
    id = models.BigAutoField(primary_key=True)
    project = models.ForeignKey(Project, related_name="page_views", on_delete=models.CASCADE)
    version = models.ForeignKey(Version, related_name="page_views", on_delete=models.CASCADE, null=True)
    path = models.CharField(max_length=4096)
    full_path = models.CharField(max_length=4096, null=True, blank=True)  # noqa: DJ001
    view_count = models.PositiveIntegerField(default=0)
    date = models.DateField(default=datetime.date.today, db_index=True)
    status = models.PositiveIntegerField(default=200)

    class Meta:
        unique_together = ("project", "version", "path", "date", "status")
        indexes = [
            models.Index(
                fields=["project", "date", "status"],
                include=["path", "view_count"],
                name="analytics_pageview_issue_12686",
            ),
        ]

    def __str__(self):
        return f"{self.date} {self.path}"

    @classmethod
    def top_viewed_pages(cls, project, since=None, limit=10, status=200, per_version=False):
        if since is None:
            since = timezone.now().date() - timezone.timedelta(days=30)

        group_by = "full_path" if per_version else "path"
        queryset = (
            cls.objects.filter(project=project, date__gte=since, status=status)
            .values_list(group_by)
            .annotate(count=Sum("view_count"))
            .values_list(group_by, "count", named=True)
            .order_by("-count")[:limit]
        )

        page = namedtuple("PageViewResult", "path, url, count")
        result = []
        for row in queryset:
            path = (row.full_path if per_version else row.path) or ""
            url = f"https://docs.example{path}" if per_version else f"https://docs.example/en/latest{path}"
            result.append(page(path, url, row.count))
        return result

    @classmethod
    def page_views_by_date(cls, project_slug, since=None, status=200):
        if since is None:
            since = timezone.now().date() - timezone.timedelta(days=30)

        queryset = (
            cls.objects.filter(project__slug=project_slug, date__gte=since, status=status)
            .values("date")
            .annotate(total_views=Sum("view_count"))
            .order_by("date")
        )

        count_dict = dict(queryset.order_by("date").values_list("date", "total_views"))

        days = list(_last_30_days_iter())
        return {
            "labels": [timezone.datetime.strftime(date, "%d %b") for date in days],
            "int_data": [count_dict.get(date) or 0 for date in days],
        }

"""The table ``analytics_pageview``: one row per project, version, path, status and UTC day."""

from django.db import models


class PageView(models.Model):
    id = models.BigAutoField(primary_key=True)
    project = models.ForeignKey("projects.Project", on_delete=models.CASCADE, related_name="page_views")
    version = models.ForeignKey("builds.Version", null=True, on_delete=models.CASCADE, related_name="page_views")
    path = models.CharField(max_length=4096, help_text="Relative to the version, begins with a slash")
    full_path = models.CharField(max_length=4096, null=True, help_text="With language and version")  # noqa: DJ001
    view_count = models.PositiveIntegerField(default=0)
    date = models.DateField(db_index=True)
    status = models.PositiveIntegerField(default=200)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "version", "path", "date", "status"], name="analytics_pageview_unique"
            ),
            models.UniqueConstraint(
                fields=["project", "path", "date", "status"],
                condition=models.Q(version=None),
                name="analytics_pageview_constraint_unique_without_optional",
            ),
        ]
        indexes = [
            models.Index(
                fields=["project", "date", "status"],
                include=["path", "view_count"],
                name="analytics_pageview_issue_12686",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.date} {self.path}: {self.view_count}"

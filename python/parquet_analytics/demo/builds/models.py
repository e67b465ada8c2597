"""The table ``builds_version``, as far as page views need it."""

from django.db import models


class Version(models.Model):
    id = models.AutoField(primary_key=True)
    project = models.ForeignKey("projects.Project", on_delete=models.CASCADE, related_name="versions")
    slug = models.CharField(max_length=255)

    class Meta:
        unique_together = (("project", "slug"),)

    def __str__(self) -> str:
        return str(self.slug)

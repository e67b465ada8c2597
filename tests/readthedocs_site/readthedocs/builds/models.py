from django.db import models


class Version(models.Model):
    project = models.ForeignKey("projects.Project", related_name="versions", on_delete=models.CASCADE)
    slug = models.CharField(max_length=255)

    class Meta:
        unique_together = [("project", "slug")]

    def __str__(self):
        return self.slug

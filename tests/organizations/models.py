"""The tables of organizations and of their projects."""

from django.db import models
from parquet_analytics.demo.projects.models import Project


class Organization(models.Model):
    name = models.CharField(max_length=100)
    slug = models.SlugField(max_length=255, unique=True)
    projects = models.ManyToManyField(Project, related_name="organizations")

    class Meta:
        app_label = "organizations"

    def __str__(self) -> str:
        return str(self.slug)

import datetime

from django.db import models
from django.utils import timezone


class Project(models.Model):
    pub_date = models.DateTimeField(default=timezone.now)
    name = models.CharField(max_length=63)
    slug = models.SlugField(max_length=63, unique=True)
    language = models.CharField(max_length=20, default="en")
    main_language_project = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL)

    def __str__(self):
        return self.name

    def delete(self, *args, **kwargs):
        # As the site does it: without signals for page views.
        page_views = self.page_views.all()
        page_views._raw_delete(page_views.db)
        self.versions.all().delete()
        return super().delete(*args, **kwargs)


class Feature:
    """What a project may have: how many days back, or all."""

    def __init__(self, project):
        age = timezone.now() - project.pub_date
        self.unlimited, self.value = age > datetime.timedelta(days=365), 30

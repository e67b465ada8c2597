"""The table ``projects_project``, as far as page views need it."""

from django.db import models


class Project(models.Model):
    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=63)
    slug = models.SlugField(max_length=63, unique=True)
    language = models.CharField(max_length=20, default="en")
    main_language_project = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL)

    def __str__(self) -> str:
        return str(self.name)

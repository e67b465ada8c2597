from __future__ import annotations

from django.db import models


class Bookmark(models.Model):
    view = models.ForeignKey("analytics.PageView", on_delete=models.SET_NULL, null=True, db_constraint=False)

    class Meta:
        app_label = "bookmarks"

    def __str__(self) -> str:
        return str(self.pk)

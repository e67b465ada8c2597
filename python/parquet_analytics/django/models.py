"""The ledger: one row for each run of an export, deletion, restoration or erasure, and the lease that keeps two runs
from working on one day at once. What a row goes through is in ``docs/operations.md``."""

from __future__ import annotations

import datetime
import zoneinfo
from typing import Any

from django.conf import settings
from django.db import models

__all__ = ["Erasure", "MomentField", "Run"]


class MomentField(models.DateTimeField):
    """A moment, which is always an aware time in Python, also where Django is told to know of no time zones
    (``USE_TZ = False``). The database has what it has with ``USE_TZ = True``, so that the setting can be changed: the
    moment itself in PostgreSQL, else UTC without saying so."""

    def deconstruct(self) -> Any:
        name, _, arguments, named = super().deconstruct()
        return name, "django.db.models.DateTimeField", arguments, named

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        if self.auto_now_add and add:
            setattr(model_instance, self.attname, datetime.datetime.now(datetime.UTC))
        return getattr(model_instance, self.attname)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if not prepared:
            value = self.get_prep_value(value)
        zoned = isinstance(value, datetime.datetime) and value.tzinfo is not None
        if zoned and not settings.USE_TZ and not connection.features.supports_timezones:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return super().get_db_prep_value(value, connection, True)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:  # noqa: ARG002 - Django's signature
        if not isinstance(value, datetime.datetime):
            return value
        if value.tzinfo is None:
            # PostgreSQL has put it into the zone that Django told it.
            told = connection.features.supports_timezones
            value = value.replace(tzinfo=zoneinfo.ZoneInfo(settings.TIME_ZONE) if told else datetime.UTC)
        return value.astimezone(datetime.UTC)


class Run(models.Model):
    class Kind(models.TextChoices):
        EXPORT = "export", "export"
        DELETE = "delete", "deletion"
        RESTORE = "restore", "restoration"
        ERASE = "erase", "erasure"
        COMPACT = "compact", "compaction"

    class State(models.TextChoices):
        RUNNING = "running", "running"
        VERIFIED = "verified", "exported and verified"
        DELETED = "deleted", "rows deleted"
        DONE = "done", "done"
        FAILED = "failed", "failed"
        MISMATCH = "mismatch", "does not match"
        UNKNOWN = "unknown", "outcome unknown"
        ABANDONED = "abandoned", "abandoned"

    kind = models.CharField(max_length=10, choices=Kind.choices)
    day = models.DateField(help_text="The day of page views that was worked on; of a compaction the last finished.")
    location = models.TextField(help_text="The store and prefix, without credentials.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)

    # NULL when nobody holds it; unique, so that two runs of one day cannot both have it. No session locks: they mean
    # nothing behind a pooler.
    lease = models.CharField(max_length=80, null=True, unique=True, editable=False)  # noqa: DJ001
    lease_until: Any = MomentField(null=True, editable=False)

    started_at: Any = MomentField()
    finished_at: Any = MomentField(null=True)
    worker = models.CharField(max_length=200, help_text="Host and process.")
    task_id = models.CharField(max_length=200, blank=True, help_text="Of Celery, when a task ran it.")

    key = models.CharField(max_length=1024, blank=True, help_text="The day's object.")
    etag = models.CharField(max_length=200, blank=True, verbose_name="ETag")
    sha256 = models.CharField(max_length=64, blank=True, verbose_name="SHA-256")
    run_id = models.CharField(max_length=40, blank=True, help_text="As in the object's metadata.")
    outcome = models.CharField(max_length=20, blank=True, help_text="created, merged, replaced or unchanged.")
    # Known from the beginning, so that copies are looked for also where the run was killed.
    per_project = models.BooleanField(default=False, help_text="Whether copies for projects were to be written.")
    per_organization = models.BooleanField(default=False, help_text="Whether copies for organizations were.")
    snapshot_at: Any = MomentField(null=True, help_text="When the database was as it was exported.")
    greatest_id = models.BigIntegerField(null=True, help_text="In the file.")
    rows = models.BigIntegerField(null=True, help_text="In the file.")
    views = models.BigIntegerField(null=True, help_text="In the file.")
    bytes = models.BigIntegerField(null=True, help_text="Of the file.")
    source_rows = models.BigIntegerField(null=True, help_text="In the database, when it was exported.")
    source_views = models.BigIntegerField(null=True, help_text="In the database, when it was exported.")
    added = models.BigIntegerField(null=True, help_text="Rows that the file did not have before.")
    changed = models.BigIntegerField(null=True, help_text="Rows that changed, or stayed because they had changed.")
    kept = models.BigIntegerField(null=True, help_text="Rows that only the store has.")
    vanished = models.BigIntegerField(
        null=True,
        help_text="Of those, rows that the database lost although nobody had deleted them by way of the ledger.",
    )
    left = models.BigIntegerField(null=True, help_text="Rows with a value that no file can hold.")
    deleted = models.BigIntegerField(null=True, help_text="Rows.")
    late = models.BigIntegerField(null=True, help_text="Rows that stayed because the file does not have them.")
    moved = models.BigIntegerField(null=True, help_text="Rows of the file that live on another date.")

    database = models.CharField(max_length=100, blank=True, help_text="The alias that was read or deleted from.")
    source = models.CharField(max_length=500, blank=True, help_text="Server, database and table.")
    standby = models.BooleanField(null=True, help_text="Whether that was a standby.")
    position = models.TextField(blank=True, help_text="Of the snapshot, in the database's history.")

    error = models.TextField(blank=True)
    error_type = models.CharField(max_length=50, blank=True)
    retryable = models.BooleanField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["day", "kind", "state"], name="parquet_analytics_run_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.kind}: {self.state}"


class Erasure(models.Model):
    """A project that was deleted, and whose page views are to go from the archive. Written in the transaction that
    deletes the project, so that none is forgotten, whatever happens to the store and the workers afterwards."""

    project_id = models.BigIntegerField(unique=True)
    slug = models.CharField(max_length=255, blank=True)
    organizations = models.JSONField(
        default=list, help_text="Slugs of those that it was in, whose copies have its rows."
    )
    requested_at: Any = MomentField(auto_now_add=True)
    recorded_at: Any = MomentField(null=True, help_text="When every reader of the store was told.")
    finished_at: Any = MomentField(null=True, help_text="When its rows had gone from every file.")
    error = models.TextField(blank=True)
    # NULL in rows that were written before these were there, or by a process that does not know them yet.
    slugs = models.JSONField(null=True, help_text="Others under which its rows were found.")
    note = models.TextField(null=True, help_text="What there is to know about how it ended.")  # noqa: DJ001
    withdrawn_at: Any = MomentField(null=True, help_text="When it was taken back, so that it is shown again.")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"project {self.project_id}"

"""The ledger: one row for each run of an export, deletion, restoration or erasure, and the lease that keeps two runs
from working on one day at once. What a row goes through is in ``docs/operations.md``."""

from __future__ import annotations

from django.db import models

__all__ = ["Erasure", "Run"]


class Run(models.Model):
    class Kind(models.TextChoices):
        EXPORT = "export", "export"
        DELETE = "delete", "deletion"
        RESTORE = "restore", "restoration"
        ERASE = "erase", "erasure"

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
    day = models.DateField(help_text="The day of page views that was worked on.")
    location = models.TextField(help_text="The store and prefix, without credentials.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)

    # NULL when nobody holds it; unique, so that two runs of one day cannot both have it. No session locks: they mean
    # nothing behind a pooler.
    lease = models.CharField(max_length=80, null=True, unique=True, editable=False)  # noqa: DJ001
    lease_until = models.DateTimeField(null=True, editable=False)

    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
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
    rows = models.BigIntegerField(null=True, help_text="In the file.")
    views = models.BigIntegerField(null=True, help_text="In the file.")
    bytes = models.BigIntegerField(null=True, help_text="Of the file.")
    source_rows = models.BigIntegerField(null=True, help_text="In the database, when it was exported.")
    source_views = models.BigIntegerField(null=True, help_text="In the database, when it was exported.")
    added = models.BigIntegerField(null=True, help_text="Rows that the file did not have before.")
    changed = models.BigIntegerField(null=True, help_text="Rows that changed, or stayed because they had changed.")
    kept = models.BigIntegerField(null=True, help_text="Rows that only the store has.")
    left = models.BigIntegerField(null=True, help_text="Rows with a value that no file can hold.")
    deleted = models.BigIntegerField(null=True, help_text="Rows.")
    late = models.BigIntegerField(null=True, help_text="Rows that stayed because the file does not have them.")

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
    requested_at = models.DateTimeField(auto_now_add=True)
    recorded_at = models.DateTimeField(null=True, help_text="When every reader of the store was told.")
    finished_at = models.DateTimeField(null=True, help_text="When its rows had gone from every file.")
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"project {self.project_id}"

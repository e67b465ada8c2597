"""Looks at everything that an export and a deletion need, on the real servers, and says what to do about what is wrong.

Writes nothing but the probe object by which it finds out whether the store heeds conditions.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Callable, Iterator
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import connections, router

from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.django.models import Run
from parquet_analytics.django.operations.findings import Finding, erasure_findings
from parquet_analytics.django.table import effects
from parquet_analytics.django.table.databases import read_alias, write_alias
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import ParquetAnalyticsError, PermissionDenied, StoreError

__all__ = ["CHECKS", "Finding", "GUARDED", "examine"]

GUARDED = "parquet_analytics_guarded"
"""An option of a Celery task that lets page views go only by way of this package."""

_SKEW = datetime.timedelta(seconds=60)
_BEHIND = datetime.timedelta(hours=1)
_DELETES = re.compile(r"(delete|purge|remove|clean|prune|expire).*page_?(view|count)", re.IGNORECASE)


def examine() -> Iterator[Finding]:
    """All checks, in order. A check that cannot be made for a reason of its own fails."""
    for name, check in CHECKS.items():
        try:
            yield from check()
        except ParquetAnalyticsError as error:
            yield Finding(name, "failed", str(error), _hint(error))
        except AnyDatabaseError as error:
            about = " ".join(str(error).split())
            yield Finding(name, "failed", f"the database says: {about}", "Look at DATABASES and the server.")


def _hint(error: ParquetAnalyticsError) -> str:
    if isinstance(error, PermissionDenied):
        return "Give the credentials what the IAM policy in the documentation lists."
    if isinstance(error, StoreError) and error.retryable:
        return "Is the endpoint right, and can this machine reach it? If so, try it again."
    return "Try it again." if error.retryable else "The message says what to change."


def _settings() -> Iterator[Finding]:
    from parquet_analytics.django.operations.checks import check_settings

    found = [message for message in check_settings() if not message.is_silenced()]
    for message in found:
        state = "failed" if message.is_serious() else "warning"
        yield Finding("settings", state, f"{message.id}: {message.msg}", message.hint or "")
    if not found:
        yield Finding("settings", "ok", "PARQUET_ANALYTICS can be used")


def _ledger() -> Iterator[Finding]:
    from django.db.migrations.executor import MigrationExecutor

    alias = router.db_for_write(Run)
    executor = MigrationExecutor(connections[alias])
    targets = [node for node in executor.loader.graph.leaf_nodes() if node[0] == Run._meta.app_label]
    waiting = executor.migration_plan(targets)
    if waiting:
        names = ", ".join(migration.name for migration, _ in waiting)
        yield Finding("ledger", "failed", f"migrations are not applied: {names}", "Run manage.py migrate.")
    else:
        yield Finding("ledger", "ok", f"{Run.objects.using(alias).count()} runs in the database {alias!r}")


def _database() -> Iterator[Finding]:
    from parquet_analytics.django.runs import exporter

    mapping = configured()
    alias = read_alias(mapping)
    tables = mapping.native_tables()
    day = days.last_finished()
    rows = exporter().export_daily_pageviews(day, dry_run=True)["total_records"]
    if connections[alias].vendor != "postgresql":
        why = f"{connections[alias].vendor} is read through the ORM, which is several times slower"
    elif isinstance(tables, str):
        why = f"read through the ORM, which is several times slower, because {tables}"
    else:
        why = f"read natively, {rows:,} rows on {day}"
    yield Finding("database", "ok", f"{alias!r} ({mapping.model._meta.label}): {why}")


def _dates() -> Iterator[Finding]:
    from parquet_analytics.django.runs import odd_rows

    odd = odd_rows(configured())
    for each in odd:
        yield Finding(
            "dates",
            "warning",
            f"the table has rows that are of no day: {each}",
            "They are neither exported nor deleted. Correct their dates, or delete them.",
        )
    if not odd:
        yield Finding("dates", "ok", "every row is of a day")


def _late_rows() -> Iterator[Finding]:
    from parquet_analytics.django.runs import exporter
    from parquet_analytics.django.runs.late import late_days

    first = days.last_finished() - datetime.timedelta(days=settings.LOOKBACK_DAYS - 1)
    late = [str(due.day) for due in late_days(first, exporter().location) if due.late]
    if late:
        shown = ", ".join(late[:10]) + (" ..." if len(late) > 10 else "")
        yield Finding(
            "late rows",
            "warning",
            f"rows came to {len(late)} days after they were verified, and too late for LOOKBACK_DAYS: {shown}",
            "The nightly task exports them. Without it, run manage.py export_pageviews_to_parquet --date DAY for each.",
        )
    else:
        yield Finding("late rows", "ok", f"none came to verified days before {first}")


def _replica() -> Iterator[Finding]:
    mapping = configured()
    alias = read_alias(mapping)
    connection = connections[alias]
    if connection.vendor != "postgresql":
        yield Finding("replica", "skipped", f"{alias!r} is no PostgreSQL")
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_is_in_recovery(), clock_timestamp() - pg_last_xact_replay_timestamp(),"
            " pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn(), EXISTS (SELECT 1 FROM pg_stat_wal_receiver)"
        )
        standby, behind, all_replayed, fed = cursor.fetchone()
    if not standby:
        yield Finding("replica", "ok", f"{alias!r} is a primary")
        return
    if write_alias(mapping) == alias:
        yield Finding(
            "replica",
            "warning",
            f"{alias!r} is a standby, and is also the database to write to",
            "Set WRITE_DATABASE to the primary: empty days are confirmed there, and rows deleted from it.",
        )
    if not fed and (behind is None or behind > _BEHIND):
        yield Finding(
            "replica",
            "failed",
            f"{alias!r} is a standby that receives nothing from its primary; its last transaction is {behind} old",
            "Until it has replayed a day's end, the day is not exported. Look at primary_conninfo and its log.",
        )
    elif behind is None or (behind > _BEHIND and not all_replayed):
        yield Finding(
            "replica",
            "failed",
            f"{alias!r} is a standby whose replay is {behind or 'an unknown time'} behind",
            "Until it has replayed a day's end, the day is not exported. Look at its replication.",
        )
    else:
        yield Finding("replica", "ok", f"{alias!r} is a standby; its last replayed transaction is {behind} old")


def _write_database() -> Iterator[Finding]:
    mapping = configured()
    alias = write_alias(mapping)
    connection = connections[alias]
    if connection.vendor != "postgresql":
        yield Finding("write database", "skipped", f"{alias!r} is no PostgreSQL; rows are not deleted from it")
        return
    table = connection.ops.quote_name(mapping.model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', current_user,"
            " has_table_privilege(%s, 'SELECT'), has_table_privilege(%s, 'UPDATE'), has_table_privilege(%s, 'DELETE')",
            [table] * 3,
        )
        standby, read_only, user, *rights = cursor.fetchone()
    missing = [name for name, right in zip(("SELECT", "UPDATE", "DELETE"), rights, strict=True) if not right]
    if standby or read_only:
        yield Finding(
            "write database",
            "failed",
            f"{alias!r} is {'a standby' if standby else 'read-only for this user'}",
            "Set WRITE_DATABASE to the primary.",
        )
    elif missing:
        yield Finding(
            "write database",
            "failed",
            f"{user!r} lacks {', '.join(missing)} on {table}",
            f"GRANT {', '.join(missing)} ON {table} TO {user}. Rows are locked (UPDATE) before they are deleted.",
        )
    else:
        yield Finding("write database", "ok", f"{alias!r}: {user!r} may lock and delete rows of {table}")


def _clock() -> Iterator[Finding]:
    mapping = configured()
    for alias in dict.fromkeys((read_alias(mapping), write_alias(mapping))):
        if connections[alias].vendor != "postgresql":
            continue
        with connections[alias].cursor() as cursor:
            # Not as a time, which Django gives without its zone where USE_TZ is False.
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
            told_s = cursor.fetchone()[0]
            yield _skew(f"the database {alias!r}", datetime.datetime.fromtimestamp(told_s, datetime.UTC))
    if (told := _store_time()) is not None:
        yield _skew("the store", told)


def _skew(who: str, told: datetime.datetime) -> Finding:
    skew = told - days.now()
    if abs(skew) > _SKEW:
        return Finding(
            "clock",
            "failed",
            f"the clock of {who} is {abs(skew).total_seconds():.0f} s {'ahead of' if skew > _SKEW else 'behind'} ours",
            "Clocks decide which day is over. Let all machines follow NTP.",
        )
    return Finding("clock", "ok", f"{who} and this machine agree to {abs(skew).total_seconds():.0f} s")


def _store_time() -> datetime.datetime | None:
    """What an S3 store calls now, from an answer to the storage's own client."""
    from parquet_analytics.django.storage import configured_storage

    storage = configured_storage()
    client = getattr(getattr(getattr(storage, "connection", None), "meta", None), "client", None)
    if client is None:
        return None
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = client.head_bucket(Bucket=storage.bucket_name)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return None if date is None else email.utils.parsedate_to_datetime(date)


def _store() -> Iterator[Finding]:
    from parquet_analytics.django.runs import exporter

    who = exporter()
    ignored = who.ignored_conditions()
    yield Finding("store", "ok", f"{who.location} can be written and read")
    if not ignored:
        yield Finding("conditional write", "ok", "a second writer is refused")
    else:
        yield Finding(
            "conditional write",
            "failed",
            f"{who.location} ignores conditions of requests: {', '.join(ignored)}",
            "Files could be overwritten, or others read, unnoticed, so deletion is refused. Use a store that heeds "
            "If-Match and If-None-Match, without a proxy that drops them.",
        )


def _deletion() -> Iterator[Finding]:
    from parquet_analytics.django.runs import exporter

    location = exporter().location
    if location.startswith(("s3:", "gs:", "az:")):
        yield Finding("deletion", "ok", f"rows older than {settings.HOT_DAYS} days may go once they are verified")
    elif settings.ALLOW_LOCAL_DELETE:
        yield Finding(
            "deletion",
            "warning",
            f"rows may be deleted although {location} is local (ALLOW_LOCAL_DELETE)",
            "Be sure that this folder is durable and backed up.",
        )
    else:
        yield Finding(
            "deletion",
            "warning",
            f"{location} is local, so rows are never deleted",
            "Use an object store, or set ALLOW_LOCAL_DELETE if the folder is durable.",
        )


def _effects(alias: str) -> dict[str, list[str]] | None:
    """What would go with deleted rows, as the database knows it; ``None`` where no rows are deleted."""
    from parquet_analytics._native import PostgresSource
    from parquet_analytics.django.source import configured_source

    if connections[alias].vendor != "postgresql":
        return None
    source = configured_source(days.last_finished(), write=True, alias=alias)
    return source.effects() if isinstance(source, PostgresSource) else None


def _other_rows() -> Iterator[Finding]:
    mapping = configured()
    alias = write_alias(mapping)
    told = _effects(alias)
    if told is None:
        yield Finding("other rows", "skipped", f"{alias!r} is not read natively; rows are not deleted from it")
        return
    others = told["others"] + effects.dangling(mapping, alias)
    if not others:
        yield Finding("other rows", "ok", "a deletion touches no rows but those of the page views")
    elif settings.DELETE_CASCADES:
        yield Finding("other rows", "ok", f"what a deletion does besides is accepted: {'; '.join(others)}")
    else:
        yield Finding(
            "other rows",
            "warning",
            f"rows are not deleted, because of what that does besides: {'; '.join(others)}",
            "Remove the constraint, relation, trigger or rule, or set DELETE_CASCADES if it is wanted.",
        )
    if told["holding"]:
        yield Finding(
            "other rows",
            "warning",
            "page views that other rows refer to cannot be deleted, nor the rest of their batch: "
            + "; ".join(told["holding"]),
            "Delete such rows before the page views are older than HOT_DAYS, or drop the key.",
        )


def _other_columns() -> Iterator[Finding]:
    from parquet_analytics.django.table.insertion import Table

    mapping = configured()
    alias = write_alias(mapping)
    told = _effects(alias)
    if told is None:
        yield Finding("other columns", "skipped", f"{alias!r} is not read natively; rows are not deleted from it")
        return
    lost = [column for column in told["columns"] if column not in effects.may_be_lost(mapping)]
    if lost:
        yield Finding(
            "other columns",
            "warning",
            f"rows are not deleted, because no file holds {', '.join(lost)}",
            "Name them in DELETE_COLUMNS if they may be lost.",
        )
    elif told["columns"]:
        yield Finding("other columns", "ok", f"may be lost with deleted rows: {', '.join(told['columns'])}")
    else:
        yield Finding("other columns", "ok", "files hold all columns of the page views")
    if unfilled := Table(mapping, alias).unfilled:
        yield Finding(
            "other columns",
            "warning",
            f"no row could be brought back: nothing has a value for {', '.join(unfilled)}, which may not be NULL",
            f"Give {', '.join(unfilled)} a DEFAULT in the table.",
        )


def _periodic_tasks() -> Iterator[Finding]:
    found = dict(_scheduled())
    bad = {name: task for name, task in found.items() if _DELETES.search(task) and not _guarded(task)}
    for name, task in sorted(bad.items()):
        yield Finding(
            "periodic tasks",
            "failed",
            f"{name!r} runs {task}, which deletes page views whether or not they are exported",
            "Disable it, or let the task call parquet_analytics' delete_exported_pageviews and give it the option "
            f"{GUARDED}=True.",
        )
    if not bad:
        yield Finding("periodic tasks", "ok", f"none of {len(found)} enabled ones deletes page views unguarded")


def _scheduled() -> Iterator[tuple[str, str]]:
    """Name and task of what Celery's beat runs: the settings' schedule, and that in the database."""
    from django.apps import apps
    from django.conf import settings as django_settings

    schedule = dict(getattr(django_settings, "CELERY_BEAT_SCHEDULE", None) or {})
    if (app := _celery()) is not None:
        schedule |= app.conf.beat_schedule or {}
    for name, entry in schedule.items():
        yield str(name), str(entry.get("task", ""))
    if apps.is_installed("django_celery_beat"):
        enabled = apps.get_model("django_celery_beat.PeriodicTask")._default_manager.filter(enabled=True)
        yield from enabled.values_list("name", "task")


def _guarded(task: str) -> bool:
    if task.startswith("parquet_analytics."):
        return True
    app = _celery()
    return app is not None and bool(getattr(app.tasks.get(task), GUARDED, False))


def _celery() -> Any:
    try:
        from celery import current_app
    except ImportError:
        return None
    current_app.loader.import_default_modules()
    return current_app


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "settings": _settings,
    "ledger": _ledger,
    "database": _database,
    "dates": _dates,
    "late rows": _late_rows,
    "replica": _replica,
    "write database": _write_database,
    "clock": _clock,
    "store": _store,
    "deletion": _deletion,
    "other rows": _other_rows,
    "other columns": _other_columns,
    "erasures": erasure_findings,
    "periodic tasks": _periodic_tasks,
}

"""Brings a stored day back into the table."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from django.db import connections, transaction

from parquet_analytics.django.ledger import Ledger, refuse_without_autocommit
from parquet_analytics.django.mapping import PageViewMapping, configured
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs import exporter
from parquet_analytics.django.source import write_alias
from parquet_analytics.exceptions import ConfigurationError, DayIsTaken, InvalidInput

__all__ = ["restore_day"]

_CHUNK = 5_000


def restore_day(day: datetime.date, *, dry_run: bool = False) -> dict[str, Any]:
    """Insert the rows of a stored day, all in one transaction, with their ids.

    Rows of one natural key (project, version, path and status) become one, under the lowest id and with the sum of
    their views: a merged file may hold such rows (one was deleted, another came late), and the table's constraints
    allow one. The file is then written again in the same way, before, so that the next export does not count them
    twice. Rows whose project (or, for a model with versions, version) is gone are skipped; the file keeps them.

    The result has ``date``, ``restored``, ``summed`` (rows that went into another), ``skipped`` (rows),
    ``skipped_projects`` and ``skipped_versions`` (ids), ``views``.

    :raises InvalidInput: when the table has rows of the day, or another row has one of the ids.
    :raises DayNotStored: when there is no file.
    """
    mapping = configured()
    who = exporter()
    alias = write_alias(mapping)
    _check(mapping)
    refuse_without_autocommit(alias)
    if dry_run:
        stored = who.verify(day)
        _, wanted, result = _read(mapping, alias, day, stored)
        _refuse_to_overwrite(mapping, alias, day, wanted)
        return result
    with Ledger(Run.Kind.RESTORE, day, who.location, database=alias) as ledger:
        # Read while no other run can add to the file.
        run, stored = ledger.run, who.verify(day)
        run.key, run.etag, run.sha256 = stored["key"], stored["etag"], stored["sha256"]
        ledger.renew()
        rows, wanted, result = _read(mapping, alias, day, stored)
        _refuse_to_overwrite(mapping, alias, day, wanted)
        ledger.renew()
        if result["summed"]:
            again = _rewrite(day, rows, stored["etag"])
            run.etag, run.sha256, run.run_id = again["etag"], again["sha256"], again["run_id"]
        with transaction.atomic(using=alias):
            _refuse_to_overwrite(mapping, alias, day, wanted)
            manager = mapping.model._base_manager.using(alias)
            for chunk in _chunks(wanted):
                manager.bulk_create([_instance(mapping, row) for row in chunk])
                ledger.renew()
            _advance_sequence(mapping, alias, wanted)
        run.rows, run.views, run.left = len(wanted), result["views"], result["skipped"]
        run.state = Run.State.DONE
    return result


def _read(
    mapping: PageViewMapping, alias: str, day: datetime.date, stored: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """The file's rows, one for each natural key, those of them that the table can have, and what is said of them."""
    rows, summed = _natural(_rows(day))
    missing = {what: _gone(mapping, what, alias, rows) for what in ("project", "version")}
    wanted = [row for row in rows if not any(row[f"{what}_id"] in gone for what, gone in missing.items())]
    result = {
        "date": str(day),
        "key": stored["key"],
        "restored": len(wanted),
        "views": sum(row["view_count"] for row in wanted),
        "summed": summed,
        "skipped": len(rows) - len(wanted),
        "skipped_projects": sorted(missing["project"]),
        "skipped_versions": sorted(missing["version"]),
    }
    return rows, wanted, result


def _rows(day: datetime.date) -> list[dict[str, Any]]:
    from parquet_analytics.querier import ParquetAnalyticsQuerier

    querier = ParquetAnalyticsQuerier(max_age=0)
    table = querier.sql("SELECT * FROM pageviews ORDER BY id", since=day, until=day)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _natural(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """One row for each natural key, and how many rows went into others. Rows come by id, the lowest first."""
    by_key: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["project_id"], row["version_id"], row["path"], row["status"])
        if key in by_key:
            by_key[key]["view_count"] += row["view_count"]
        else:
            by_key[key] = dict(row)
    return list(by_key.values()), len(rows) - len(by_key)


def _gone(mapping: PageViewMapping, what: str, alias: str, rows: list[dict[str, Any]]) -> set[int]:
    """Ids of projects or versions that the rows name and the database does not have."""
    field = mapping.field(f"{what}_id")
    model = getattr(field, "related_model", None)
    if model is None:
        return set()
    ids = {row[f"{what}_id"] for row in rows} - {None}
    name = field.target_field.attname
    found: set[int] = set()
    for chunk in _chunks(sorted(ids)):
        present = model._base_manager.using(alias).filter(**{f"{name}__in": chunk})
        found |= set(present.values_list(name, flat=True))
    return ids - found


def _rewrite(day: datetime.date, rows: list[dict[str, Any]], etag: str) -> dict[str, Any]:
    """Writes the day's file from these rows, unless it is another one by now than they were read from."""
    import pyarrow as pa

    from parquet_analytics.exporter import ParquetAnalyticsExporter

    who = ParquetAnalyticsExporter(source=pa.Table.from_pylist(rows))
    if who.verify(day)["etag"] != etag:
        raise DayIsTaken(f"{day}: the file was written anew meanwhile; restore it again", day=day, retryable=True)
    return who.export_daily_pageviews(day, discard_stored=True)


def _advance_sequence(mapping: PageViewMapping, alias: str, rows: list[dict[str, Any]]) -> None:
    """Makes sure that no new row gets the id of a restored one. A sequence that is ahead stays where it is."""
    connection = connections[alias]
    if connection.vendor != "postgresql" or not rows:
        return
    highest = max(row["id"] for row in rows)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT setval(sequence, %s)
            FROM (SELECT pg_get_serial_sequence(%s, %s)::regclass AS sequence) AS of_id
            WHERE sequence IS NOT NULL AND coalesce(pg_sequence_last_value(sequence), 0) < %s
            """,
            [
                highest,
                connection.ops.quote_name(mapping.model._meta.db_table),
                mapping.field("id").column,
                highest,
            ],
        )


def _check(mapping: PageViewMapping) -> None:
    """Only plain columns of the page views' own table can be written."""
    for column in ("id", "project_id", "path", "view_count", "date"):
        field = mapping.field(column)
        if "__" in mapping.lookups[column] or field.model._meta.db_table != mapping.model._meta.db_table:
            raise ConfigurationError(
                f"{column} comes from {mapping.lookups[column]!r}, another table; rows cannot be restored to it"
            )
    if mapping.timestamps:
        raise ConfigurationError(
            f"{mapping.model._meta.label} holds times, and files hold days; its rows cannot be brought back exactly"
        )


def _refuse_to_overwrite(mapping: PageViewMapping, alias: str, day: datetime.date, rows: list[dict[str, Any]]) -> None:
    table = mapping.model._base_manager.using(alias)
    present = table.filter(**mapping.of_days(day, day)).count()
    if present:
        raise InvalidInput(
            f"{day}: the table has {present} rows of this day, and nothing is overwritten; export the day, so that its "
            "file has all of them, delete the rows, then restore it",
            day=day,
        )
    for chunk in _chunks([row["id"] for row in rows]):
        taken = table.filter(pk__in=chunk).values_list("pk", flat=True).first()
        if taken is not None:
            raise InvalidInput(
                f"{day}: the table has a row with id {taken} on another day, so this is not the table that the day was "
                "exported from",
                day=day,
                row_id=taken,
            )


def _instance(mapping: PageViewMapping, row: dict[str, Any]) -> Any:
    values = {}
    for column in mapping.lookups:
        field = mapping.field(column)
        if column.endswith("_slug") or "__" in mapping.lookups[column]:
            continue
        values[field.attname] = row[column]
    return mapping.model(**values)


def _chunks(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]

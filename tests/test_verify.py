"""Proving a stored day: its bytes, its rows, and how it differs from the database."""

from __future__ import annotations

import datetime
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsExporter
from parquet_analytics.exceptions import CorruptFile, DayNotStored, InvalidInput, VerificationFailed

from tests.archives import DAY, KEY, SCHEMA, Exported, Place, execute, saying, views
from tests.test_export import ADD
from tests.test_merge import LATE


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


def read(place: Place) -> tuple[pa.Table, dict[bytes, bytes]]:
    """The day's rows, and what the file says about itself."""
    body = io.BytesIO(place.read(KEY))
    return pq.read_table(body).cast(SCHEMA), pq.read_metadata(body).metadata


def test_a_day_is_read_back_and_told_in_numbers(big_day: Exported) -> None:
    exporter = big_day.place.exporter(big_day.database)
    [exported] = big_day.results
    verified = exporter.verify(DAY)
    body = big_day.place.read(KEY)
    table = pq.read_table(io.BytesIO(body), columns=["status", "view_count"])
    assert verified == {
        "date": "2026-07-01",
        "key": KEY,
        "etag": exported["etag"],
        "run_id": exported["run_id"],
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "total_records": table.num_rows,
        "total_views": sum(table["view_count"].to_pylist()),
        "statuses": {
            status: table["status"].to_pylist().count(status) for status in sorted(set(table["status"].to_pylist()))
        },
    }
    compared = exporter.verify(DAY, against="database")
    assert [compared[name] for name in ("missing", "changed", "archive_only", "left")] == [0, 0, 0, 0]


def test_against_the_database_it_lists_missing_changed_and_archive_only_rows(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        LATE,
        "UPDATE analytics_pageview SET path = '/elsewhere.html' WHERE id = 1",
        "UPDATE analytics_pageview SET view_count = 9 WHERE id = 2",
        "DELETE FROM analytics_pageview WHERE id = 3",
    )
    found = exporter.verify(DAY, against="database")
    assert [found[name] for name in ("missing_ids", "changed_ids", "archive_only_ids")] == [[9], [1, 2], [3]]
    assert [found[name] for name in ("missing", "changed", "archive_only")] == [1, 2, 1]


def test_a_day_that_is_not_there_is_an_error_of_its_own(place: Place, filled: str) -> None:
    with pytest.raises(DayNotStored, match=saying("2026-07-01", KEY)) as caught:
        place.exporter(filled).verify(DAY)
    assert (caught.value.day, caught.value.key) == (DAY, KEY)
    with pytest.raises(InvalidInput, match="against"):
        place.exporter(filled).verify(DAY, against="files")  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_any_flipped_bit_is_found_in_every_store(tmp_path: Path, fraction: float) -> None:
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=views())
    exporter.export_daily_pageviews(DAY)
    file = tmp_path / KEY
    assert exporter.verify(DAY)["total_records"] == 3
    # In place, as a disk does it: the metadata stays.
    with file.open("r+b") as body:
        at = int(fraction * file.stat().st_size)
        body.seek(at)
        byte = body.read(1)[0]
        body.seek(at)
        body.write(bytes([byte ^ 0x10]))
    with pytest.raises((VerificationFailed, CorruptFile), match=KEY):
        exporter.verify(DAY)


def test_a_file_of_another_day_and_a_foreign_file_are_not_taken_for_it(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews("2026-07-02")
    [other] = place.keys()
    place.write(KEY, place.read(other))
    with pytest.raises(CorruptFile, match=saying(KEY, "2026-07-02")):
        exporter.verify(DAY)
    with pytest.raises(CorruptFile, match=saying(KEY, "2026-07-02")):
        exporter.export_daily_pageviews(DAY)
    foreign = io.BytesIO()
    pq.write_table(views(), foreign)
    place.write(KEY, foreign.getvalue())
    with pytest.raises(CorruptFile, match=KEY):
        exporter.verify(DAY)


def test_a_file_with_other_rows_than_it_was_written_with_is_found_without_its_hash(place: Place, filled: str) -> None:
    """Somebody rewrote it with another program, and kept what it says about itself."""
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    table, about = read(place)

    def changed(**columns: list[Any]) -> pa.Table:
        return pa.table(table.to_pydict() | columns, schema=table.schema)

    for rows, parts in (
        (table.slice(1), ["2 rows instead of 3"]),
        (changed(view_count=[10, 5, 1]), ["16 views instead of 15"]),
        (changed(status=[200, 200, 200]), ["rows by status"]),
        (changed(id=[1, 2, 5]), ["ids 1 to 5 instead of 1 to 3"]),
        (changed(id=[1, 3, 3]), ["id 3", "unique"]),
        (changed(date=[DAY, DAY, datetime.date(2026, 7, 2)]), ["rows of 2026-07-02"]),
    ):
        body = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(about), body)
        place.write(KEY, body.getvalue())
        with pytest.raises((VerificationFailed, CorruptFile), match=saying(KEY, *parts)):
            exporter.verify(DAY)


def test_a_file_that_does_not_say_what_it_adds_up_to_is_not_verified(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    table, about = read(place)
    said = {name: value for name, value in about.items() if name != b"parquet_analytics.statuses"}
    body = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(said), body)
    place.write(KEY, body.getvalue())
    with pytest.raises(VerificationFailed, match="nothing to compare"):
        exporter.verify(DAY)


def test_steps_are_logged_by_name(tmp_path: Path) -> None:
    code = f"""
import logging
from parquet_analytics import ParquetAnalyticsExporter
import pyarrow as pa
logging.basicConfig(level=logging.DEBUG, format="%(name)s|%(message)s")
from tests.archives import DAY, views
ParquetAnalyticsExporter({tmp_path.as_uri()!r}, source=views()).export_daily_pageviews(DAY, per_project=True)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    steps = [
        line.split("|")[1].removeprefix("2026-07-01 ")
        for line in run.stderr.splitlines()
        if line.startswith("parquet_analytics.steps|")
    ]
    assert steps == [
        "reading-stored",
        "reading-database",
        "writing-file",
        "publishing",
        "published",
        "verifying",
        "verified",
        "copying",
        "copied",
    ]

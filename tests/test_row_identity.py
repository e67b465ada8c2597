"""Which row is which: rows that moved to another date, ids that were given out again, corrections, ids that repeat."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource
from parquet_analytics.exceptions import (
    BadRow,
    CorruptFile,
    DayLost,
    DeletionRefused,
    IdConflict,
    InvalidInput,
    VerificationFailed,
)

from tests.archives import DAY, KEY, Place, execute, rows_of, saying
from tests.test_delete import left
from tests.test_export import ADD
from tests.test_merge import LATE, counts, metadata, stored

NEXT = DAY + datetime.timedelta(days=1)
NEXT_KEY = KEY.replace("07/01", "07/02").replace("07-01", "07-02")

MOVE = "UPDATE analytics_pageview SET date = '2026-07-02', view_count = view_count + 1 WHERE id = 2"
# As a sequence that was set back gives ids out.
AGAIN = """
    INSERT INTO analytics_pageview (id, path, full_path, view_count, date, status, project_id, version_id)
    VALUES (1, '/index.html', '/en/latest/index.html', 1, '2026-07-01', 200, 7, 5)
"""


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD, "UPDATE analytics_pageview SET date = '2026-06-30' WHERE id = 4")
    return database


def views_of(place: Place, *keys: str) -> dict[int, int]:
    """Views by id in these files; an id in two of them fails."""
    found: dict[int, int] = {}
    for key in keys:
        for id, views in counts(stored(place, key)).items():
            assert id not in found
            found[id] = views
    return found


# Rows that moved.


@pytest.mark.parametrize("first", ["from", "to"])
def test_a_row_that_moved_to_another_date_leaves_its_old_day(place: Place, filled: str, first: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, MOVE)
    for day in (DAY, NEXT) if first == "from" else (NEXT, DAY):
        result = exporter.export_daily_pageviews(day)
        if day == DAY:
            assert (result["moved"], result["kept"], result["outcome"]) == (1, 0, "merged")
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 5, 3: 1}


def test_a_row_that_moved_leaves_a_day_of_which_rows_were_deleted(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, MOVE)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 2
    exporter.export_daily_pageviews(NEXT)
    result = exporter.export_daily_pageviews(DAY)
    assert (result["moved"], result["kept"]) == (1, 2)
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 5, 3: 1}
    assert exporter.delete_exported_pageviews(NEXT)["deleted"] == 1
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 5, 3: 1}


def test_a_row_that_moved_back_is_there_again(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, MOVE)
    for day in (NEXT, DAY):
        exporter.export_daily_pageviews(day)
    execute(filled, "UPDATE analytics_pageview SET date = '2026-07-01' WHERE id = 2")
    for day in (DAY, NEXT):
        exporter.export_daily_pageviews(day)
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 5, 3: 1}


def test_a_row_that_moves_while_its_day_is_deleted_leaves_it(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)

    def move(rows: int, total: int | None) -> None:
        if rows == 1:
            execute(filled, MOVE)

    result = exporter.delete_exported_pageviews(DAY, batch_rows=1, pause=0.5, progress=move)
    assert (result["deleted"], result["moved"], result["moved_ids"]) == (2, 1, [2])
    assert metadata(place)["remaining"] == "2"
    for day in (NEXT, DAY):
        exporter.export_daily_pageviews(day)
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 5, 3: 1}


# The same page as the deleted row's, or another.
@pytest.mark.parametrize("path", ["/install.html", "/new.html"])
def test_an_id_that_is_given_out_again_on_another_date_is_another_row(place: Place, filled: str, path: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    exporter.delete_exported_pageviews(DAY)
    again = f"""
        INSERT INTO analytics_pageview (id, path, full_path, view_count, date, status, project_id, version_id)
        VALUES (2, '{path}', NULL, 70, '2026-07-02', 200, 7, 5)
    """
    execute(filled, again, LATE)
    result = exporter.export_daily_pageviews(DAY)
    assert (result["moved"], result["kept"], result["added"]) == (0, 3, 1)
    exporter.export_daily_pageviews(NEXT)
    deleted = exporter.delete_exported_pageviews(DAY)
    assert (deleted["deleted"], deleted["moved"]) == (1, 0)
    assert exporter.delete_exported_pageviews(NEXT)["deleted"] == 1
    exporter.export_daily_pageviews(DAY)
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1, 9: 2}
    assert counts(stored(place, NEXT_KEY)) == {2: 70}
    with pytest.raises(InvalidInput, match="holds 4 rows"):
        exporter.export_daily_pageviews(DAY, replace=True)


def test_a_row_of_two_files_that_has_vanished_holds_no_deletion_back(
    place: Place, filled: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts on both days, so that is said; of rows that are there nothing is."""
    caplog.set_level("WARNING", logger="parquet_analytics")
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, MOVE, LATE.replace("2026-07-01", "2026-07-02"))
    exporter.export_daily_pageviews(NEXT)
    with pytest.raises(DeletionRefused):
        exporter.delete_exported_pageviews(NEXT)
    assert "count on both days" not in caplog.text
    execute(filled, "DELETE FROM analytics_pageview WHERE id = 2")
    assert exporter.delete_exported_pageviews(NEXT)["deleted"] == 1
    said = "2026-07-02: 1 rows are in the file of 2026-07-01 too, and the table has none of them any more"
    assert said in caplog.text
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 2


@pytest.fixture
def broken_off(place: Place, filled: str) -> ParquetAnalyticsExporter:
    """A deletion of the day was broken off before it came to the row 3."""
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)

    def stop(rows: int, total: int | None) -> None:
        if rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exporter.delete_exported_pageviews(DAY, batch_rows=1, pause=0.5, progress=stop)
    assert 3 in left(filled)
    execute(filled, LATE)
    return exporter


def test_a_row_that_moves_while_a_deletion_is_broken_off_leaves_its_old_day(
    place: Place, filled: str, broken_off: ParquetAnalyticsExporter
) -> None:
    execute(filled, MOVE.replace("id = 2", "id = 3"))
    assert broken_off.export_daily_pageviews(DAY)["moved"] == 1
    broken_off.export_daily_pageviews(NEXT)
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 4, 3: 2, 9: 2}


def test_what_a_broken_off_deletion_leaves_open_is_not_taken_for_moved(
    place: Place, filled: str, broken_off: ParquetAnalyticsExporter
) -> None:
    """The row may have been deleted, and its id been given out again."""
    execute(filled, MOVE.replace("id = 2", "id = 3"), "UPDATE analytics_pageview SET path = '/other' WHERE id = 3")
    result = broken_off.export_daily_pageviews(DAY)
    assert (result["moved"], counts(stored(place))[3]) == (0, 1)
    broken_off.delete_exported_pageviews(DAY)
    assert metadata(place)["remaining"] == "at-most 3"
    result = broken_off.export_daily_pageviews(DAY)
    assert (result["moved"], counts(stored(place))[3]) == (0, 1)
    broken_off.export_daily_pageviews(NEXT)
    with pytest.raises(DeletionRefused, match=saying("on_id_conflict", "2026-07-01", "id 3")) as caught:
        broken_off.delete_exported_pageviews(NEXT)
    assert [str(day) for day in caught.value.export_first] == ["2026-07-01"]
    # Somebody has looked, and it is the same row.
    result = broken_off.export_daily_pageviews(DAY, on_id_conflict="database")
    assert (result["moved"], 3 in counts(stored(place))) == (1, False)
    assert broken_off.delete_exported_pageviews(NEXT)["deleted"] == 1
    assert counts(stored(place, NEXT_KEY)) == {3: 2}


# What a file cannot hold, and what was there before.
UNFIT = [
    ("status = 100000", "status = 200"),
    ("date = 'infinity'", "date = '2026-07-01'"),
]


@pytest.mark.parametrize(("unfit", "repaired"), UNFIT)
def test_a_row_that_a_deletion_left_may_be_unfit_for_a_while(
    place: Place, filled: str, unfit: str, repaired: str
) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with psycopg.connect(filled) as other:
        other.execute("SELECT 1 FROM analytics_pageview WHERE id = 1 FOR UPDATE")
        exporter.delete_exported_pageviews(DAY)
    execute(filled, f"UPDATE analytics_pageview SET {unfit} WHERE id = 1", LATE)
    exporter.export_daily_pageviews(DAY, on_bad_row="leave")
    execute(filled, f"UPDATE analytics_pageview SET {repaired}, view_count = 11 WHERE id = 1")
    result = exporter.export_daily_pageviews(DAY)
    assert (result["changed"], result["left"]) == (1, 0)
    assert counts(stored(place)) == {1: 11, 2: 4, 3: 1, 9: 2}
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 2
    execute(filled, AGAIN)
    with pytest.raises(IdConflict):
        exporter.export_daily_pageviews(DAY)


def test_replacing_a_day_is_no_loss_of_rows_that_moved(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, MOVE)
    assert exporter.export_daily_pageviews(DAY, replace=True)["outcome"] == "replaced"
    assert views_of(place, KEY) == {1: 10, 3: 1}


@pytest.mark.parametrize("date", ["'-infinity'", "'infinity'", "'0044-03-15 BC'", "'12000-01-01'"])
def test_a_row_at_a_date_that_no_file_can_have_stays_in_its_old_day(place: Place, filled: str, date: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, f"UPDATE analytics_pageview SET date = {date} WHERE id = 2")
    result = exporter.export_daily_pageviews(DAY)
    assert (result["moved"], result["kept"]) == (0, 1)
    assert views_of(place, KEY) == {1: 10, 2: 4, 3: 1}


def test_rows_are_looked_up_in_the_snapshot_that_is_exported(place: Place, filled: str) -> None:
    """Times are cut into days, and many ids are looked for in parts."""
    execute(
        filled,
        "ALTER TABLE analytics_pageview ALTER date TYPE timestamptz USING date::timestamptz + interval '5 hours'",
        "INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id) "
        "SELECT n + 100, '/' || n, 1, '2026-07-01 23:59:59+00', 200, 7 FROM generate_series(1, 25000) n",
    )
    exporter = place.exporter(filled)
    assert exporter.export_daily_pageviews(DAY)["total_records"] == 25_003
    execute(
        filled,
        "DELETE FROM analytics_pageview WHERE id % 3 = 0",
        "UPDATE analytics_pageview SET date = '2026-07-02 00:00:00+00' WHERE id % 3 = 1 AND date >= '2026-07-01'",
    )
    moved = rows_of(filled, "SELECT count(*) FROM analytics_pageview WHERE date >= '2026-07-02'")[0][0]
    result = exporter.export_daily_pageviews(DAY)
    assert (result["moved"], result["total_records"]) == (moved, 25_003 - moved)


# Ids that were given out again.


def test_an_id_that_is_given_out_again_does_not_overwrite_the_row_that_was_deleted(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    exporter.delete_exported_pageviews(DAY)
    execute(filled, AGAIN, LATE)
    before = place.read(KEY)
    for arguments in ({}, {"on_id_conflict": "database"}):
        with pytest.raises(
            IdConflict, match=saying("2026-07-01", "id 1", KEY, "deleted", "sequence", "leave")
        ) as caught:
            exporter.export_daily_pageviews(DAY, **arguments)
        assert caught.value.row_id == 1
        assert place.read(KEY) == before
    # The others can go on without it, and it stays where it is.
    result = exporter.export_daily_pageviews(DAY, on_id_conflict="leave")
    assert (result["added"], result["left"], [row["id"] for row in result["left_rows"]]) == (1, 1, [1])
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1, 9: 2}
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 1
    assert left(filled) == [1, 4]
    with pytest.raises(IdConflict):
        exporter.export_daily_pageviews(DAY)


def test_a_row_that_a_deletion_left_may_change(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with psycopg.connect(filled) as other:
        other.execute("SELECT 1 FROM analytics_pageview WHERE id = 1 FOR UPDATE")
        assert exporter.delete_exported_pageviews(DAY)["busy_ids"] == [1]
    assert metadata(place)["remaining"] == "1"
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1")
    result = exporter.export_daily_pageviews(DAY)
    assert (result["changed"], result["kept"]) == (1, 2)
    assert counts(stored(place)) == {1: 11, 2: 4, 3: 1}
    assert metadata(place)["remaining"] == "1"
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 1
    execute(filled, AGAIN)
    with pytest.raises(IdConflict):
        exporter.export_daily_pageviews(DAY)


def test_what_a_broken_off_deletion_leaves_open_waits_for_the_next_one(
    place: Place, filled: str, broken_off: ParquetAnalyticsExporter
) -> None:
    exporter = broken_off
    assert metadata(place)["remaining"] == "unknown"
    kept = set(left(filled)) & {1, 2, 3}
    assert len(kept) < 3
    execute(filled, f"UPDATE analytics_pageview SET view_count = 50 WHERE id IN ({', '.join(map(str, kept))})")
    # It is not known whether these are the rows of before, so they are not taken for them yet.
    result = exporter.export_daily_pageviews(DAY)
    assert (result["added"], result["changed"], result["left"]) == (1, 0, len(kept))
    exporter.delete_exported_pageviews(DAY)
    result = exporter.export_daily_pageviews(DAY)
    assert (result["changed"], result["left"]) == (len(kept), 0)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == len(kept)
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1, 9: 2} | dict.fromkeys(kept, 50)


def test_a_deletion_that_was_broken_off_ends_although_nothing_is_left_to_delete(
    place: Place, filled: str, broken_off: ParquetAnalyticsExporter
) -> None:
    execute(filled, f"DELETE FROM analytics_pageview WHERE date = '{DAY}'")
    assert metadata(place)["remaining"] == "unknown"
    ended = broken_off.delete_exported_pageviews(DAY)
    assert (ended["deleted"], metadata(place)["remaining"]) == (0, "")
    # There is nothing more to be said.
    assert broken_off.delete_exported_pageviews(DAY)["etag"] == ended["etag"]


def test_rows_that_a_restored_database_brings_back_are_the_same_again(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, "CREATE TABLE backup AS SELECT * FROM analytics_pageview WHERE date = '2026-07-01'")
    exporter.delete_exported_pageviews(DAY)
    execute(filled, "INSERT INTO analytics_pageview SELECT * FROM backup")
    result = exporter.export_daily_pageviews(DAY)
    assert (result["outcome"], result["kept"], result["left"]) == ("unchanged", 0, 0)
    assert "remaining" not in metadata(place)


# Corrections.


def test_a_correction_of_a_rows_project_can_be_accepted_and_drops_nothing(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        "INSERT INTO projects_project (id, name, slug) VALUES (8, 'Other', 'other')",
        "UPDATE analytics_pageview SET project_id = 8, version_id = NULL WHERE id = 2",
        "DELETE FROM analytics_pageview WHERE id = 3",
        LATE,
    )
    with pytest.raises(IdConflict, match=saying("id 2", 'on_id_conflict="database"', 'on_id_conflict="leave"')):
        exporter.export_daily_pageviews(DAY)
    result = exporter.export_daily_pageviews(DAY, on_id_conflict="leave")
    assert (result["added"], result["kept"], result["left"], result["total_records"]) == (1, 2, 1, 4)
    result = exporter.export_daily_pageviews(DAY, on_id_conflict="database")
    assert (result["added"], result["changed"], result["kept"], result["left"]) == (0, 1, 1, 0)
    table = stored(place)
    assert dict(zip(table["id"].to_pylist(), table["project_slug"].to_pylist(), strict=True)) == {
        1: "docs",
        2: "other",
        3: "docs",
        9: "docs",
    }
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3


def test_many_conflicts_are_left_at_once(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, "UPDATE analytics_pageview SET path = path || '?' WHERE id IN (1, 3)")
    with pytest.raises(IdConflict, match=saying("id 1", "1 others")):
        exporter.export_daily_pageviews(DAY)
    result = exporter.export_daily_pageviews(DAY, on_id_conflict="leave")
    assert (result["outcome"], [row["id"] for row in result["left_rows"]]) == ("unchanged", [1, 3])


def test_conflicts_of_a_stream_are_left_too(place: Place) -> None:
    from tests.archives import views

    place.exporter(views()).export_daily_pageviews(DAY)
    other = views(path=["/elsewhere", "/install.html", "/lost.html"])
    result = place.exporter(other).export_daily_pageviews(DAY, on_id_conflict="leave")
    assert (result["left"], result["total_records"]) == (1, 3)
    assert "/elsewhere" not in stored(place)["path"].to_pylist()


# Ids that repeat.


def test_a_second_row_with_an_exported_id_is_not_deleted_with_it(place: Place, filled: str) -> None:
    execute(
        filled,
        "ALTER TABLE analytics_pageview DROP CONSTRAINT analytics_pageview_pkey",
        "ALTER TABLE analytics_pageview ALTER date TYPE timestamptz USING date::timestamptz",
        "ALTER TABLE analytics_pageview ADD PRIMARY KEY (id, date)",
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        "INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id) "
        "VALUES (2, '/second', 7, '2026-07-01 12:00+00', 200, 7)",
    )
    with pytest.raises(BadRow, match=saying("id 2")):
        exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("id 2", "more than one", "unique index")):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview WHERE id = 2") == [(2,)]
    execute(filled, "UPDATE analytics_pageview SET id = 22 WHERE path = '/second'")
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3
    assert left(filled) == [4, 22]


def test_a_row_of_a_table_that_inherits_is_not_deleted_for_another(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    execute(filled, "CREATE TABLE child () INHERITS (analytics_pageview)")
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        "INSERT INTO child (id, path, view_count, date, status, project_id) VALUES (2, '/2', 7, '2026-07-01', 200, 7)",
    )
    with pytest.raises(BadRow, match=saying("id 2")):
        exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("id 2", "more than one")):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM child") == [(1,)]


# Days that are gone, and files that are not what they were.


def test_a_lost_file_is_no_new_day(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    lost = place.read(KEY)
    head = place.s3.client().head_object(Bucket=place.bucket, Key=place._full(KEY))["Metadata"]
    place.s3.client().delete_object(Bucket=place.bucket, Key=place._full(KEY))
    # The table has the whole day: it is exported again.
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "created"
    exporter.delete_exported_pageviews(DAY)
    place.s3.client().delete_object(Bucket=place.bucket, Key=place._full(KEY))
    execute(filled, LATE)
    for arguments in ({}, {"replace": True}, {"allow_empty": True}, {"accept_moved_database": True}):
        with pytest.raises(DayLost, match=saying("2026-07-01", KEY, "3 rows", "15 views", "version")) as caught:
            exporter.export_daily_pageviews(DAY, **arguments)
        assert isinstance(caught.value, VerificationFailed)
        assert (caught.value.key, caught.value.day, caught.value.retryable) == (KEY, DAY, False)
    assert KEY not in list(place.keys())
    # Put back, it is merged; given up, it begins anew.
    place.s3.client().put_object(Bucket=place.bucket, Key=place._full(KEY), Body=lost, Metadata=head)
    assert exporter.export_daily_pageviews(DAY)["total_records"] == 4
    place.s3.client().delete_object(Bucket=place.bucket, Key=place._full(KEY))
    assert exporter.export_daily_pageviews(DAY, discard_stored=True)["total_records"] == 1
    place.s3.client().delete_object(Bucket=place.bucket, Key=place._full(KEY))
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "created"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"days":{}}',
        b'{"format":1}',
        b'{"format":2,"days":{}}',
        b'{"format":1,"days":[]}',
        b'{"format":1,"days":{"x":{"rows":1,"views":1}}}',
        b'{"format":1,"days":{"2026-07-01":{}}}',
        b'{"format":1,"days":{"2026-07-01":{"rows":"1","views":1}}}',
        b'{"format":1,"days":{"2026-07-01":{"rows":1,"views":1}},"days":{}}',
    ],
)
def test_a_damaged_list_of_deleted_days_stops_what_depends_on_it(place: Place, filled: str, damage: bytes) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    place.write("analytics/pageviews/_deleted/days.json", damage)
    with pytest.raises(CorruptFile, match=saying("_deleted/days.json")):
        exporter.export_daily_pageviews(NEXT)
    with pytest.raises(CorruptFile, match=saying("_deleted/days.json")):
        exporter.delete_exported_pageviews(DAY)
    assert left(filled) == [1, 2, 3, 4]


def test_what_a_later_version_adds_to_the_list_of_deleted_days_stays(place: Place, filled: str) -> None:
    key = "analytics/pageviews/_deleted/days.json"
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    other = {"rows": 5, "views": 6, "began": "2026-06-01T03:00:00Z", "by": "night"}
    place.write(key, json.dumps({"format": 1, "days": {"2026-05-01": other}, "more": [1]}).encode())
    exporter.delete_exported_pageviews(DAY)
    found = json.loads(place.read(key))
    assert found["days"].pop("2026-07-01").keys() == {"rows", "views", "began"}
    assert found == {"format": 1, "days": {"2026-05-01": other}, "more": [1]}


def rewritten(body: bytes, change: Any) -> bytes:
    """The file with other rows, and what it says of itself as before."""
    table = change(pq.read_table(io.BytesIO(body)))
    about = pq.read_metadata(io.BytesIO(body)).metadata
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema.with_metadata({**(table.schema.metadata or {}), **about})) as writer:
        writer.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **about}))
    return sink.getvalue()


@pytest.mark.parametrize("damage", ["fewer", "twice", "views"])
def test_damage_is_not_merged(place: Place, filled: str, damage: str) -> None:
    import pyarrow as pa

    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    changes = {
        "fewer": lambda table: table.slice(0, 2),
        "twice": lambda table: pa.concat_tables([table.slice(0, 2), table.slice(1, 1)]),
        "views": lambda table: table.set_column(7, table.schema.field(7), pa.array([1, 1, 1], pa.int32())),
    }
    # Without the object's own hash, as a copy by another program leaves it.
    place.write(KEY, rewritten(place.read(KEY), changes[damage]))
    damaged = place.read(KEY)
    execute(filled, LATE)
    for arguments in ({}, {"replace": True}):
        with pytest.raises((VerificationFailed, CorruptFile), match=saying("2026-07-01", KEY)):
            exporter.export_daily_pageviews(DAY, **arguments)
        assert place.read(KEY) == damaged
    assert exporter.export_daily_pageviews(DAY, discard_stored=True)["total_records"] == 4


def test_a_folder_without_extended_attributes_is_looked_at_as_closely(filled: str, tmp_path: Path) -> None:
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=PostgresSource(filled))
    exporter.export_daily_pageviews(DAY)
    file = tmp_path / KEY
    file.write_bytes(rewritten(file.read_bytes(), lambda table: table.slice(1, 2)))
    with pytest.raises((VerificationFailed, CorruptFile), match=KEY):
        exporter.export_daily_pageviews(DAY)


# Rows that moved, and whose old day was not exported since.


@pytest.mark.parametrize("old_rows", ["there", "deleted"])
def test_a_row_that_an_older_file_still_has_is_not_deleted_before_that_is_right(
    place: Place, filled: str, old_rows: str
) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    if old_rows == "deleted":
        execute(filled, "UPDATE analytics_pageview SET date = '2026-07-03' WHERE id = 2")
        exporter.delete_exported_pageviews(DAY)
        execute(filled, "UPDATE analytics_pageview SET date = '2026-07-01' WHERE id = 2")
    execute(filled, MOVE)
    exporter.export_daily_pageviews(NEXT)
    with pytest.raises(DeletionRefused, match=saying("2026-07-02", "2026-07-01", "id 2", "moved")) as caught:
        exporter.delete_exported_pageviews(NEXT)
    assert caught.value.export_first == (DAY,)
    assert 2 in left(filled)
    assert exporter.export_daily_pageviews(DAY)["moved"] == 1
    assert exporter.delete_exported_pageviews(NEXT)["deleted"] == 1
    assert views_of(place, KEY, NEXT_KEY) == {1: 10, 2: 5, 3: 1}


def test_a_day_that_shares_no_row_with_others_is_deleted_at_once(place: Place, filled: str) -> None:
    """Also where late rows have greater ids than the next day's."""
    exporter = place.exporter(filled)
    execute(
        filled,
        "INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id) "
        "VALUES (20, '/next', 1, '2026-07-02', 200, 7), (30, '/late', 1, '2026-07-01', 200, 7)",
    )
    for day in (DAY, NEXT):
        exporter.export_daily_pageviews(day)
    assert exporter.delete_exported_pageviews(NEXT)["deleted"] == 1
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 4


def damaged_pages(body: bytes) -> bytes:
    """What lies before indexes and footer is no page any more."""
    group = pq.read_metadata(io.BytesIO(body)).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [
        min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset) for column in columns
    ]
    end = max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))
    return b"PAR1" + bytes(end - 4) + body[end:]


def test_other_files_are_looked_into_only_where_ids_may_be_shared(place: Place, filled: str) -> None:
    """A deletion reads what a file says of its ids, and rows only of those that may have some of the same."""
    exporter = place.exporter(filled)
    execute(filled, "INSERT INTO analytics_pageview VALUES (20, '/a', NULL, 1, '2026-07-02', 200, 7, NULL)")
    execute(filled, "INSERT INTO analytics_pageview VALUES (40, '/b', NULL, 1, '2026-07-02', 200, 7, NULL)")
    for day in (DAY, NEXT):
        exporter.export_daily_pageviews(day)
    place.write(NEXT_KEY, damaged_pages(place.read(NEXT_KEY)))
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3
    execute(filled, "INSERT INTO analytics_pageview VALUES (30, '/late', NULL, 1, '2026-07-01', 200, 7, NULL)")
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(CorruptFile, match=saying(NEXT_KEY)):
        exporter.delete_exported_pageviews(DAY)


def test_a_file_that_does_not_say_its_ids_is_looked_into(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, MOVE)
    exporter.export_daily_pageviews(NEXT)
    body = place.read(KEY)
    assert body.count(b"parquet_analytics.ids") == 1
    place.write(KEY, body.replace(b"parquet_analytics.ids", b"parquet_analytics.odd"))
    with pytest.raises(DeletionRefused, match=saying("2026-07-01", "id 2")):
        exporter.delete_exported_pageviews(NEXT)

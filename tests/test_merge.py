"""Exporting a day that is stored: what is merged, what is kept, and which source may not touch it."""

from __future__ import annotations

import datetime
import io
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_analytics import PostgresSource
from parquet_analytics.exceptions import (
    BadRow,
    DayHasNoRows,
    IdConflict,
    InvalidInput,
    SourceError,
    StaleSnapshot,
)

from tests.archives import DAY, KEY, SCHEMA, Place, execute, rows_of, saying, views
from tests.services import PgBouncer, Postgres, Standby
from tests.test_export import ADD

LATE = """
    INSERT INTO analytics_pageview (id, path, full_path, view_count, date, status, project_id, version_id)
    VALUES (9, '/late.html', NULL, 2, '2026-07-01', 200, 7, 5)
"""


def stored(place: Place, key: str = KEY) -> pa.Table:
    return pq.read_table(io.BytesIO(place.read(key))).replace_schema_metadata()


def metadata(place: Place, key: str = KEY) -> dict[str, str]:
    found = pq.read_metadata(io.BytesIO(place.read(key))).metadata
    return {name.decode().removeprefix("parquet_analytics."): value.decode() for name, value in found.items()}


def counts(table: pa.Table) -> dict[int, int]:
    return dict(zip(table["id"].to_pylist(), table["view_count"].to_pylist(), strict=True))


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


def test_late_rows_are_added_changed_ones_win_and_rows_that_are_gone_are_kept(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "created"
    execute(
        filled,
        "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1",
        "DELETE FROM analytics_pageview WHERE id IN (2, 3)",
        LATE,
    )
    result = exporter.export_daily_pageviews(DAY)
    assert [result[name] for name in ("outcome", "added", "changed", "kept", "total_records", "total_views")] == [
        "merged",
        1,
        1,
        2,
        4,
        18,
    ]
    table = stored(place)
    assert counts(table) == {1: 11, 9: 2, 2: 4, 3: 1}
    assert table.schema == SCHEMA
    # In the file's order still: by slug, status, path.
    assert table["path"].to_pylist() == ["/index.html", "/install.html", "/late.html", "/lost.html"]
    # And with the row as it was stored, to the last column.
    assert table.filter(pa.compute.equal(table["id"], 3)).to_pylist() == views().slice(2).to_pylist()


@pytest.mark.parametrize("source", ["database", "stream"])
def test_a_day_with_nothing_new_is_not_written_again(place: Place, filled: str, source: str) -> None:
    exporter = place.exporter(filled if source == "database" else views())
    first = exporter.export_daily_pageviews(DAY)
    before = place.s3.client().head_object(Bucket=place.bucket, Key=place._full(KEY))
    for _ in range(2):
        again = exporter.export_daily_pageviews(DAY)
        assert [again[name] for name in ("outcome", "kept", "etag", "run_id", "sha256")] == [
            "unchanged",
            0,
            first["etag"],
            first["run_id"],
            first["sha256"],
        ]
    after = place.s3.client().head_object(Bucket=place.bucket, Key=place._full(KEY))
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])


def test_rows_that_were_seen_again_later_are_said_to_be_of_then(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    first = exporter.export_daily_pageviews(DAY)
    execute(filled, "DELETE FROM analytics_pageview WHERE date = '2026-07-01'")
    again = exporter.export_daily_pageviews(DAY)
    assert (again["outcome"], again["kept"]) == ("unchanged", 3)
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1}
    assert metadata(place)["position"] == again["position"] != first["position"]
    assert exporter.export_daily_pageviews(DAY)["etag"] == again["etag"]


def test_a_renamed_project_is_no_conflict_and_its_rows_get_the_new_slug(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        "DELETE FROM analytics_pageview WHERE id = 3",
        "UPDATE projects_project SET slug = 'renamed' WHERE id = 7",
    )
    result = exporter.export_daily_pageviews(DAY)
    assert (result["outcome"], result["changed"], result["kept"]) == ("merged", 0, 1)
    table = stored(place)
    # A kept row is kept as it is: what its project is called now is known only where it has rows.
    assert dict(zip(table["id"].to_pylist(), table["project_slug"].to_pylist(), strict=True)) == {
        1: "renamed",
        2: "renamed",
        3: "docs",
    }


@pytest.mark.parametrize("change", ["path = '/other.html'", "project_id = 8"])
def test_the_same_id_for_another_page_is_a_conflict_that_names_it(place: Place, filled: str, change: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    before = place.read(KEY)
    execute(
        filled,
        "INSERT INTO projects_project (id, name, slug) VALUES (8, 'Other', 'other')",
        f"UPDATE analytics_pageview SET {change} WHERE id = 2",
    )
    for replace in (False, True):
        with pytest.raises(IdConflict, match=saying("2026-07-01", "id 2", KEY, "discard_stored=True")) as caught:
            exporter.export_daily_pageviews(DAY, replace=replace)
        assert (caught.value.row_id, caught.value.retryable) == (2, False)
        assert place.read(KEY) == before
    exporter.export_daily_pageviews(DAY, discard_stored=True)
    assert stored(place)["id"].to_pylist() != []


def test_replace_writes_the_snapshot_alone_and_refuses_to_drop_rows(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1", LATE)
    result = exporter.export_daily_pageviews(DAY, replace=True)
    assert (result["outcome"], result["added"], result["changed"]) == ("replaced", 1, 1)
    execute(filled, "DELETE FROM analytics_pageview WHERE id IN (1, 2)")
    before = place.read(KEY)
    with pytest.raises(InvalidInput, match=saying("2 rows", "discard_stored=True")):
        exporter.export_daily_pageviews(DAY, replace=True)
    assert place.read(KEY) == before
    # discard_stored alone goes on.
    assert exporter.export_daily_pageviews(DAY, discard_stored=True)["outcome"] == "replaced"
    assert counts(stored(place)) == {9: 2, 3: 1}


def test_a_damaged_stored_file_stops_the_merge_and_only_discard_stored_drops_it(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    good = place.read(KEY)
    place.write(KEY, good[:-1])
    for arguments in ({}, {"replace": True}):
        with pytest.raises(Exception, match=KEY):
            exporter.export_daily_pageviews(DAY, **arguments)
        assert place.read(KEY) == good[:-1]
    exporter.export_daily_pageviews(DAY, discard_stored=True)
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1}


def test_a_replica_that_lags_is_refused_until_it_has_caught_up(place: Place, filled: str, standby: Standby) -> None:
    standby.catch_up()
    replica = standby.database_url(filled)
    with standby.held_back():
        execute(filled, "UPDATE analytics_pageview SET view_count = 99 WHERE id = 1")
        place.exporter(filled).export_daily_pageviews(DAY)
        assert rows_of(replica, "SELECT view_count FROM analytics_pageview WHERE id = 1") == [(10,)]
        for arguments in ({}, {"replace": True}):
            with pytest.raises(StaleSnapshot, match=saying("2026-07-01", "older", "lags", "again later")) as caught:
                place.exporter(replica).export_daily_pageviews(DAY, **arguments)
            assert caught.value.retryable
        assert counts(stored(place)) == {1: 99, 2: 4, 3: 1}
    standby.catch_up()
    assert place.exporter(replica).export_daily_pageviews(DAY)["outcome"] == "unchanged"
    execute(filled, LATE)
    standby.catch_up()
    assert place.exporter(replica).export_daily_pageviews(DAY)["outcome"] == "merged"
    # And from the primary over what the standby gave.
    execute(filled, "UPDATE analytics_pageview SET view_count = 100 WHERE id = 1")
    assert place.exporter(filled).export_daily_pageviews(DAY)["outcome"] == "merged"
    assert counts(stored(place)) == {1: 100, 2: 4, 3: 1, 9: 2}


def test_a_transaction_that_was_open_at_the_stored_snapshot_is_no_reason_to_refuse(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    with psycopg.connect(filled) as writer:
        writer.execute(LATE)  # and holds its transaction open
        exporter.export_daily_pageviews(DAY)
        assert exporter.export_daily_pageviews(DAY)["outcome"] == "unchanged"
        writer.commit()
    assert exporter.export_daily_pageviews(DAY)["added"] == 1


def test_another_database_is_refused_unless_it_is_said_to_have_moved(
    place: Place, filled: str, postgres: Postgres
) -> None:
    place.exporter(filled).export_daily_pageviews(DAY)
    moved = postgres.create_database()
    execute(moved, ADD, LATE)
    with pytest.raises(StaleSnapshot, match=saying("not the database", "accept_moved_database=True")) as caught:
        place.exporter(moved).export_daily_pageviews(DAY)
    assert caught.value.retryable
    with pytest.raises(StaleSnapshot, match="accept_moved_database=True"):
        place.exporter(views()).export_daily_pageviews(DAY)
    result = place.exporter(moved).export_daily_pageviews(DAY, accept_moved_database=True)
    assert (result["outcome"], result["added"]) == ("merged", 1)
    # From now on it is the database that the day comes from.
    assert place.exporter(moved).export_daily_pageviews(DAY)["outcome"] == "unchanged"


def test_the_file_says_where_in_the_databases_history_it_was_taken(
    place: Place, filled: str, pgbouncer: PgBouncer
) -> None:
    place.exporter(pgbouncer.database_url(filled.rsplit("/", 1)[1])).export_daily_pageviews(DAY)
    said = metadata(place)
    [(identifier, oid)] = rows_of(
        filled,
        "SELECT system_identifier::text, oid::text FROM pg_control_system(), pg_database "
        "WHERE datname = current_database()",
    )
    [(relation,)] = rows_of(filled, "SELECT 'analytics_pageview'::regclass::oid::text")
    assert said["position"].startswith(
        f"database={identifier}/{oid} timeline=1 relation={relation}:public.analytics_pageview server=primary snapshot="
    )
    assert (said["rows"], said["views"], said["ids"], said["statuses"]) == ("3", "15", "1 3", "200:2 404:1")


def test_empty_days_are_recorded_once_the_table_holds_an_earlier_day(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    with pytest.raises(DayHasNoRows, match=saying("2026-06-30", "earlier", "allow_empty=True")):
        exporter.export_daily_pageviews("2026-06-30")
    assert place.keys() == []
    result = exporter.export_daily_pageviews("2026-07-05")
    assert (result["outcome"], result["total_records"]) == ("created", 0)
    [key] = result["files"]
    assert stored(place, key).equals(SCHEMA.empty_table())
    assert exporter.verify("2026-07-05")["total_records"] == 0
    # A row that comes late is merged into the empty day.
    execute(filled, LATE.replace("2026-07-01", "2026-07-05"))
    assert exporter.export_daily_pageviews("2026-07-05")["added"] == 1
    assert stored(place, key)["id"].to_pylist() == [9]


def test_rows_at_minus_infinity_are_no_earlier_day(place: Place, filled: str) -> None:
    execute(
        filled,
        "UPDATE analytics_pageview SET date = '-infinity' WHERE id = 4",
        "DELETE FROM analytics_pageview WHERE id < 4",
    )
    with pytest.raises(DayHasNoRows):
        place.exporter(filled).export_daily_pageviews(DAY)


def test_bad_rows_fail_the_export_or_are_left_and_listed(place: Place, filled: str) -> None:
    execute(
        filled,
        "ALTER TABLE analytics_pageview ALTER view_count TYPE bigint, DROP CONSTRAINT IF EXISTS "
        "analytics_pageview_view_count_check",
        f"UPDATE analytics_pageview SET view_count = {2**40} WHERE id = 2",
    )
    exporter = place.exporter(filled)
    with pytest.raises(BadRow, match=saying("2026-07-01", "id 2", "view_count", str(2**40))) as caught:
        exporter.export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (2, "view_count")
    assert place.keys() == []
    result = exporter.export_daily_pageviews(DAY, on_bad_row="leave")
    assert (result["total_records"], result["left"]) == (2, 1)
    [left] = result["left_rows"]
    assert (left["id"], left["column"]) == (2, "view_count")
    assert str(2**40) in left["reason"]
    assert counts(stored(place)) == {1: 10, 3: 1}
    # It never goes, and is merged once it is right.
    deleted = exporter.delete_exported_pageviews(DAY)
    assert (deleted["deleted"], deleted["left"]) == (2, 1)
    assert rows_of(filled, "SELECT id FROM analytics_pageview WHERE date = '2026-07-01'") == [(2,)]
    execute(filled, "UPDATE analytics_pageview SET view_count = 4 WHERE id = 2")
    assert exporter.export_daily_pageviews(DAY)["added"] == 1
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1}


def test_bad_rows_of_a_stream_are_left_too_but_never_those_of_another_day(place: Place) -> None:
    bad = views(view_count=pa.array([10, -4, 1], pa.int64()))
    result = place.exporter(bad).export_daily_pageviews(DAY, on_bad_row="leave")
    assert ([row["id"] for row in result["left_rows"]], result["total_records"]) == ([2], 2)
    other = views(date=pa.array([DAY, DAY + datetime.timedelta(days=1), DAY]))
    with pytest.raises(BadRow, match="another day"):
        place.exporter(other).export_daily_pageviews(DAY, on_bad_row="leave")
    with pytest.raises(InvalidInput, match="on_bad_row"):
        place.exporter(other).export_daily_pageviews(DAY, on_bad_row="skip")  # type: ignore[arg-type]


def test_ids_that_repeat_are_refused_from_every_source(place: Place, filled: str) -> None:
    with pytest.raises(BadRow, match=saying("id 2", "unique")) as caught:
        place.exporter(views(id=[2, 1, 2])).export_daily_pageviews(DAY)
    assert caught.value.row_id == 2
    execute(
        filled, "CREATE TABLE twice AS TABLE analytics_pageview", "INSERT INTO twice SELECT * FROM twice WHERE id = 3"
    )
    with pytest.raises(BadRow, match=saying("id 3", "unique")):
        place.exporter(PostgresSource(filled, table="twice")).export_daily_pageviews(DAY)
    assert place.keys() == []


def test_a_stream_that_can_be_read_once_is_not_taken_for_an_empty_day(place: Place) -> None:
    """Somebody writes the day between the read and the write, so it is read again."""
    calls = []

    def source(day: datetime.date) -> Any:
        calls.append(day)
        if len(calls) > 1:
            return views().slice(0, 0)
        place.exporter(views(id=[4, 5, 6])).export_daily_pageviews(day)
        return views()

    with pytest.raises(SourceError, match=saying("3 rows", "read only once")):
        place.exporter(source).export_daily_pageviews(DAY)
    assert sorted(stored(place)["id"].to_pylist()) == [4, 5, 6]

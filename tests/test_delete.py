"""Deleting exported rows: exactly those that are safe in the store, and only when that is proven."""

from __future__ import annotations

import datetime
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource, SampleData
from parquet_analytics.exceptions import (
    CommitStateUnknown,
    ConfigurationError,
    CorruptFile,
    DayNotStored,
    DeletionRefused,
    InvalidInput,
    ParquetAnalyticsError,
    PermissionDenied,
    VerificationFailed,
)

from tests.archives import DAY, KEY, Place, execute, rows_of, saying, views
from tests.services import PgBouncer, Postgres, Standby
from tests.test_export import ADD
from tests.test_merge import LATE, counts, metadata, stored
from tests.torture.proxies import Request, S3Proxy, forward
from tests.torture.proxies import Response as Answer


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


def say(place: Place, **said: str) -> None:
    """The file says something else, as long as what it said before."""
    client, bucket, key = place.s3.client(), place.bucket, f"{place.location}/{KEY}"
    body, before = place.read(KEY), metadata(place)
    for name, value in said.items():
        assert len(value) == len(before[name])
        body = body.replace(before[name].encode(), value.encode())
    about = client.head_object(Bucket=bucket, Key=key)["Metadata"]
    about |= {name: hashlib.sha256(body).hexdigest() for name in about if name.endswith("sha256")}
    client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=about)
    assert metadata(place) == {**before, **said}


def left(url: str) -> list[int]:
    return [row for (row,) in rows_of(url, "SELECT id FROM analytics_pageview ORDER BY id")]


def test_exported_rows_go_and_late_and_changed_ones_stay_until_they_are_merged(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exported = exporter.export_daily_pageviews(DAY)
    execute(filled, "UPDATE analytics_pageview SET view_count = 11 WHERE id = 1", LATE)
    result = exporter.delete_exported_pageviews(DAY, verification=exported)
    assert {name: result[name] for name in ("deleted", "changed", "late", "busy", "changed_ids", "late_ids")} == {
        "deleted": 2,
        "changed": 1,
        "late": 1,
        "busy": 0,
        "changed_ids": [1],
        "late_ids": [9],
    }
    assert (result["date"], result["key"], result["etag"]) == ("2026-07-01", KEY, exporter.verify(DAY)["etag"])
    # The same rows, which were verified: the deletion goes on.
    assert exporter.delete_exported_pageviews(DAY, verification=exported)["deleted"] == 0
    assert left(filled) == [1, 4, 9]  # and the other day's row
    merged = exporter.export_daily_pageviews(DAY)
    assert (merged["added"], merged["changed"], merged["kept"]) == (1, 1, 2)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 2
    assert left(filled) == [4]
    assert counts(stored(place)) == {1: 11, 2: 4, 3: 1, 9: 2}
    # Nothing is left to do, and saying so is no error.
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 0


CHANGES = {
    "project_id": "8",
    "version_id": "NULL",
    "path": "'/INSTALL.html'",
    "full_path": "NULL",
    "view_count": "5",
    "status": "404",
    "date": "'2026-07-02'",
}


@pytest.mark.parametrize("column", CHANGES)
def test_a_row_of_which_any_copied_column_changed_stays(place: Place, filled: str, column: str) -> None:
    execute(filled, "INSERT INTO projects_project (id, name, slug) VALUES (8, 'Other', 'other')")
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, f"UPDATE analytics_pageview SET {column} = {CHANGES[column]} WHERE id = 2")
    result = exporter.delete_exported_pageviews(DAY)
    assert (result["deleted"], left(filled)) == (2, [2, 4])
    assert result["changed_ids"] == ([] if column == "date" else [2])


def test_slugs_and_columns_that_are_not_copied_do_not_count(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    execute(filled, "ALTER TABLE analytics_pageview ADD note text")
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        "UPDATE projects_project SET slug = 'renamed'",
        "UPDATE builds_version SET slug = 'stable'",
        "UPDATE analytics_pageview SET note = 'seen'",
    )
    assert exporter.delete_exported_pageviews(DAY, lose_columns=["note"])["deleted"] == 3


def test_text_is_compared_by_bytes_whatever_the_collation_says(place: Place, filled: str) -> None:
    execute(
        filled,
        "CREATE COLLATION nobody_cares (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
        "ALTER TABLE analytics_pageview ALTER path TYPE varchar(4096) COLLATE nobody_cares",
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(filled, "UPDATE analytics_pageview SET path = '/INDEX.html' WHERE id = 1")
    assert rows_of(filled, "SELECT id FROM analytics_pageview WHERE path = '/index.html' AND id = 1") == [(1,)]
    assert exporter.delete_exported_pageviews(DAY)["changed_ids"] == [1]


@pytest.fixture
def overtaken(place: Place) -> Iterator[Callable[..., ParquetAnalyticsExporter]]:
    """An exporter whose n-th write of the day's file is overtaken by something else that is done to the day: before it
    takes effect, or when it has `landed` and was not read back yet. When that gives a number, so many reads are
    answered after it, and no more."""
    proxy = S3Proxy(place.s3.endpoint_url)
    writes: list[str] = []
    outcomes: list[object] = []

    def exporter(
        url: str, write: int, meanwhile: Callable[[], object], landed: bool = False
    ) -> ParquetAnalyticsExporter:
        def passed(address: str, request: Request) -> Answer:
            if request.method == "PUT" and request.path.split("?")[0].endswith(KEY):
                writes.append(request.path)
                if len(writes) == write:
                    answer = forward(address, request) if landed else None
                    outcomes.append(meanwhile())
                    return answer or forward(address, request)
            if request.method == "GET" and outcomes and isinstance(outcomes[0], int):
                outcomes[0] -= 1
                if outcomes[0] < 0:
                    return Answer.error(403, "AccessDenied")
            return forward(address, request)

        proxy.rewrite = passed
        options = place.options(endpoint_url=proxy.url)
        return ParquetAnalyticsExporter(place.url, source=PostgresSource(url), storage_options=options)

    yield exporter
    proxy.close()


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize(("write", "first", "other"), [(1, 0, 3), (2, 3, 0)])
def test_two_deletions_of_a_day_end_both(
    place: Place, filled: str, overtaken: Any, write: int, first: int, other: int, landed: bool
) -> None:
    """Each writes into the file what it did; whoever comes later finds the same rows there, and writes once more."""
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    before = stored(place)
    results = []
    meanwhile = overtaken(filled, write, lambda: results.append(exporter.delete_exported_pageviews(DAY)), landed)
    results.append(meanwhile.delete_exported_pageviews(DAY))
    assert [result["deleted"] for result in results] == [other, first]
    assert results[-1]["etag"] == exporter.verify(DAY)["etag"]
    assert left(filled) == [4]
    assert stored(place).equals(before)


@pytest.mark.parametrize(
    ("landed", "says"), [(False, "was changed by somebody else"), (True, "by somebody else meanwhile")]
)
@pytest.mark.parametrize(("write", "kept"), [(1, [1, 2, 3, 9]), (2, [9])])
def test_a_deletion_that_an_export_overtakes_is_refused(
    place: Place, filled: str, overtaken: Any, write: int, kept: list[int], landed: bool, says: str
) -> None:
    """Other rows are in the file now: they have to be looked at first."""
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)

    def export() -> None:
        execute(filled, LATE)
        exporter.export_daily_pageviews(DAY)

    with pytest.raises(ParquetAnalyticsError, match=saying(KEY, says)) as caught:
        overtaken(filled, write, export, landed).delete_exported_pageviews(DAY)
    assert caught.value.retryable is True
    assert left(filled) == sorted([*kept, 4])
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == len(kept)
    assert stored(place).num_rows == 4


def test_a_deletion_that_damage_overtakes_is_refused(
    place: Place, filled: str, overtaken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place.exporter(filled).export_daily_pageviews(DAY)
    with pytest.raises(ParquetAnalyticsError, match=saying(KEY, "was changed by somebody else")):
        overtaken(filled, 1, lambda: place.write(KEY, b"PAR1 and no more")).delete_exported_pageviews(DAY)
    assert "pageviews_2026-07-01.parquet" in caplog.text
    assert "were deleted before" not in caplog.text
    assert left(filled) == [1, 2, 3, 4]


def test_a_file_that_is_replaced_between_batches_ends_the_deletion(
    place: Place, filled: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However long there is between them."""
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)

    def replace(looked_at: int, _: int) -> None:
        if looked_at == 1:
            place.write(KEY, b"PAR1 and no more")

    with pytest.raises(ParquetAnalyticsError, match=saying(KEY, "by somebody else during the deletion")):
        exporter.delete_exported_pageviews(DAY, batch_rows=1, pause=1.5, progress=replace)
    assert len(left(filled)) == 3
    assert "1 rows were deleted before this failed" in caplog.text


def test_another_deletion_between_batches_is_no_reason_to_end(place: Place, filled: str) -> None:
    """It writes into the file what it did; the rows are the same."""
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    others: list[int] = []

    def delete(looked_at: int, _: int) -> None:
        if looked_at == 1 and not others:
            others.append(place.exporter(filled).delete_exported_pageviews(DAY)["deleted"])

    result = exporter.delete_exported_pageviews(DAY, batch_rows=1, pause=1.5, progress=delete)
    assert (result["deleted"], others) == (1, [2])
    assert left(filled) == [4]


@pytest.mark.parametrize(("reads", "error"), [(0, CommitStateUnknown), (1, PermissionDenied)])
def test_a_deletion_that_cannot_see_what_overtook_it_says_why(
    place: Place, filled: str, overtaken: Any, reads: int, error: type[ParquetAnalyticsError]
) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)

    def meanwhile() -> int:
        exporter.delete_exported_pageviews(DAY)
        return reads

    with pytest.raises(error, match=saying(KEY, "s3:GetObject")):
        overtaken(filled, 1, meanwhile).delete_exported_pageviews(DAY)
    assert left(filled) == [4]


def test_rows_that_somebody_has_locked_are_left_and_nobody_waits_for_them(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with psycopg.connect(filled) as other:
        other.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE id = 1")
        result = exporter.delete_exported_pageviews(DAY)
        assert (result["deleted"], result["busy"], result["busy_ids"]) == (2, 1, [1])
        other.commit()
    assert rows_of(filled, "SELECT id, view_count FROM analytics_pageview WHERE date = '2026-07-01'") == [(1, 11)]
    result = exporter.delete_exported_pageviews(DAY)
    assert (result["deleted"], result["changed_ids"]) == (0, [1])


def test_batches_are_transactions_of_their_own_and_a_deletion_can_be_broken_off_and_resumed(
    place: Place, database: str, pgbouncer: PgBouncer
) -> None:
    SampleData(rows_per_day=5_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(database, DAY, DAY)
    exporter = place.exporter(pgbouncer.database_url(database.rsplit("/", 1)[1]))
    exporter.export_daily_pageviews(DAY)

    class Enough(Exception):
        pass

    seen = []

    def progress(rows: int, total: int | None) -> None:
        seen.append((rows, total))
        if rows >= 1_000:
            raise Enough

    with pytest.raises(Enough):
        exporter.delete_exported_pageviews(DAY, batch_rows=100, pause=0.02, progress=progress)
    kept = len(left(database))
    assert 0 < kept <= 4_000
    assert kept % 100 == 0
    assert seen[-1][1] == 5_000
    result = exporter.delete_exported_pageviews(DAY, batch_rows=700)
    assert (result["deleted"], result["batches"], left(database)) == (kept, 8, [])


def test_rows_that_no_file_can_hold_stay_and_are_counted(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    late = LATE.replace("200", "100000")
    execute(filled, "UPDATE analytics_pageview SET status = 100000 WHERE id = 1", late)
    result = exporter.delete_exported_pageviews(DAY)
    assert {name: result[name] for name in ("deleted", "changed_ids", "late", "left")} == {
        "deleted": 2,
        "changed_ids": [1],
        "late": 0,
        "left": 2,
    }
    assert left(filled) == [1, 4, 9]
    assert metadata(place)["remaining"] == "1"


def test_a_rate_and_a_pause_hold_the_deletion_back(place: Place, database: str) -> None:
    SampleData(rows_per_day=1_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(database, DAY, DAY)
    exporter = place.exporter(database)
    exporter.export_daily_pageviews(DAY)
    result = exporter.delete_exported_pageviews(DAY, batch_rows=100, max_rows_per_second=1_000)
    assert result["seconds"] >= 0.95
    assert result["deleted"] == 1_000
    # Between two transactions, not before the first.
    assert exporter.delete_exported_pageviews(DAY, batch_rows=500, pause=0.5)["seconds"] >= 0.5
    result = exporter.delete_exported_pageviews(DAY, batch_rows=1_000, pause=30.0)
    assert (result["batches"], result["seconds"] < 20) == (1, True)


def test_a_replica_that_is_behind_is_waited_for(place: Place, database: str, standby: Standby) -> None:
    SampleData(rows_per_day=2_000, projects=20, growth=0, weekly_rhythm=False).load_postgres(database, DAY, DAY)
    exporter = place.exporter(database)
    exporter.export_daily_pageviews(DAY)
    done: list[dict[str, Any]] = []
    # Each batch is replayed late, so replay_lag grows while the standby is paused.
    with standby.held_back():
        deletion = threading.Thread(
            target=lambda: done.append(
                exporter.delete_exported_pageviews(DAY, batch_rows=100, pause=0.1, max_replica_lag=0.5)
            )
        )
        deletion.start()
        time.sleep(4)
        waiting = len(left(database))
        time.sleep(1)
        assert 0 < len(left(database)) == waiting
    deletion.join(30)
    assert [result["deleted"] for result in done] == [2_000]


def test_who_may_not_see_replicas_is_told_which_role_is_missing(place: Place, database: str, standby: Standby) -> None:
    execute(
        database,
        ADD,
        "DROP ROLE IF EXISTS cleaner",
        "CREATE ROLE cleaner LOGIN PASSWORD 'broom'",
        "GRANT SELECT, DELETE ON analytics_pageview TO cleaner",
        "GRANT SELECT ON projects_project, builds_version TO cleaner",
    )
    place.exporter(database).export_daily_pageviews(DAY)
    cleaner = database.replace("postgres:" + database.split(":")[2].split("@")[0], "cleaner:broom")
    exporter = place.exporter(cleaner)
    with pytest.raises(ParquetAnalyticsError, match=saying("UPDATE", "cleaner")):
        exporter.delete_exported_pageviews(DAY)
    execute(database, "GRANT UPDATE ON analytics_pageview TO cleaner")
    with pytest.raises(ConfigurationError, match=saying("pg_monitor", "max_replica_lag")):
        exporter.delete_exported_pageviews(DAY, max_replica_lag=1)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3
    execute(database, "DROP OWNED BY cleaner", "DROP ROLE cleaner")


# What has to be refused, and that nothing is deleted then.


def test_local_and_memory_stores_are_refused_unless_allowed(filled: str, tmp_path: Path) -> None:
    for url in (tmp_path.as_uri(), "memory://deletion"):
        exporter = ParquetAnalyticsExporter(url, source=filled)
        exporter.export_daily_pageviews(DAY)
        with pytest.raises(DeletionRefused, match=saying("2026-07-01", url[:9], "allow_local_delete=True")) as caught:
            exporter.delete_exported_pageviews(DAY)
        assert caught.value.day == DAY
        assert not caught.value.retryable
    assert left(filled) == [1, 2, 3, 4]
    assert exporter.delete_exported_pageviews(DAY, allow_local_delete=True)["deleted"] == 3


def test_a_day_that_is_not_stored_or_not_over_is_refused(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    with pytest.raises(DayNotStored, match=saying(KEY, "export")) as caught:
        exporter.delete_exported_pageviews(DAY)
    assert caught.value.key == KEY
    today = datetime.datetime.now(datetime.UTC).date()
    execute(filled, f"UPDATE analytics_pageview SET date = '{today}' WHERE id = 4")
    exporter.export_daily_pageviews(today, allow_open_day=True)
    with pytest.raises(DeletionRefused, match=saying(today.isoformat(), "not over")):
        exporter.delete_exported_pageviews(today)
    assert left(filled) == [1, 2, 3, 4]


@pytest.mark.parametrize(("taken", "enough"), [("23:59:59.999999", False), ("24:00:00", True), ("24:00:01", True)])
def test_a_file_that_was_exported_before_the_day_was_over_is_refused(
    place: Place, filled: str, taken: str, enough: bool
) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    hours, minutes, seconds = taken.split(":")
    time = datetime.timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    time += datetime.datetime.combine(DAY, datetime.time(), datetime.UTC)
    say(place, snapshot_time=time.isoformat(timespec="microseconds").replace("+00:00", "Z"))
    if enough:
        assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3
        return
    with pytest.raises(DeletionRefused, match=saying(KEY, "before the day was over", "export it again")):
        exporter.delete_exported_pageviews(DAY)
    assert left(filled) == [1, 2, 3, 4]
    assert metadata(place).keys().isdisjoint({"remaining"})
    # As the message says.
    exporter.export_daily_pageviews(DAY)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3


def test_a_version_that_nobody_verified_is_refused(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exported = exporter.export_daily_pageviews(DAY)
    execute(filled, LATE)
    verified = exporter.verify(DAY)
    assert verified["etag"] == exported["etag"]
    merged = exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying(exported["etag"], merged["etag"], "verify it again")):
        exporter.delete_exported_pageviews(DAY, verification=verified)
    with pytest.raises(InvalidInput, match="verification"):
        exporter.delete_exported_pageviews(DAY, verification={"etag": merged["etag"], "date": "2026-07-02"})
    assert left(filled) == [1, 2, 3, 4, 9]


def test_damaged_bytes_and_objects_without_a_hash_are_refused(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    good, client = place.read(KEY), place.s3.client()
    head = client.head_object(Bucket=place.bucket, Key=place._full(KEY))
    middle = len(good) // 3
    for body in (good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], good[:-9], b""):
        client.put_object(Bucket=place.bucket, Key=place._full(KEY), Body=body, Metadata=head["Metadata"])
        for call in (exporter.delete_exported_pageviews, exporter.verify):
            with pytest.raises((VerificationFailed, CorruptFile), match=KEY) as caught:
                call(DAY)
            assert isinstance(caught.value, VerificationFailed)
    place.write(KEY, good)  # as `aws s3 cp` from elsewhere leaves it: without metadata
    assert exporter.verify(DAY)["total_records"] == 3
    with pytest.raises(DeletionRefused, match=saying("SHA-256", "replace=True")):
        exporter.delete_exported_pageviews(DAY)
    assert left(filled) == [1, 2, 3, 4]


def test_another_database_a_standby_and_a_table_without_unique_ids_are_refused(
    place: Place, filled: str, postgres: Postgres, standby: Standby
) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    other = postgres.create_database()
    execute(other, ADD)
    with pytest.raises(DeletionRefused, match=saying("another database", "accept_moved_database=True")):
        exporter.delete_exported_pageviews(DAY, database=other)
    standby.catch_up()
    with pytest.raises(DeletionRefused, match=saying("standby", "primary")):
        exporter.delete_exported_pageviews(DAY, database=standby.database_url(filled))
    execute(filled, "CREATE TABLE twin AS TABLE analytics_pageview")
    with pytest.raises(DeletionRefused, match=saying("unique", "twin")):
        exporter.delete_exported_pageviews(DAY, database=PostgresSource(filled, table="twin"))
    name = filled.rsplit("/", 1)[1]
    execute(postgres.url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DeletionRefused, match="default_transaction_read_only"):
        exporter.delete_exported_pageviews(DAY)
    execute(postgres.url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    for url in (filled, other):
        assert left(url) == [1, 2, 3, 4]
    # Exported from the standby, deleted from the primary.
    place.exporter(standby.database_url(filled)).export_daily_pageviews(DAY)
    assert exporter.delete_exported_pageviews(DAY, database=filled)["deleted"] == 3
    assert exporter.delete_exported_pageviews(DAY, database=other, accept_moved_database=True)["deleted"] == 3


def test_rows_that_no_database_counted_are_refused(place: Place, filled: str) -> None:
    exporter = place.exporter(views())
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(ConfigurationError, match="database="):
        exporter.delete_exported_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("arrow stream", "accept_moved_database=True")):
        exporter.delete_exported_pageviews(DAY, database=filled)
    assert exporter.delete_exported_pageviews(DAY, database=filled, accept_moved_database=True)["deleted"] == 3


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"batch_rows": 0}, ["batch_rows"]),
        ({"pause": -1.0}, ["pause", "-1"]),
        ({"pause": float("nan")}, ["pause"]),
        ({"max_rows_per_second": 0}, ["max_rows_per_second"]),
        ({"max_replica_lag": -2.0}, ["max_replica_lag"]),
        ({"database": 5}, ["database", "int"]),
    ],
)
def test_senseless_arguments_are_named(place: Place, filled: str, arguments: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InvalidInput, match=saying(*parts)):
        place.exporter(filled).delete_exported_pageviews(DAY, **arguments)


def test_a_trigger_that_keeps_rows_is_noticed_and_the_batch_rolled_back(place: Place, filled: str) -> None:
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    execute(
        filled,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF old.id = 2 THEN RETURN NULL; END IF; RETURN old; END $$",
        "CREATE TRIGGER keep BEFORE DELETE ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    with pytest.raises(DeletionRefused, match=saying("3 locked rows", "deleted 2", "trigger")):
        exporter.delete_exported_pageviews(DAY, allow_cascades=True)
    assert left(filled) == [1, 2, 3, 4]


def test_rows_of_a_partitioned_table(place: Place, database: str) -> None:
    execute(
        database,
        "ALTER TABLE analytics_pageview RENAME TO before",
        "CREATE TABLE analytics_pageview (LIKE before INCLUDING DEFAULTS) PARTITION BY RANGE (date)",
        "ALTER TABLE analytics_pageview ADD PRIMARY KEY (id, date)",
        "CREATE TABLE june PARTITION OF analytics_pageview FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')",
        "CREATE TABLE july PARTITION OF analytics_pageview FOR VALUES FROM ('2026-07-01') TO ('2026-08-01')",
        "INSERT INTO projects_project (id, name, slug) VALUES (7, 'Docs', 'docs')",
        "INSERT INTO analytics_pageview (id, path, view_count, date, status, project_id)"
        " SELECT n, '/' || n, n, date '2026-06-30' + n % 2, 200, 7 FROM generate_series(1, 100) n",
    )
    exporter = place.exporter(database)
    assert exporter.export_daily_pageviews("2026-07-01")["total_views"] == sum(range(1, 100, 2))
    execute(database, "UPDATE analytics_pageview SET view_count = 1000 WHERE id = 3")
    result = exporter.delete_exported_pageviews("2026-07-01")
    assert (result["deleted"], result["changed_ids"], result["late"]) == (49, [3], 0)
    assert rows_of(database, "SELECT date::text, count(*) FROM analytics_pageview GROUP BY 1 ORDER BY 1") == [
        ("2026-06-30", 50),
        ("2026-07-01", 1),
    ]

"""What a PostgreSQL source can be told: roles, settings, times, other keys, a standby and its primary."""

from __future__ import annotations

import datetime
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource
from parquet_analytics.exceptions import ConfigurationError, DatabaseError, SourceSchemaError, StaleSnapshot

from tests.services import PgBouncer, Postgres, Standby

DAY = datetime.date(2026, 7, 1)
ROWS = [(1, "/a", 200, 3), (2, "/b", 404, 4)]


def fill(url: str, day: datetime.date = DAY) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO projects_project (id, name, slug) VALUES (1, 'docs', 'docs') ON CONFLICT DO NOTHING"
        )
        for number, path, status, views in ROWS:
            connection.execute(
                "INSERT INTO analytics_pageview (path, view_count, date, status, project_id)"
                " VALUES (%s, %s, %s, %s, 1)",
                [f"{path}{number}", views, day, status],
            )


def exported(folder: Path, source: PostgresSource, day: datetime.date = DAY, **options: Any) -> dict[str, Any]:
    return ParquetAnalyticsExporter(folder.as_uri(), source=source).export_daily_pageviews(day, **options)


@pytest.fixture
def times(database: str) -> str:
    """A table that holds times, two of the day's at its very edges, and others just outside."""
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO projects_project (id, name, slug) VALUES (1, 'docs', 'docs')")
        connection.execute(
            "CREATE TABLE hits (number bigint PRIMARY KEY, site integer, url text, n integer, at timestamptz)"
        )
        moments = ["2026-06-30 23:59:59.999999", "2026-07-01 00:00:00", "2026-07-01 12:00:00",
                   "2026-07-01 23:59:59.999999", "2026-07-02 00:00:00"]  # fmt: skip
        for number, moment in enumerate(moments, 1):
            connection.execute(
                "INSERT INTO hits VALUES (%s, 1, %s, %s, %s)", [number, f"/{number}", number, f"{moment}+00"]
            )
    return database


HITS = {"id": "number", "project_id": "site", "path": "url", "view_count": "n", "date": "at", "version_id": None,
        "full_path": None, "status": None}  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def test_times_are_cut_into_utc_days_whatever_the_sessions_zone(times: str, tmp_path: Path, zone: str) -> None:
    source = PostgresSource(f"{times}?options=-c%20timezone%3D{zone}", table="hits", versions_table=None, columns=HITS)
    result = exported(tmp_path, source)
    assert pq.read_table(tmp_path / next(iter(result["files"])))["id"].to_pylist() == [2, 3, 4]
    assert result["source_records"] == 3
    assert result["source_views"] == 2 + 3 + 4
    assert ParquetAnalyticsExporter(tmp_path.as_uri(), source=source).verify(DAY, against="database")["missing"] == 0


def test_rows_with_times_are_deleted_by_utc_day(times: str, tmp_path: Path) -> None:
    source = PostgresSource(times, table="hits", versions_table=None, columns=HITS)
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=source)
    exporter.export_daily_pageviews(DAY)
    assert exporter.delete_exported_pageviews(DAY, allow_local_delete=True)["deleted"] == 3
    with psycopg.connect(times) as connection:
        assert connection.execute("SELECT number FROM hits ORDER BY 1").fetchall() == [(1,), (5,)]
    # The day after is exported by itself, and there is an earlier row, so the emptied day is known to be empty.
    assert exporter.export_daily_pageviews("2026-07-02")["total_records"] == 1
    assert exporter.export_daily_pageviews(DAY)["outcome"] == "unchanged"


def test_times_without_a_zone_are_refused(times: str, tmp_path: Path) -> None:
    with psycopg.connect(times) as connection:
        connection.execute("ALTER TABLE hits ALTER at TYPE timestamp")
    source = PostgresSource(times, table="hits", versions_table=None, columns=HITS)
    with pytest.raises(SourceSchemaError, match="without a time zone it cannot be told") as caught:
        exported(tmp_path, source)
    assert caught.value.column == "at"


def test_ids_may_refer_to_other_keys_than_id(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE sites (id integer, code integer PRIMARY KEY, domain text)")
        connection.execute("CREATE TABLE editions (id integer, nr integer PRIMARY KEY, label text)")
        connection.execute("INSERT INTO sites VALUES (7, 70, 'seventy.example'), (70, 7, 'wrong.example')")
        connection.execute("INSERT INTO editions VALUES (8, 80, 'eighty'), (80, 8, 'wrong')")
        connection.execute("ALTER TABLE analytics_pageview DROP CONSTRAINT analytics_pageview_project_id_fkey")
        connection.execute("ALTER TABLE analytics_pageview DROP CONSTRAINT analytics_pageview_version_id_fkey")
        connection.execute(
            "INSERT INTO analytics_pageview (path, view_count, date, status, project_id, version_id)"
            " VALUES ('/', 1, %s, 200, 70, 80)",
            [DAY],
        )
    columns = {"project_key": "code", "project_slug": "domain", "version_key": "nr", "version_slug": "label"}
    source = PostgresSource(database, projects_table="sites", versions_table="editions", columns=columns)
    result = exported(tmp_path, source)
    [row] = pq.read_table(tmp_path / next(iter(result["files"]))).to_pylist()
    assert (row["project_slug"], row["version_slug"]) == ("seventy.example", "eighty")


@pytest.fixture
def role(postgres: Postgres, database: str) -> str:
    """A user who may read the page views only in another role."""
    fill(database)
    name = database.rsplit("/", 1)[1]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE reader_{name} NOLOGIN")
        connection.execute(
            f"CREATE ROLE login_{name} LOGIN NOINHERIT PASSWORD '{postgres.password}' IN ROLE reader_{name}"
        )
        connection.execute(f"GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader_{name}")
    return name


@pytest.mark.parametrize("pooled", [False, True])
def test_transactions_run_under_an_assumed_role(
    postgres: Postgres, request: pytest.FixtureRequest, role: str, tmp_path: Path, pooled: bool
) -> None:
    if pooled:
        # The pooler knows one user only.
        pgbouncer: PgBouncer = request.getfixturevalue("pgbouncer")
        url = pgbouncer.database_url(role)
        with psycopg.connect(postgres.database_url(role), autocommit=True) as connection:
            connection.execute(
                f"CREATE VIEW who AS SELECT * FROM analytics_pageview WHERE current_user = 'reader_{role}'"
            )
            connection.execute(f"GRANT SELECT ON who TO reader_{role}")
        plain, assumed = PostgresSource(url, table="who"), PostgresSource(url, table="who", role=f"reader_{role}")
        assert exported(tmp_path, plain, allow_empty=True)["total_records"] == 0
        assert exported(tmp_path, assumed)["total_records"] == 2
        return
    url = postgres.database_url(role, user=f"login_{role}")
    with pytest.raises(DatabaseError, match="grant SELECT"):
        exported(tmp_path, PostgresSource(url))
    source = PostgresSource(url, role=f"reader_{role}")
    assert exported(tmp_path, source)["total_records"] == 2
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=source)
    assert exporter.delete_exported_pageviews(DAY, allow_local_delete=True)["deleted"] == 2


@pytest.mark.parametrize("pooled", [False, True])
def test_settings_in_the_options_reach_every_transaction(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, pooled: bool
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "Le\'s docs"')
        connection.execute('ALTER TABLE analytics_pageview SET SCHEMA "Le\'s docs"')
        connection.execute('SET search_path = "Le\'s docs", public')
        connection.execute("INSERT INTO projects_project (id, name, slug) VALUES (1, 'docs', 'docs')")
        connection.execute(
            "INSERT INTO analytics_pageview (path, view_count, date, status, project_id) VALUES ('/', 5, %s, 200, 1)",
            [DAY],
        )
    name = database.rsplit("/", 1)[1]
    url = request.getfixturevalue("pgbouncer").database_url(name) if pooled else database
    with pytest.raises(SourceSchemaError, match="no table analytics_pageview"):
        exported(tmp_path, PostgresSource(url))
    path = """-c%20search_path%3D%22Le's%5C%20docs%22,public%20--statement_timeout%3D1"""
    source = PostgresSource(f"{url}?options={path}")
    assert exported(tmp_path, source)["total_views"] == 5
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=source)
    assert exporter.delete_exported_pageviews(DAY, allow_local_delete=True)["deleted"] == 1


@pytest.mark.parametrize("options", ["-F", "-c", "-c geqo", "-c a;b=c", "--=x", "hunter2"])
def test_other_startup_options_are_refused_by_name(options: str) -> None:
    with pytest.raises(ConfigurationError, match="options: only settings") as caught:
        PostgresSource(f"host=127.0.0.1 options='{options}'")
    assert "hunter2" not in str(caught.value)


class TestStandby:
    """A day is read from a standby only when all of it is there."""

    @pytest.fixture
    def pair(self, database: str, standby: Standby) -> tuple[str, str]:
        fill(database)
        standby.catch_up()
        return database, standby.database_url(database)

    def test_a_day_is_read_once_replay_has_passed_its_end(self, pair: tuple[str, str], tmp_path: Path) -> None:
        result = exported(tmp_path, PostgresSource(pair[1]))
        assert result["standby"] is True
        assert result["total_records"] == 2
        assert "server=standby" in result["position"]

    def test_replay_that_has_not_passed_the_grace_is_a_reason_to_wait(
        self, pair: tuple[str, str], tmp_path: Path
    ) -> None:
        yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
        fill(pair[0], yesterday)
        grace = 2 * 86_400.0
        for options in ({}, {"primary": pair[0]}):
            with pytest.raises(StaleSnapshot, match="try again") as caught:
                exported(tmp_path, PostgresSource(pair[1], standby_grace=grace, **options), yesterday)
            assert caught.value.retryable
            assert caught.value.day == yesterday
        assert list(tmp_path.rglob("*.parquet")) == []

    def test_a_standby_that_is_held_back_is_refused_although_it_shows_rows(
        self, pair: tuple[str, str], standby: Standby, tmp_path: Path
    ) -> None:
        # As if the day had ended just now: replay stands before that moment.
        with standby.held_back():
            fill(pair[0], DAY + datetime.timedelta(days=1))
            day = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
            grace = (datetime.datetime.now(datetime.UTC) - datetime.datetime.combine(
                day + datetime.timedelta(days=1), datetime.time.min, datetime.UTC)).total_seconds()  # fmt: skip
            fill(pair[0], day)
            with pytest.raises(StaleSnapshot, match="has to be"):
                exported(tmp_path, PostgresSource(pair[1], standby_grace=grace, primary=pair[0]), day)
        standby.catch_up()
        assert (
            exported(tmp_path, PostgresSource(pair[1], standby_grace=grace, primary=pair[0]), day)["total_records"] == 2
        )

    def test_an_idle_primary_is_no_reason_to_wait(
        self, pair: tuple[str, str], postgres: Postgres, standby: Standby, tmp_path: Path
    ) -> None:
        """Nothing was committed since the grace ended: the primary says so, to a user without special rights."""
        name = pair[0].rsplit("/", 1)[1]
        with psycopg.connect(pair[0], autocommit=True) as connection:
            connection.execute(f"CREATE ROLE plain_{name} LOGIN PASSWORD '{postgres.password}'")
            connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain_{name}")
        standby.catch_up()
        now = datetime.datetime.now(datetime.UTC)
        day = now.date() - datetime.timedelta(days=1)
        # The last transaction was before this moment, and the primary's clock is after it.
        needed = now + datetime.timedelta(seconds=1)
        grace = (needed - datetime.datetime.combine(now.date(), datetime.time.min, datetime.UTC)).total_seconds()
        while datetime.datetime.now(datetime.UTC) < needed:
            pass
        replica, primary = (url.replace("//postgres:", f"//plain_{name}:") for url in (pair[1], pair[0]))
        with pytest.raises(StaleSnapshot, match="If its primary was merely idle, name the primary"):
            exported(tmp_path, PostgresSource(replica, standby_grace=grace), day, allow_empty=True)
        source = PostgresSource(replica, standby_grace=grace, primary=primary)
        assert exported(tmp_path, source, day)["total_records"] == 0

    def test_a_standby_that_was_cut_off_is_refused_until_it_has_caught_up(
        self, pair: tuple[str, str], standby: Standby, tmp_path: Path
    ) -> None:
        """What its receiver says about itself is not believed, neither then nor when it has just reconnected."""
        now = datetime.datetime.now(datetime.UTC)
        day = now.date() - datetime.timedelta(days=1)
        with standby.cut_off():
            fill(pair[0], day)
            needed = datetime.datetime.now(datetime.UTC)
            midnight = datetime.datetime.combine(now.date(), datetime.time.min, datetime.UTC)
            grace = (needed - midnight).total_seconds()
            for options in ({}, {"primary": pair[0]}):
                with pytest.raises(StaleSnapshot, match="is a standby that is known to have replayed until"):
                    exported(tmp_path, PostgresSource(pair[1], standby_grace=grace, **options), day, allow_empty=True)
        standby.catch_up()
        source = PostgresSource(pair[1], standby_grace=grace, primary=pair[0])
        assert exported(tmp_path, source, day)["total_records"] == 2

    def test_an_empty_day_is_confirmed_by_the_primary(
        self, pair: tuple[str, str], standby: Standby, tmp_path: Path
    ) -> None:
        with standby.held_back():
            fill(pair[0], DAY + datetime.timedelta(days=1))
            later = DAY + datetime.timedelta(days=1)
            with pytest.raises(StaleSnapshot, match="its primary has 2; try again"):
                exported(tmp_path, PostgresSource(pair[1], primary=pair[0]), later)
        standby.catch_up()
        assert exported(tmp_path, PostgresSource(pair[1], primary=pair[0]), later)["total_records"] == 2

    def test_a_standby_is_no_primary(self, pair: tuple[str, str], tmp_path: Path) -> None:
        yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
        source = PostgresSource(pair[1], primary=pair[1], standby_grace=2 * 86_400.0)
        with pytest.raises(ConfigurationError, match="named as the primary, and is a standby"):
            exported(tmp_path, source, yesterday)

    def test_a_recovery_conflict_is_worth_a_retry(
        self, pair: tuple[str, str], standby: Standby, tmp_path: Path
    ) -> None:
        """Rows are deleted and vacuumed on the primary while the standby's snapshot still needs them."""
        with psycopg.connect(pair[0], autocommit=True) as connection:
            connection.execute(
                "INSERT INTO analytics_pageview (path, view_count, date, status, project_id)"
                " SELECT '/' || n, 1, %s, 200, 1 FROM generate_series(1, 8000) n",
                [DAY],
            )
            # A millisecond a row, so that there is time for what follows.
            connection.execute("CREATE VIEW slow AS SELECT * FROM analytics_pageview WHERE pg_sleep(0.001)::text = ''")
        standby.catch_up()
        seen = []

        def conflict(done: int, _total: int | None) -> None:
            seen.append(done)
            if len(seen) == 2:
                with psycopg.connect(pair[0], autocommit=True) as connection:
                    connection.execute("DELETE FROM analytics_pageview WHERE view_count = 1")
                    connection.execute("VACUUM analytics_pageview")

        conflict.wants_total = False  # type: ignore[attr-defined]
        with pytest.raises(DatabaseError, match="conflict with recovery") as caught:
            exported(tmp_path, PostgresSource(pair[1], table="slow"), progress=conflict)
        assert caught.value.retryable
        assert caught.value.sqlstate == "40001"
        assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize("options", ["", "?options=-c%20search_path%3Dpublic%20-c%20work_mem%3D8MB"])
def test_an_export_that_waits_for_an_alter_table_sees_its_rows(database: str, tmp_path: Path, options: str) -> None:
    """Nothing may take the snapshot before the table is locked: the rewritten table would look empty."""
    fill(database)
    ended: list[dict[str, Any]] = []
    with psycopg.connect(database) as blocker:
        blocker.execute("ALTER TABLE analytics_pageview ALTER COLUMN view_count TYPE bigint")
        source = PostgresSource(database + options)
        waiting = threading.Thread(target=lambda: ended.append(exported(tmp_path, source, allow_empty=True)))
        waiting.start()
        with psycopg.connect(database, autocommit=True) as watcher:
            while watcher.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
                time.sleep(0.02)
        blocker.commit()
    waiting.join(20)
    assert [result["total_records"] for result in ended] == [2]


def test_a_list_of_schemas_is_taken_apart_as_the_server_does(database: str, tmp_path: Path) -> None:
    fill(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "A ""b"", c"')
        connection.execute('ALTER TABLE analytics_pageview SET SCHEMA "A ""b"", c"')
    path = """-csearch_path="$user",PUBLIC\\ ,"A\\ ""b"",\\ c\""""
    source = PostgresSource(f"{database}?{urlencode({'options': path}, quote_via=quote)}")
    assert exported(tmp_path, source)["total_records"] == 2


def test_the_database_is_known_by_the_same_name_in_a_role_with_fewer_rights(
    postgres: Postgres, database: str, role: str, tmp_path: Path
) -> None:
    """Who may ask for the cluster's identifier is the role, in the export as in the deletion."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    source = PostgresSource(database, role=f"reader_{role}", database_id="docs")
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=source)
    assert exporter.export_daily_pageviews(DAY)["position"].startswith("database=name:docs/")
    assert exporter.delete_exported_pageviews(DAY, allow_local_delete=True)["deleted"] == 2


def test_a_caller_hears_something_each_second_while_nothing_changes(database: str, tmp_path: Path) -> None:
    fill(database)
    calls = []
    with psycopg.connect(database) as blocker:
        blocker.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")

        def note(done: int, total: int | None) -> None:
            calls.append((done, total))
            if len(calls) == 3:
                blocker.rollback()

        note.wants_total = False  # type: ignore[attr-defined]
        result = exported(tmp_path, PostgresSource(database), progress=note)
    assert result["total_records"] == 2
    assert len(calls) >= 3
    assert {total for _, total in calls} == {None}

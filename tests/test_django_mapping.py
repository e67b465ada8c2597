"""Which rows are read, from where and how: mapped models, transactions, replicas, connection options."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from django.db import connection, connections, models, transaction
from django.test import override_settings
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource, SampleData
from parquet_analytics.demo import site
from parquet_analytics.django import days
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import delete_day, export_day, exporter
from parquet_analytics.django.runs.ledger import runs
from parquet_analytics.django.source import ModelSource, configured_source
from parquet_analytics.django.table.databases import connection_string
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import ConfigurationError, StaleSnapshot

from tests import sites
from tests.clock import TODAY
from tests.services import PgBouncer, Postgres, Standby
from tests.sites import DAY, NEXT, export

UTC = datetime.UTC


class Domain(models.Model):
    code = models.IntegerField(primary_key=True)
    domain = models.CharField(max_length=200)

    class Meta:
        app_label = "analytics"

    def __str__(self) -> str:
        return self.domain


class Visit2(models.Model):
    """The page views of another site: times, another key, no version, no status, columns named otherwise."""

    number = models.BigAutoField(primary_key=True)
    site = models.ForeignKey(Domain, on_delete=models.CASCADE, db_column="where_id", related_name="+")
    url = models.TextField(db_column="the_url")
    hits = models.IntegerField()
    at = models.DateTimeField()

    class Meta:
        app_label = "analytics"
        db_table = 'Odd "names"'.replace('"', "")

    def __str__(self) -> str:
        return self.url


MAPPED: dict[str, Any] = {
    "MODEL": "analytics.Visit2",
    "FIELDS": {
        "project_id": "site",
        "project_slug": "site__domain",
        "path": "url",
        "view_count": "hits",
        "date": "at",
        "version_id": None,
        "version_slug": None,
        "full_path": None,
        "status": None,
    },
}
MOMENTS = ["2026-06-30T23:59:59.999999", "2026-07-01T00:00:00", "2026-07-01T12:00:00", "2026-07-01T23:59:59.999999",
           "2026-07-02T00:00:00"]  # fmt: skip


@pytest.fixture
def other_site(site_database: str) -> str:
    with connection.schema_editor() as editor:
        editor.create_model(Domain)
        editor.create_model(Visit2)
    Domain.objects.create(code=7, domain="docs.example")
    for number, moment in enumerate(MOMENTS, 1):
        at = datetime.datetime.fromisoformat(moment).replace(tzinfo=UTC)
        Visit2.objects.create(site_id=7, url=f"/{number}", hits=number, at=at)
    return site_database


def rows_of(folder: Path, day: datetime.date = DAY) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet").to_pylist()


EXPECTED = [
    {
        "id": number,
        "project_id": 7,
        "project_slug": "docs.example",
        "version_id": None,
        "version_slug": None,
        "path": f"/{number}",
        "full_path": None,
        "view_count": number,
        "date": DAY,
        "status": 200,
    }
    for number in (2, 3, 4)
]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
def test_another_model_is_exported_natively_by_mapping_alone(other_site: str, tmp_path: Path, zone: str) -> None:
    with sites.archive(tmp_path, **MAPPED), override_settings(TIME_ZONE=zone):
        assert isinstance(configured_source(DAY), PostgresSource)
        code, out, err = export("--date", str(DAY))
        assert (code, err) == (0, "")
        assert out.startswith("2026-07-01: 3 rows, 9 views")
        assert rows_of(tmp_path) == EXPECTED
        assert sites.run("parquet_analytics", "verify", "--date", str(DAY), "--against", "database")[0] == 0


def test_the_orm_exports_and_answers_the_same(other_site: str, tmp_path: Path) -> None:
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, **MAPPED):
        source = ModelSource(configured())
        ParquetAnalyticsExporter(tmp_path.as_uri(), source=source).export_daily_pageviews(DAY)
        assert rows_of(tmp_path) == EXPECTED
        # The same from the table and from the file, for reports that PostgreSQL sums up and for rows.
        for querier in (PageViewsQuerier(),):
            live = querier.daily_totals("docs.example", DAY - datetime.timedelta(days=1), NEXT)
            assert live["count"].to_pylist() == [1, 9, 5]
            assert querier.top_pages("docs.example", DAY, DAY)["count"].to_pylist() == [4, 3, 2]
            assert querier.top_pages("docs.example", DAY, DAY, status=404).num_rows == 0
            assert querier.query_pageviews("docs.example", DAY, NEXT)["id"].to_pylist() == [5, 2, 3, 4]
        runs().delete()
        assert export("--since", "2026-06-30", "--until", "2026-07-02", "--delete-after-export")[0] == 0
        assert Visit2.objects.count() == 0
        q = PageViewsQuerier(max_age=0)
        assert q.daily_totals("docs.example", DAY - datetime.timedelta(days=1), NEXT)["count"].to_pylist() == [1, 9, 5]
        assert q.query_pageviews("docs.example", DAY, NEXT)["id"].to_pylist() == [5, 2, 3, 4]


def test_times_are_not_restored(other_site: str, tmp_path: Path) -> None:
    with sites.archive(tmp_path, **MAPPED):
        export("--date", str(DAY))
        code, _, err = sites.run("parquet_analytics", "restore", "--date", str(DAY))
    assert (code, "holds times, and files hold days" in err) == (1, True)


def test_a_lookup_that_only_the_orm_can_follow_goes_through_it(site_database: str, tmp_path: Path) -> None:
    sites.few(DAY)
    with sites.archive(tmp_path, FIELDS={"project_slug": "project__name"}):
        assert isinstance(configured_source(DAY), PostgresSource)
    with sites.archive(tmp_path, FIELDS={"version_slug": "project__slug"}):
        assert isinstance(configured_source(DAY), ModelSource)
        assert "version_slug is not a plain column" in str(configured().native_tables())
        assert export("--date", str(DAY))[0] == 0
        assert {row["version_slug"] for row in rows_of(tmp_path)} == {"docs"}


class TestTransactions:
    """What the caller has not committed is read through the caller's connection, or is an error: never nothing."""

    def test_rows_of_an_open_transaction_are_exported(self, site_database: str, tmp_path: Path) -> None:
        with sites.archive(tmp_path):
            with transaction.atomic():
                sites.few(DAY)
                assert sites.rows_in(site_database) == 0
                assert export("--date", str(DAY))[1].startswith("2026-07-01: 20 rows")
                assert exporter().verify(DAY, against="database")["missing"] == 0
                transaction.set_rollback(True)
            assert len(rows_of(tmp_path)) == 20

    def test_a_model_given_to_the_library_is_read_there_too(self, site_database: str, tmp_path: Path) -> None:
        from parquet_analytics.demo.analytics.models import PageView

        who = ParquetAnalyticsExporter(tmp_path.as_uri(), source=PageView.objects.filter(status=200))
        with transaction.atomic():
            sites.few(DAY)
            assert who.export_daily_pageviews(DAY)["total_records"] == 20
            transaction.set_rollback(True)

    def test_a_deletion_from_inside_is_refused(self, site_database: str, tmp_path: Path) -> None:
        sites.few(DAY)
        with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
            export("--date", str(DAY))
            with transaction.atomic(), pytest.raises(ConfigurationError, match="transaction that nobody else can see"):
                exporter().delete_exported_pageviews(DAY, allow_local_delete=True)
        assert sites.rows_in(site_database) == 20

    def test_a_database_in_memory_is_read_through_the_callers_connection(self, tmp_path: Path) -> None:
        memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        with sites.databases(default=memory), sites.archive(tmp_path):
            site.create_tables()
            sites.few(DAY)
            assert export("--date", str(DAY), "--allow-empty")[1].startswith("2026-07-01: 20 rows")
            assert PageViewsQuerier().daily_totals("docs", DAY, TODAY)["count"].to_pylist() == [190]


class ReplicaRouter:
    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return "replica" if model._meta.model_name == "pageview" else None

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        return "default"


class TestReplicas:
    @pytest.fixture
    def pair(self, site_database: str, standby: Standby, tmp_path: Path) -> Iterator[str]:
        sites.few(DAY)
        standby.catch_up()
        with sites.databases(default=site_database, replica=standby.database_url(site_database)):
            yield site_database

    @pytest.mark.parametrize("by", ["setting", "router"])
    def test_rows_are_read_from_the_replica_and_deleted_from_the_primary(
        self, pair: str, tmp_path: Path, standby: Standby, by: str
    ) -> None:
        given = {"READ_DATABASE": "replica", "WRITE_DATABASE": "default"} if by == "setting" else {}
        routers = [] if by == "setting" else [ReplicaRouter()]
        with (
            override_settings(DATABASE_ROUTERS=routers),
            sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, **given),
        ):
            code, out, err = export("--date", str(DAY), "--delete-after-export")
            assert code == 0, (out, err)
        assert sites.rows_in(pair) == 0
        exported, deleted = runs().order_by("id")
        assert (exported.database, exported.standby) == ("replica", True)
        assert "server=standby" in exported.position
        assert f":{standby.port}/" in exported.source
        assert (deleted.database, deleted.deleted) == ("default", 20)

    def test_a_deletion_goes_as_fast_as_the_settings_say_and_waits_for_the_replica(
        self, pair: str, tmp_path: Path, standby: Standby
    ) -> None:
        sites.insert(NEXT, sample=SampleData(rows_per_day=15_000, projects=12, growth=0.0, weekly_rhythm=False))
        given = {"ALLOW_LOCAL_DELETE": True, "DELETE_ROWS_PER_SECOND": 5_000, "DELETE_MAX_REPLICA_LAG": 0.5}

        def delete() -> int | None:
            try:
                return delete_day(NEXT)[0].deleted
            finally:
                connections.close_all()

        with sites.archive(tmp_path, **given), ThreadPoolExecutor(1) as other:
            export_day(NEXT)
            with standby.held_back():
                deletion = other.submit(delete)
                time.sleep(6)
                waiting = sites.rows_in(pair, NEXT)
                time.sleep(1.5)
                assert 0 < sites.rows_in(pair, NEXT) == waiting < 15_000
                assert not deletion.done()
            assert deletion.result(30) == 15_000
        run = runs().get(kind="delete")
        # The last of three batches is not waited for.
        assert run.finished_at - run.started_at > datetime.timedelta(seconds=2)

    def test_a_router_is_asked_once_and_what_it_said_is_recorded(
        self, pair: str, tmp_path: Path, standby: Standby
    ) -> None:
        """One that picks another replica each time."""

        class Fickle(ReplicaRouter):
            asked = 0

            def db_for_read(self, model: Any, **_: Any) -> str | None:
                if model._meta.model_name != "pageview":
                    return None
                Fickle.asked += 1
                return "replica" if Fickle.asked % 2 else "default"

        with override_settings(DATABASE_ROUTERS=[Fickle()]), sites.archive(tmp_path):
            for expected in ("replica", "default", "replica"):
                standby.catch_up()  # with what the ledger wrote, too
                before = Fickle.asked
                run, _ = export_day(DAY)
                assert Fickle.asked == before + 1
                assert (run.database, run.standby) == (expected, expected == "replica")

    def test_a_lagging_replica_is_waited_for(self, pair: str, tmp_path: Path, standby: Standby) -> None:
        yesterday = TODAY - datetime.timedelta(days=1)
        with standby.held_back():
            sites.few(yesterday)
            grace = (datetime.datetime.now(UTC) - days.end_of(yesterday)).total_seconds() / 60
            with sites.archive(tmp_path, READ_DATABASE="replica", WRITE_DATABASE="default", GRACE_MINUTES=grace):
                code, _, err = export("--date", str(yesterday))
            assert code == 1
            assert "try again later" in err
            assert runs()[0].retryable is True
        standby.catch_up()
        with sites.archive(tmp_path, READ_DATABASE="replica", WRITE_DATABASE="default", GRACE_MINUTES=grace):
            assert export("--date", str(yesterday))[1].startswith(f"{yesterday}: 20 rows")

    def test_an_empty_day_is_confirmed_on_the_primary(self, pair: str, tmp_path: Path, standby: Standby) -> None:
        with sites.archive(tmp_path, READ_DATABASE="replica", WRITE_DATABASE="default", GRACE_MINUTES=0):
            with standby.held_back():
                sites.few(NEXT)
                with pytest.raises(StaleSnapshot, match="its primary has 20"):
                    export_day(NEXT)
            standby.catch_up()
            assert export_day(NEXT)[0].rows == 20

    def test_a_recovery_conflict_begins_the_export_again(
        self, pair: str, tmp_path: Path, standby: Standby, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The first reading is slow, and its rows are vacuumed away on the primary meanwhile."""
        with psycopg.connect(pair, autocommit=True) as primary:
            primary.execute("ALTER TABLE analytics_pageview RENAME TO all_views")
            primary.execute("CREATE TABLE pace (seconds float)")
            primary.execute("INSERT INTO pace VALUES (0.002)")
            primary.execute(
                "CREATE VIEW analytics_pageview AS SELECT v.* FROM all_views v, pace WHERE pg_sleep(seconds)::text = ''"
            )
            primary.execute(
                "INSERT INTO all_views (path, view_count, date, status, project_id)"
                " SELECT '/' || v.id || '/' || n, 1, %s, 404, project_id FROM all_views v, generate_series(1, 100) n",
                [NEXT],
            )
            standby.catch_up()
            calls = []

            def conflict(done: int, _total: int | None) -> None:
                calls.append(done)
                if len(calls) == 2:
                    primary.execute("UPDATE pace SET seconds = 0")
                    primary.execute("DELETE FROM all_views WHERE id % 2 = 0")
                    primary.execute("VACUUM all_views")

            conflict.wants_total = False  # type: ignore[attr-defined]
            with sites.archive(tmp_path, READ_DATABASE="replica", WRITE_DATABASE="default", GRACE_MINUTES=0):
                run, _ = export_day(NEXT, progress=conflict)
        assert 0 < run.rows < 2000
        assert "attempt 1 was broken off by the standby, begun again" in caplog.text


class TestConnections:
    """Django's own way to connect is the one that is taken."""

    @pytest.fixture(autouse=True)
    def rows(self, site_database: str) -> None:
        sites.few(DAY)

    def exported(self, tmp_path: Path, **database: Any) -> str:
        with (
            sites.another("odd", **{"OPTIONS": {}} | database),
            sites.archive(tmp_path, READ_DATABASE="odd", WRITE_DATABASE="odd"),
        ):
            _, out, err = export("--date", str(DAY))
            print(err)
            return out

    def test_a_search_path_and_timeouts_in_options(self, site_database: str, tmp_path: Path) -> None:
        with psycopg.connect(site_database) as database:
            database.execute("CREATE SCHEMA apart")
            database.execute("ALTER TABLE analytics_pageview SET SCHEMA apart")
        options = "-c search_path=apart,public -c statement_timeout=60000"
        out = self.exported(tmp_path, OPTIONS={"options": options, "keepalives": 1, "keepalives_idle": 30})
        assert out.startswith("2026-07-01: 20 rows")

    def test_an_assumed_role(self, site_database: str, tmp_path: Path) -> None:
        name = site_database.rsplit("/", 1)[1]
        with psycopg.connect(site_database) as database:
            database.execute(f"CREATE ROLE seer_{name} NOLOGIN")
            database.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO seer_{name}")
        assert self.exported(tmp_path, OPTIONS={"assume_role": f"seer_{name}"}).startswith("2026-07-01: 20 rows")
        with psycopg.connect(site_database) as database:
            database.execute(f"REVOKE SELECT ON analytics_pageview FROM seer_{name}")
        assert self.exported(tmp_path, OPTIONS={"assume_role": f"seer_{name}"}) == ""

    def test_a_service_file(self, site_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = connections.settings["default"]
        file, passfile = tmp_path / "services.conf", tmp_path / "pass"
        file.write_text(f"[views]\nhost=127.0.0.1\nport={settings['PORT']}\nuser=postgres\ndbname={settings['NAME']}\n")
        passfile.write_text(f"127.0.0.1:{settings['PORT']}:*:postgres:{settings['PASSWORD']}\n")
        passfile.chmod(0o600)
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        options = {"service": "views", "passfile": str(passfile)}
        none = {"NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": ""}
        assert self.exported(tmp_path / "archive", OPTIONS=options, **none).startswith("2026-07-01: 20 rows")

    def test_a_backend_that_makes_a_token_for_each_connection(self, tmp_path: Path) -> None:
        before = connections.settings["default"]
        token = before["PASSWORD"]
        by_token = before | {"ENGINE": "tests.token_backend", "PASSWORD": "", "TOKEN": token}
        with sites.databases(default=by_token), sites.archive(tmp_path):
            assert export("--date", str(DAY))[1].startswith("2026-07-01: 20 rows")

    def test_tls_as_django_asks_for_it(self, postgres: Postgres, tmp_path: Path) -> None:
        if not postgres.tls:
            pytest.skip("this PostgreSQL was built without TLS")
        good = {"sslmode": "verify-full", "sslrootcert": str(postgres.ca)}
        assert self.exported(tmp_path, HOST="localhost", OPTIONS=good).startswith("2026-07-01: 20 rows")
        bad = good | {"sslrootcert": str(postgres.other_ca)}
        assert self.exported(tmp_path, HOST="localhost", OPTIONS=bad) == ""

    @pytest.mark.parametrize(("name", "value"), [("sslcrl", "x"), ("target_session_attrs", "read-write")])
    def test_what_has_no_meaning_here_is_refused_by_name(self, tmp_path: Path, name: str, value: str) -> None:
        with (
            sites.another("odd", OPTIONS={name: value}),
            sites.archive(tmp_path, READ_DATABASE="odd"),
            pytest.raises(ConfigurationError, match=name),
        ):
            configured_source(DAY)

    def test_values_are_quoted(self, tmp_path: Path) -> None:
        with sites.another("odd", PASSWORD="it's a \\ 'secret'", NAME="a b"):
            text = connection_string("odd")
            assert "password='it\\'s a \\\\ \\'secret\\''" in text
            assert "secret" not in repr(PostgresSource(text))

    def test_a_pooler_in_between(self, site_database: str, pgbouncer: PgBouncer, tmp_path: Path) -> None:
        url = site.postgresql(pgbouncer.database_url(site_database.rsplit("/", 1)[1]))
        with sites.databases(default=url | {"DISABLE_SERVER_SIDE_CURSORS": True}):
            with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
                code, out, err = export("--date", str(DAY), "--delete-after-export")
            assert (code, err) == (0, "")
            assert "20 rows deleted" in out


def test_local_days_end_later_in_the_west(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DateField with days of Los Angeles: UTC's midnight is not the end of its day."""
    evening = datetime.datetime(2026, 7, 2, 3, 0, tzinfo=UTC)
    monkeypatch.setattr(days, "now", lambda: evening)
    with sites.archive(tmp_path, DAY_TIME_ZONE="America/Los_Angeles"):
        assert days.today() == DAY
        assert days.end_of(DAY) == datetime.datetime(2026, 7, 2, 7, 0, tzinfo=UTC)
        assert days.last_finished() == DAY - datetime.timedelta(days=1)
        code, _, err = export("--date", str(DAY))
        assert (code, "is not over yet" in err) == (2, True)
    with sites.archive(tmp_path, DAY_TIME_ZONE="Pacific/Auckland"):
        assert days.today() == DAY + datetime.timedelta(days=1)
        assert days.end_of(DAY) == datetime.datetime(2026, 7, 2, 0, 0, tzinfo=UTC)
    with sites.archive(tmp_path, HOT_DAYS=90):
        assert days.last_finished() == DAY
        assert days.deletable_before() == datetime.date(2026, 7, 2) - datetime.timedelta(days=90)

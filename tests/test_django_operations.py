"""`manage.py parquet_analytics status|verify|restore|doctor`, on real servers."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections
from django.test import override_settings
from parquet_analytics import ParquetAnalyticsExporter
from parquet_analytics.django import days
from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.django.runs import due_days, exporter
from parquet_analytics.django.runs.ledger import runs

from tests import sites
from tests.clock import TODAY
from tests.services import Postgres, Standby
from tests.sites import DAY, NEXT, export, rows_in
from tests.torture.proxies import Request, Response, S3Proxy, forward


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


@pytest.fixture
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
        yield tmp_path


def analytics(*arguments: str) -> tuple[int, str, str]:
    return sites.run("parquet_analytics", *arguments)


def execute(url: str, sql: str, *values: Any) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(sql, values)


class TestStatus:
    def test_every_state_of_a_day_is_told(self, folder: Path, site_database: str) -> None:
        for number in (8, 7, 5, 3, 2):
            sites.few(ago(number))
        for number in (8, 7, 6, 5, 3):
            assert export("--date", str(ago(number)))[0] == 0
        with sites.archive(folder, ALLOW_LOCAL_DELETE=True, HOT_DAYS=7):
            assert export("--date", str(ago(8)), "--delete-after-export")[0] == 0
        sites.few(ago(5), rows=3, project="late")
        code, out, _ = analytics("status", "--json")
        assert code == 0
        told = json.loads(out)
        states = {day["date"]: day["state"] for day in told["days"]}
        assert states == {
            str(ago(8)): "deleted",
            str(ago(7)): "verified",
            str(ago(6)): "empty",
            str(ago(5)): "late",
            str(ago(4)): "missing",
            str(ago(3)): "verified",
            str(ago(2)): "missing",
            str(ago(1)): "missing",
        }
        assert told["schema"] == 1
        assert told["counts"]["missing"] == 3
        assert told["through"] == str(ago(5))
        assert told["bytes"] == sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        assert told["days"][0]["deleted"] == 20
        assert 3 * 86_400 < told["lag_seconds"] < 5 * 86_400

    def test_a_lag_that_is_too_long_ends_with_1(self, folder: Path) -> None:
        code, _, err = analytics("status", "--max-lag", "36h")
        assert code == 1
        assert "nothing is exported, and at most 36.0 hours are allowed" in err
        sites.few(ago(4))
        export("--date", str(ago(4)))
        code, out, err = analytics("status", "--max-lag", "36h")
        assert code == 1
        assert "behind, and at most 36.0 hours are allowed" in err
        assert f"complete through {ago(4)}" in out
        assert analytics("status", "--max-lag", "10d")[0] == 0
        export("--since", str(ago(4)))
        assert analytics("status", "--max-lag", "36h")[0] == 0

    def test_failures_are_told_with_their_reason(self, folder: Path, site_database: str) -> None:
        sites.few(ago(2))
        execute(site_database, "UPDATE projects_project SET slug = 'a/b'")
        assert export("--date", str(ago(2)), "--per-project")[0] == 1
        _, out, _ = analytics("status")
        assert f"{ago(2)}  failed" in out
        assert "a/b" in out

    @pytest.mark.parametrize("text", ["36", "h", "1.5h", "-3h", "36 h"])
    def test_a_duration_is_written_one_way(self, folder: Path, text: str) -> None:
        code, _, err = analytics("status", f"--max-lag={text}")
        assert code == 1
        assert "write it as 36h, 2d or 90m" in err

    def test_a_range_the_wrong_way_round_is_refused(self, folder: Path) -> None:
        code, _, err = analytics("status", "--since", "2026-07-02", "--until", "2026-07-01")
        assert (code, "lies after" in err) == (2, True)


class TestVerify:
    def test_files_are_compared_with_what_was_written_and_with_the_database(
        self, folder: Path, site_database: str
    ) -> None:
        sites.insert(DAY, NEXT)
        export("--since", str(DAY), "--until", str(NEXT))
        span = ("verify", "--since", str(DAY), "--until", str(NEXT))
        code, out, _ = analytics(*span)
        assert code == 0
        assert out.count("as it was written") == 2
        execute(site_database, "UPDATE analytics_pageview SET view_count = 0 WHERE date = %s AND view_count > 5", NEXT)
        assert analytics(*span)[0] == 0
        code, out, err = analytics(*span, "--against", "database")
        assert code == 3
        assert "0 rows only in the database, 0 changed, 0 only in the file" in out
        assert f"{NEXT}: " in err
        code, out, _ = analytics(*span, "--against", "database", "--json")
        told = [json.loads(line) for line in out.splitlines()]
        assert [each["exit_code"] for each in told] == [0, 3]
        assert told[1]["changed"] > 0

    def test_a_day_without_a_file_is_an_error(self, folder: Path) -> None:
        code, _, err = analytics("verify", "--date", str(DAY))
        assert code == 1
        assert "2026-07-01" in err
        assert analytics("verify", "--date", str(DAY), "--since", str(DAY))[0] == 2


class TestRestore:
    def rows(self, url: str) -> list[Any]:
        with psycopg.connect(url) as connection:
            return connection.execute(
                "SELECT id, project_id, version_id, path, full_path, view_count, date, status"
                " FROM analytics_pageview WHERE date = %s ORDER BY id",
                [DAY],
            ).fetchall()

    def test_a_deleted_day_comes_back_as_it_was(self, folder: Path, site_database: str) -> None:
        sites.insert(DAY)
        before = self.rows(site_database)
        assert export("--date", str(DAY), "--delete-after-export")[0] == 0
        assert self.rows(site_database) == []
        code, out, _ = analytics("restore", "--date", str(DAY), "--dry-run")
        assert (code, out) == (0, "2026-07-01: 400 rows with 13,372 views would come back\n")
        assert self.rows(site_database) == []
        code, out, _ = analytics("restore", "--date", str(DAY))
        assert (code, out) == (0, "2026-07-01: 400 rows with 13,372 views are back in the table\n")
        assert self.rows(site_database) == before
        run = runs().get(kind=Run.Kind.RESTORE)
        assert (run.state, run.rows, run.views) == ("done", 400, 13372)
        # The next night finds nothing that changed, and the next export nothing to write.
        assert due_days(DAY, DAY, exporter().location) == []
        assert json.loads(export("--date", str(DAY), "--json")[1])["outcome"] == "unchanged"
        with psycopg.connect(site_database) as connection:
            [new] = connection.execute(
                "INSERT INTO analytics_pageview (path, view_count, date, status, project_id)"
                " SELECT '/new', 1, date, 200, project_id FROM analytics_pageview LIMIT 1 RETURNING id"
            ).fetchone() or [0]
        assert new > max(row[0] for row in before)

    def test_nothing_is_overwritten(self, folder: Path, site_database: str) -> None:
        sites.insert(DAY)
        export("--date", str(DAY))
        execute(site_database, "UPDATE analytics_pageview SET view_count = view_count + %s", 1)
        before = self.rows(site_database)
        code, _, err = analytics("restore", "--date", str(DAY))
        assert code == 1
        assert "the table has 400 rows of this day, and nothing is overwritten" in err
        assert self.rows(site_database) == before
        execute(site_database, "UPDATE analytics_pageview SET date = %s", NEXT)
        code, _, err = analytics("restore", "--date", str(DAY))
        assert code == 1
        assert "on another day, so this is not the table" in err
        assert self.rows(site_database) == []

    def test_rows_of_one_natural_key_are_summed_and_never_counted_twice(self, folder: Path, site_database: str) -> None:
        """A page was deleted after its export, and then counted again late, with another id."""
        sites.few(DAY, rows=3)
        assert export("--date", str(DAY), "--delete-after-export")[0] == 0
        sites.few(DAY, rows=3)
        assert export("--date", str(DAY), "--delete-after-export")[0] == 0
        assert exporter().verify(DAY)["total_records"] == 6
        code, out, _ = analytics("restore", "--date", str(DAY), "--json")
        told = json.loads(out)
        assert (code, told["restored"], told["summed"], told["views"]) == (0, 3, 3, 6)
        assert [row[5] for row in self.rows(site_database)] == [0, 2, 4]
        assert [row[0] for row in self.rows(site_database)] == [1, 2, 3]
        # Exporting again does not count the other ids once more.
        assert export("--date", str(DAY))[0] == 0
        found = exporter().verify(DAY, against="database")
        assert (found["total_views"], found["missing"], found["changed"], found["archive_only"]) == (6, 0, 0, 0)

    def test_rows_without_their_project_or_version_are_skipped_and_told(self, folder: Path, site_database: str) -> None:
        sites.insert(DAY)
        assert export("--date", str(DAY), "--delete-after-export")[0] == 0
        with psycopg.connect(site_database) as connection:
            [gone] = connection.execute("SELECT project_id FROM builds_version ORDER BY id LIMIT 1").fetchone() or [0]
            connection.execute("DELETE FROM builds_version WHERE project_id = %s", [gone])
            connection.execute(
                "UPDATE projects_project SET main_language_project_id = NULL WHERE main_language_project_id = %s",
                [gone],
            )
            connection.execute("DELETE FROM projects_project WHERE id = %s", [gone])
        code, out, _ = analytics("restore", "--date", str(DAY), "--json")
        told = json.loads(out)
        assert code == 0
        assert told["skipped_projects"] == [gone]
        assert told["restored"] + told["skipped"] == 400
        assert told["restored"] == rows_in(site_database)
        # The file still has them.
        assert exporter().verify(DAY)["total_records"] == 400

    def test_a_day_without_a_file_is_an_error(self, folder: Path) -> None:
        code, _, err = analytics("restore", "--date", str(DAY))
        assert code == 1
        assert "2026-07-01" in err


class TestDoctor:
    def findings(self) -> dict[str, tuple[str, str, str]]:
        """The worst finding of each check."""
        code, out, _ = analytics("doctor", "--json")
        found: dict[str, tuple[str, str, str]] = {}
        order = ["ok", "skipped", "warning", "failed"]
        for line in out.splitlines():
            each = json.loads(line)
            assert each["hint"] or each["state"] in {"ok", "skipped"}
            before = found.get(each["check"], ("ok",))[0]
            if order.index(each["state"]) >= order.index(before):
                found[each["check"]] = (each["state"], each["message"], each["hint"])
        assert code == int(any(state == "failed" for state, _, _ in found.values()))
        return found

    def test_a_healthy_site_passes(self, site_database: str, place: Any) -> None:
        sites.few(ago(1))
        with sites.archive(sites.s3_entry(place)):
            found = self.findings()
            code, out, _ = analytics("doctor")
        assert {state for state, _, _ in found.values()} == {"ok"}, found
        assert set(found) == {"settings", "ledger", "database", "dates", "late rows", "replica", "write database",
                              "clock", "store", "conditional write", "deletion", "other rows", "other columns",
                              "erasures", "periodic tasks"}  # fmt: skip
        assert f"20 rows on {ago(1)}" in found["database"][1]
        assert code == 0
        assert out.startswith("ok       settings: ")

    def test_settings(self, folder: Path) -> None:
        with sites.archive(folder, HOT_DAYS=0):
            state, message, _ = self.findings()["settings"]
        assert (state, "parquet_analytics.E003" in message) == ("failed", True)

    def test_migrations_that_are_not_applied(self, postgres: Postgres, tmp_path: Path) -> None:
        url = postgres.create_database()
        try:
            with sites.databases(default=url), sites.archive(tmp_path):
                found = self.findings()
        finally:
            postgres.drop_database(url)
        state, message, hint = found["ledger"]
        assert (state, hint) == ("failed", "Run manage.py migrate.")
        assert found["erasures"][0] == "skipped"
        assert "0001" in message

    def test_a_database_that_is_down(self, folder: Path) -> None:
        with sites.another("down", PORT="1"), sites.archive(folder, READ_DATABASE="down"):
            found = self.findings()
        assert found["database"][0] == found["replica"][0] == "failed"
        assert connections["default"].settings_dict["PASSWORD"] not in str(found)

    def test_a_table_that_may_not_be_read(self, folder: Path, site_database: str, postgres: Postgres) -> None:
        name = site_database.rsplit("/", 1)[1]
        execute(site_database, f"CREATE ROLE nobody_{name} LOGIN PASSWORD '{postgres.password}'")
        with (
            sites.another("poor", USER=f"nobody_{name}"),
            sites.archive(folder, READ_DATABASE="poor", WRITE_DATABASE="poor"),
        ):
            found = self.findings()
        assert "grant SELECT" in found["database"][1]
        assert found["write database"][0] == "failed"
        assert "lacks SELECT, UPDATE, DELETE" in found["write database"][1]
        assert found["write database"][2].startswith("GRANT SELECT, UPDATE, DELETE ON")

    def test_a_standby(self, folder: Path, site_database: str, standby: Standby) -> None:
        standby.catch_up()
        with sites.databases(default=site_database, replica=standby.database_url(site_database)):
            with sites.archive(folder, READ_DATABASE="replica"):
                found = self.findings()
                assert found["replica"][0] == "ok"
                assert "is a standby" in found["replica"][1]
                assert found["write database"][0] == "ok"
            with sites.archive(folder, READ_DATABASE="replica", WRITE_DATABASE="replica"):
                found = self.findings()
                assert found["replica"][0] == "warning"
                assert found["write database"][:2] == ("failed", "'replica' is a standby")

    def test_a_standby_that_is_far_behind(
        self, folder: Path, site_database: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from parquet_analytics.django.operations import doctor

        monkeypatch.setattr(doctor, "_BEHIND", datetime.timedelta(seconds=0.2))
        with sites.databases(default=site_database, replica=standby.database_url(site_database)), standby.held_back():
            sites.few(DAY)
            received = "SELECT pg_last_wal_receive_lsn() <> pg_last_wal_replay_lsn()"
            with psycopg.connect(standby.database_url(site_database), autocommit=True) as connection:
                while connection.execute(received).fetchone() != (True,):
                    time.sleep(0.05)
            time.sleep(0.3)
            with sites.archive(folder, READ_DATABASE="replica"):
                state, message, hint = self.findings()["replica"]
        assert state == "failed"
        assert "a standby whose replay is" in message
        assert "Look at its replication" in hint

    def test_a_standby_that_nobody_feeds(
        self, folder: Path, site_database: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has replayed all that it has received, which says nothing."""
        from parquet_analytics.django.operations import doctor

        monkeypatch.setattr(doctor, "_BEHIND", datetime.timedelta(seconds=0.2))
        with (
            sites.databases(default=site_database, replica=standby.database_url(site_database)),
            sites.archive(folder, READ_DATABASE="replica"),
            standby.cut_off(),
        ):
            time.sleep(0.3)
            state, message, _ = self.findings()["replica"]
        assert state == "failed"
        assert message.startswith("'replica' is a standby that receives nothing from its primary")

    def test_clocks_that_differ(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The servers' clocks cannot be moved here, so ours is."""
        monkeypatch.setattr(days, "now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5))
        state, message, hint = self.findings()["clock"]
        assert (state, "300 s ahead of ours" in message, "NTP" in hint) == ("failed", True, True)

    def test_a_store_that_may_not_be_written(self, site_database: str, place: Any) -> None:
        entry = sites.s3_entry(place)
        entry["OPTIONS"] |= {
            "access_key": place.s3.denied.access_key_id,
            "secret_key": place.s3.denied.secret_access_key,
        }
        with sites.archive(entry):
            state, message, hint = self.findings()["store"]
        assert state == "failed"
        assert "s3:PutObject" in message
        assert "IAM policy" in hint
        assert place.s3.denied.secret_access_key not in message

    def test_a_bucket_that_is_not_there(self, site_database: str, place: Any) -> None:
        entry = sites.s3_entry(place)
        entry["OPTIONS"]["bucket_name"] = "no-such-bucket"
        with sites.archive(entry):
            state, message, _ = self.findings()["store"]
        assert state == "failed"
        assert "no-such-bucket" in message

    def test_a_store_that_ignores_conditions(self, site_database: str, place: Any) -> None:
        def careless(address: str, request: Request) -> Response:
            """A write is a success, whatever its condition."""
            answer = forward(address, request)
            return Response(200, [("ETag", '"written"')], b"") if answer.status == 412 else answer

        with contextlib.closing(S3Proxy(place.s3.endpoint_url)) as proxy:
            proxy.rewrite = careless
            with sites.archive(sites.s3_entry(place, proxy.url)):
                found = self.findings()
        assert found["store"][0] == "ok"
        assert found["conditional write"][0] == "failed"
        assert "deletion is refused" in found["conditional write"][2]

    def test_a_local_store(self, tmp_path: Path, site_database: str) -> None:
        with sites.archive(tmp_path):
            assert self.findings()["deletion"][0] == "warning"
        with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
            assert "durable" in self.findings()["deletion"][2]

    def test_a_project_that_waits_to_be_erased(self, folder: Path) -> None:
        waiting = Erasure.objects.create(project_id=7, slug="gone", error="the store says no")
        assert self.findings()["erasures"][0] == "ok"
        Erasure.objects.filter(pk=waiting.pk).update(requested_at=days.now() - datetime.timedelta(days=3))
        state, message, hint = self.findings()["erasures"]
        assert state == "failed"
        assert message.startswith(f"to be taken out of the archive: 1 deleted projects, since {ago(3)}")
        assert message.endswith("the last attempt said: the store says no")
        assert "parquet_analytics erase" in hint
        export("--date", str(ago(1)), "--allow-empty")
        assert self.findings()["erasures"] == ("ok", "no deleted project waits to be taken out of the archive", "")

    def test_a_periodic_task_that_deletes_page_views(self, folder: Path) -> None:
        from django_celery_beat.models import CrontabSchedule, PeriodicTask

        night, _ = CrontabSchedule.objects.get_or_create(hour="1", minute="0")
        task = "readthedocs.analytics.tasks.delete_old_page_counts"
        PeriodicTask.objects.create(name="old ones", task=task, crontab=night)
        PeriodicTask.objects.create(name="ours", task="parquet_analytics.delete_exported_pageviews", crontab=night)
        state, message, hint = self.findings()["periodic tasks"]
        assert state == "failed"
        assert message.startswith("'old ones' runs readthedocs.analytics.tasks.delete_old_page_counts")
        assert "parquet_analytics_guarded=True" in hint
        PeriodicTask.objects.filter(name="old ones").update(enabled=False)
        assert self.findings()["periodic tasks"][0] == "ok"
        entry = {"nightly": {"task": "site.tasks.purge_pageviews", "schedule": 60}}
        with override_settings(CELERY_BEAT_SCHEDULE=entry):
            assert self.findings()["periodic tasks"][1].startswith("'nightly' runs site.tasks.purge_pageviews")

    def test_a_task_that_is_guarded_is_no_finding(self, folder: Path) -> None:
        from celery import current_app, shared_task

        @shared_task(name="readthedocs.analytics.tasks.delete_old_page_counts", parquet_analytics_guarded=True)
        def delete_old_page_counts() -> None:
            """Calls delete_exported_pageviews."""

        assert current_app.tasks[delete_old_page_counts.name].parquet_analytics_guarded
        entry = {"nightly": {"task": delete_old_page_counts.name, "schedule": 60}}
        try:
            with override_settings(CELERY_BEAT_SCHEDULE=entry):
                assert self.findings()["periodic tasks"][0] == "ok"
        finally:
            current_app.tasks.pop(delete_old_page_counts.name)


def test_the_exporter_itself_finds_out_whether_conditions_are_heeded(place: Any) -> None:
    assert ParquetAnalyticsExporter(place.url, storage_options=place.options()).probe() is True

"""`manage.py export_pageviews_to_parquet`: each option and each exit code, on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django.models import Run
from parquet_analytics.django.operations import exit_codes
from parquet_analytics.django.runs.ledger import Ledger, runs
from parquet_analytics.django.table import outages

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY, NEXT, export, rows_in
from tests.torture.proxies import Armed, S3Proxy

KEY = "analytics/pageviews/2026/07/01/pageviews_2026-07-01.parquet"
YESTERDAY = TODAY - datetime.timedelta(days=1)


@pytest.fixture
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    """A site whose archive is this folder; the table has 400 rows of each of two days."""
    sites.insert(DAY, NEXT)
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
        yield tmp_path


def objects(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def printed(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_one_day_is_exported_verified_and_recorded(folder: Path, site_database: str) -> None:
    assert export("--date", "2026-07-01") == (
        0,
        "2026-07-01: 400 rows, 13,372 views, 10.2 kB, created and verified\n",
        "",
    )
    assert pq.read_metadata(folder / KEY).num_rows == 400
    [run] = runs()
    assert (run.kind, run.state, run.day, run.key) == ("export", "verified", DAY, KEY)
    assert (run.rows, run.views, run.source_rows, run.source_views) == (400, 13372, 400, 13372)
    assert run.bytes == (folder / KEY).stat().st_size
    assert run.lease is None
    assert run.lease_until is None
    assert run.standby is False
    assert run.finished_at is not None
    assert run.started_at <= run.finished_at
    assert "postgres:" not in run.source
    assert rows_in(site_database) == 400


def test_without_a_date_it_is_the_last_finished_day(folder: Path) -> None:
    sites.few(YESTERDAY)
    code, out, _ = export("--json")
    assert code == 0
    assert [each["date"] for each in printed(out)] == [str(YESTERDAY)]


def test_a_range_skips_verified_days_unless_rechecked(folder: Path, site_database: str) -> None:
    assert export("--date", "2026-07-01")[0] == 0
    span = ("--since", "2026-07-01", "--until", "2026-07-02", "--json")
    code, out, _ = export(*span)
    assert code == 0
    assert [(each["date"], each["state"]) for each in printed(out)] == [
        ("2026-07-01", "skipped"),
        ("2026-07-02", "verified"),
    ]
    with psycopg.connect(site_database) as connection:
        connection.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE date = %s", [DAY])
    assert [each["state"] for each in printed(export(*span)[1])] == ["skipped", "skipped"]
    _, out, _ = export(*span, "--recheck")
    assert [(each["outcome"], each["changed"]) for each in printed(out)] == [("merged", 400), ("unchanged", 0)]


def test_a_range_without_an_end_goes_to_the_last_finished_day(folder: Path) -> None:
    since = YESTERDAY - datetime.timedelta(days=2)
    code, out, _ = export("--since", str(since), "--json")
    assert code == 0
    assert [each["date"] for each in printed(out)] == [str(since + datetime.timedelta(days=n)) for n in range(3)]
    assert [each["rows"] for each in printed(out)] == [0, 0, 0]


def test_copies_are_written_for_projects_and_organizations(folder: Path, site_database: str) -> None:
    code, out, _ = export("--date", "2026-07-01", "--per-project", "--json")
    assert code == 0
    [day] = printed(out)
    copies = [key for key in objects(folder) if "/project/" in key]
    assert day["project_files"] == len(copies) == 12
    code, _, err = export("--date", "2026-07-01", "--per-organization")
    assert code == 1
    assert "PER_ORGANIZATION needs the model organizations.Organization" in err
    slugs = list(Project.objects.filter(page_views__isnull=False).distinct().values_list("slug", flat=True))
    with sites.organizations(first=slugs[:1], both=slugs[:2], none=[]), sites.archive(folder, PER_ORGANIZATION=True):
        code, out, _ = export("--date", "2026-07-01", "--dry-run", "--json")
        assert code == 0
        [planned] = printed(out)
        code, out, _ = export("--date", "2026-07-01", "--json")
        assert code == 0
    [day] = printed(out)
    copies = [key for key in objects(folder) if "/org/" in key]
    assert day["organization_files"] == len(copies) == 2
    assert sorted(planned["keys"]) == sorted([*copies, day["key"]])
    rows = {key.split("/org/")[1].split("/")[0]: pq.read_table(folder / key) for key in copies}
    assert {name: sorted(set(table["project_slug"].to_pylist())) for name, table in rows.items()} == {
        "first": slugs[:1],
        "both": sorted(slugs[:2]),
    }


def test_per_project_is_what_the_settings_say(site_database: str, tmp_path: Path) -> None:
    sites.insert(DAY)
    with sites.archive(tmp_path, PER_PROJECT=True):
        export("--date", "2026-07-01")
    assert len(objects(tmp_path)) == 13


def test_exported_rows_are_deleted_once_they_are_old_enough(folder: Path, site_database: str) -> None:
    code, out, _ = export("--date", "2026-07-01", "--delete-after-export")
    assert code == 0
    assert out.endswith("created and verified; 400 rows deleted\n")
    assert (rows_in(site_database), rows_in(site_database, NEXT)) == (0, 400)
    assert [run.state for run in runs().order_by("id")] == ["verified", "deleted"]
    assert runs().get(kind=Run.Kind.DELETE).deleted == 400


def test_rows_that_hot_days_keeps_stay(folder: Path, site_database: str) -> None:
    sites.few(YESTERDAY)
    code, out, _ = export("--date", str(YESTERDAY), "--delete-after-export")
    assert code == 0
    assert "its rows stay until they are older than 90 days (HOT_DAYS)" in out
    assert rows_in(site_database, YESTERDAY) == 20


def test_rows_stay_when_the_store_is_local(site_database: str, tmp_path: Path) -> None:
    sites.insert(DAY)
    with sites.archive(tmp_path):
        code, _, err = export("--date", "2026-07-01", "--delete-after-export")
    assert code == 1
    assert "local folder" in err
    assert "it is exported and verified; its rows stay" in err
    assert rows_in(site_database) == 400


def test_rows_of_a_day_that_is_not_verified_stay(folder: Path, site_database: str) -> None:
    from parquet_analytics.django.runs import delete_day
    from parquet_analytics.exceptions import DeletionRefused

    with pytest.raises(DeletionRefused, match="the ledger knows of no verified export of this day"):
        delete_day(DAY)
    export("--date", "2026-07-01")
    runs().update(state="mismatch")
    with pytest.raises(DeletionRefused, match="export it first"):
        delete_day(DAY)
    assert rows_in(site_database) == 400


def test_replace_refuses_to_drop_stored_rows(folder: Path, site_database: str) -> None:
    export("--date", "2026-07-01")
    with psycopg.connect(site_database) as connection:
        connection.execute("DELETE FROM analytics_pageview WHERE id IN (SELECT min(id) FROM analytics_pageview)")
    code, _, err = export("--date", "2026-07-01", "--replace")
    assert code == 1
    assert "holds 1 rows that the source no longer has" in err
    code, out, _ = export("--date", "2026-07-01", "--replace", "--discard-stored", "--json")
    assert code == 0
    assert [(each["outcome"], each["rows"]) for each in printed(out)] == [("replaced", 399)]


def test_a_dry_run_writes_nothing_and_says_what_would_be(folder: Path) -> None:
    span = ("--since", "2026-07-01", "--until", "2026-07-02", "--dry-run")
    code, out, _ = export(*span, "--json")
    assert code == 0
    first, second = printed(out)
    assert (first["rows"], first["bytes"], first["keys"], first["verified"]) == (400, None, [KEY], False)
    assert second["date"] == "2026-07-02"
    assert (objects(folder), list(runs())) == ([], [])

    export("--date", "2026-07-01")
    first, second = printed(export(*span, "--json", "--per-project")[1])
    assert first["verified"] is True
    # As many rows a day, so as many bytes as in the file that there is.
    assert second["bytes"] == (folder / KEY).stat().st_size
    assert len(second["keys"]) == 13
    assert objects(folder) == [KEY]
    assert runs().count() == 1
    # The keys are those that an export then writes.
    export("--date", "2026-07-02", "--per-project")
    assert sorted(second["keys"]) == [key for key in objects(folder) if key != KEY]


def test_json_has_one_object_a_day_with_its_schema(folder: Path, site_database: str) -> None:
    with psycopg.connect(site_database) as connection:
        connection.execute("ALTER TABLE analytics_pageview ALTER view_count TYPE bigint")
        connection.execute("UPDATE analytics_pageview SET view_count = 3000000000 WHERE date = %s", [NEXT])
    code, out, err = export("--since", "2026-07-01", "--until", "2026-07-02", "--json")
    verified, failed = printed(out)
    assert code == 1
    assert {each["schema"] for each in (failed, verified)} == {1}
    assert failed["state"] == "failed"
    assert failed["exit_code"] == 1
    assert failed["error"]["type"] == "BadRow"
    assert failed["error"]["retryable"] is False
    names = "date state exit_code outcome key etag sha256 run_id rows views bytes added changed kept left source"
    assert set(verified) >= set(names.split())
    assert "1 of 2 days did not end well" in err


def test_verbosity_and_colour_are_honoured(folder: Path) -> None:
    assert export("--date", "2026-07-01", "-v", "0") == (0, "", "")
    _, out, _ = export("--date", "2026-07-01", "-v", "2")
    assert "  sha256: " in out
    assert "  position: database=" in out
    _, out, _ = export("--date", "2026-07-01", "--force-color")
    assert "\x1b[" in out
    _, out, _ = export("--date", "2026-07-01", "--no-color")
    assert "\x1b[" not in out


def test_an_empty_day_needs_an_earlier_one(folder: Path) -> None:
    code, _, err = export("--date", "2026-06-30")
    assert code == 1
    assert "nor for any earlier one" in err
    assert export("--date", "2026-06-30", "--allow-empty")[0] == 0
    assert export("--date", "2026-07-03")[1].startswith("2026-07-03: 0 rows")


def test_a_range_may_begin_before_the_table_does(folder: Path) -> None:
    """As of the nightly line of a young site, or a backfill from long ago."""
    since = ("--since", "2026-06-29")
    assert export(*since, "--until", "2026-07-01")[:2] == (
        0,
        "2026-06-29: no rows; the table begins later\n"
        "2026-06-30: no rows; the table begins later\n"
        "2026-07-01: 400 rows, 13,372 views, 10.2 kB, created and verified\n",
    )
    assert [run.day for run in runs()] == [DAY]
    code, out, _ = export(*since, "--until", "2026-07-01", "--recheck", "--json")
    assert (code, [day["state"] for day in printed(out)]) == (0, ["absent", "absent", "verified"])


def test_a_range_of_which_the_table_has_nothing_is_the_wrong_one(folder: Path) -> None:
    code, _, err = export("--since", "2026-06-28", "--until", "2026-06-30")
    assert code == 1
    assert err.count("nor for any earlier one") == 3
    assert "3 of 3 days did not end well" in err


def test_bad_rows_are_left_when_that_is_wanted(folder: Path, site_database: str) -> None:
    with psycopg.connect(site_database) as connection:
        connection.execute("ALTER TABLE analytics_pageview ALTER view_count TYPE bigint")
        connection.execute(
            "UPDATE analytics_pageview SET view_count = 3000000000 WHERE id = (SELECT min(id) FROM analytics_pageview)"
        )
    code, _, err = export("--date", "2026-07-01")
    assert code == 1
    assert "view_count" in err
    [run] = runs()
    assert (run.state, run.error_type, run.retryable) == ("failed", "BadRow", False)
    code, out, _ = export("--date", "2026-07-01", "--leave-bad-rows")
    assert code == 0
    assert "1 bad rows left in the database" in out


def test_another_database_is_accepted_only_when_told(folder: Path, postgres: Any, django_template: str) -> None:
    export("--date", "2026-07-01")
    other = postgres.create_database(django_template)
    try:
        with sites.databases(default=other):
            sites.insert(DAY)
            code, _, err = export("--date", "2026-07-01")
            assert code == 1
            assert "is not the database" in err
            assert export("--date", "2026-07-01", "--accept-moved-database")[0] == 0
    finally:
        postgres.drop_database(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--date", "2026-07-01", "--since", "2026-07-01"], "give one of the two"),
        (["--date", "2026-07-01", "--until", "2026-07-01"], "give one of the two"),
        (["--until", "2026-07-01"], "--until needs --since"),
        (["--since", "2026-07-02", "--until", "2026-07-01"], "--since (2026-07-02) lies after --until (2026-07-01)"),
        (["--recheck"], "--recheck is about a range"),
        (["--discard-stored"], "--discard-stored needs --replace"),
        (["--date", str(TODAY + datetime.timedelta(days=1))], "is in the future"),
        (["--since", "2026-07-01", "--until", "2099-01-01"], "is in the future"),
        (["--date", str(TODAY)], "is not over yet; export it tomorrow, or as it is now with --allow-open-day"),
        (["--since", str(TODAY)], "lies after --until"),
        (["--date", "2026-7-1"], "did you mean 2026-07-01?"),
        (["--date", "yesterday"], "is no day; write it as YYYY-MM-DD"),
        (["--date", "2026-02-30"], "is no day"),
        (["--nope"], "unrecognized arguments: --nope"),
    ],
)
def test_wrong_usage_is_explained(folder: Path, arguments: list[str], message: str) -> None:
    code, out, err = export(*arguments)
    assert message in err
    assert out == ""
    # Django gives its own code to what argparse refuses, when a program calls the command.
    assert code == (1 if "argument" in err else 2)
    assert list(runs()) == []


def test_call_command_takes_days_and_texts(folder: Path) -> None:
    for given in ({"date": DAY}, {"date": str(DAY)}, {"since": str(DAY), "until": NEXT}):
        call_command("export_pageviews_to_parquet", **given, verbosity=0)
        call_command("parquet_analytics", "verify", **given, verbosity=0)
    call_command("parquet_analytics", "status", since=str(DAY), until=str(NEXT), max_lag="5000d", json=True)
    with pytest.raises(CommandError, match="--date: '1 July' is no day") as caught:
        call_command("export_pageviews_to_parquet", date="1 July")
    assert caught.value.returncode == 2
    with pytest.raises(CommandError, match="--max-lag: '36' is no duration"):
        call_command("parquet_analytics", "status", max_lag="36")


def test_argparse_exits_with_2_on_the_command_line(site_database: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        sites.manage("export_pageviews_to_parquet", "--date", "yesterday"),
        env=sites.environment(site_database, tmp_path),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert "'yesterday' is no day; write it as YYYY-MM-DD" in ended.stderr


def test_today_is_exported_as_far_as_it_is_when_told(folder: Path) -> None:
    sites.few(TODAY)
    code, out, _ = export("--date", str(TODAY), "--allow-open-day")
    assert code == 0
    assert "20 rows" in out


def test_a_day_that_another_run_has_ends_with_75(folder: Path) -> None:
    from parquet_analytics.django.runs import exporter

    with Ledger(Run.Kind.EXPORT, DAY, exporter().location):
        code, _, err = export("--date", "2026-07-01")
        assert code == 75
        assert "another run (export, " in err
        code, out, _ = export("--since", "2026-07-01", "--until", "2026-07-02", "--json")
        assert code == 75
        assert [each["exit_code"] for each in printed(out)] == [75, 0]
        assert printed(out)[0]["error"]["retryable"] is True


def test_a_file_that_is_damaged_ends_with_3(folder: Path) -> None:
    export("--date", "2026-07-01")
    path = folder / KEY
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)
    assert sites.run("parquet_analytics", "verify", "--date", "2026-07-01")[0] == 3
    code, _, err = export("--date", "2026-07-01")
    assert code == 3
    assert runs().order_by("-id")[0].state == "mismatch"
    assert KEY in err


def test_an_unknown_outcome_ends_with_4(site_database: str, tmp_path: Path, place: Any) -> None:
    """The store's answers to the write, and to every question after it, never arrive."""
    sites.insert(DAY)
    with (
        contextlib.closing(S3Proxy(place.s3.endpoint_url)) as proxy,
        sites.archive(sites.s3_entry(place, proxy.url)),
    ):
        proxy.armed = Armed("PUT", lambda *_: None, times=100)
        code, _, err = export("--date", "2026-07-01")
    assert code == 4, err
    [run] = runs()
    assert (run.state, run.error_type) == ("unknown", "CommitStateUnknown")
    assert run.run_id


def test_a_range_ends_with_the_worst() -> None:
    assert exit_codes.worst([]) == 0
    assert exit_codes.worst([0, 75, 0]) == 75
    assert exit_codes.worst([75, 1]) == 1
    assert exit_codes.worst([1, 3, 75]) == 3
    assert exit_codes.worst([3, 4, 1]) == 4


def test_what_is_wrong_for_every_day_is_said_once(folder: Path, site_database: str) -> None:
    with sites.archive(folder, MODEL="analytics.Nope"):
        code, _, err = export("--since", "2026-07-01", "--until", "2026-07-02")
    assert code == 1
    assert err.count("Django has no model 'analytics.Nope'") == 1
    with sites.archive({"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": {}}):
        code, _, err = export("--since", "2026-07-01", "--until", "2026-07-02")
    assert code == 1
    assert err.count("bucket_name") == 1


def test_a_missing_ledger_says_migrate(postgres: Any, tmp_path: Path) -> None:
    url = postgres.create_database()
    try:
        with sites.databases(default=url), sites.archive(tmp_path):
            sites.insert(DAY)
            code, _, err = export("--date", "2026-07-01")
            assert code == 1
            assert "run manage.py migrate" in err
            assert objects(tmp_path) == []
    finally:
        postgres.drop_database(url)


def test_a_database_that_is_down_is_named_without_its_password(
    folder: Path, site_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "PATIENCE", 0.5)
    password = connections["default"].settings_dict["PASSWORD"]
    with sites.another("replica", PORT="1"), sites.archive(folder, READ_DATABASE="replica"):
        code, out, err = export("--date", "2026-07-01")
    assert code == 1
    assert "127.0.0.1" in err
    assert "port 1 failed" in err
    assert password not in out + err
    [run] = runs()
    assert password not in str(run.__dict__)
    assert run.retryable is True


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        ["export_pageviews_to_parquet", "--since", "2026-07-01", "--until", "2026-07-02"],
        ["export_pageviews_to_parquet", "--date", "2026-07-01", "--dry-run", "--json"],
        ["parquet_analytics", "status"],
    ],
)
def test_a_reader_that_goes_away_ends_the_command_without_a_word(
    folder: Path, site_database: str, command: list[str], buffered: bool
) -> None:
    """`manage.py export_pageviews_to_parquet | head -1`."""
    with subprocess.Popen(
        sites.manage(*command),
        env=sites.environment(site_database, folder) | {"PYTHONUNBUFFERED": "" if buffered else "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
    # The day that was under way is whole.
    assert {run.state for run in runs()} == ({"verified"} if "--since" in command else set())


@pytest.mark.parametrize(
    "command",
    [
        ["parquet_analytics", "status"],
        ["parquet_analytics", "verify", "--date", "2026-07-01", "--against", "database"],
        ["parquet_analytics", "restore", "--date", "2026-07-01"],
        ["export_pageviews_to_parquet", "--since", "2026-07-01"],
    ],
)
def test_a_database_that_is_down_is_a_sentence_for_every_command(folder: Path, command: list[str]) -> None:
    export("--date", "2026-07-01")
    with sites.databases(default=connections.settings["default"] | {"PORT": "1"}):
        code, _, err = sites.run(*command)
    assert code == 1
    assert "connection refused" in err.lower()


def test_advice_names_options_of_the_command(folder: Path, site_database: str) -> None:
    assert "pass --allow-empty to record it as empty" in export("--date", "2026-06-30")[2]
    export("--date", "2026-07-01")
    with psycopg.connect(site_database) as connection:
        connection.execute("DELETE FROM analytics_pageview WHERE path = (SELECT min(path) FROM analytics_pageview)")
    assert "or pass --replace --discard-stored to drop them" in export("--date", "2026-07-01", "--replace")[2]
    with sites.archive(folder):
        export("--date", "2026-07-01")
        assert "set ALLOW_LOCAL_DELETE" in export("--date", "2026-07-01", "--delete-after-export")[2]


class TestTerminal:
    """What is different when somebody looks on."""

    def start(self, url: str, folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            sites.manage("export_pageviews_to_parquet", *arguments),
            env=sites.environment(url, folder, ALLOW_LOCAL_DELETE=True),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        return process, ours

    def read(self, terminal: int, until: bytes = b"\0") -> str:
        found = b""
        while until not in found:
            try:
                found += os.read(terminal, 1000)
            except OSError:
                break
        return found.decode()

    def test_a_deletion_is_asked_for(self, site_database: str, tmp_path: Path) -> None:
        sites.insert(DAY)
        for answer, code, left in (("no", 1, 400), ("yes", 0, 0)):
            process, terminal = self.start(site_database, tmp_path, "--date", "2026-07-01", "--delete-after-export")
            asked = self.read(terminal, b"to stop: ")
            assert "delete the exported rows of 2026-07-01 from the database" in asked
            os.write(terminal, f"{answer}\n".encode())
            shown = self.read(terminal)
            assert process.wait(30) == code, shown
            os.close(terminal)
            assert rows_in(site_database) == left
        assert "\x1b[" in shown  # colours

    def test_nothing_is_asked_with_noinput_or_without_a_terminal(self, site_database: str, tmp_path: Path) -> None:
        sites.insert(DAY, NEXT)
        process, terminal = self.start(
            site_database, tmp_path, "--date", "2026-07-01", "--delete-after-export", "--noinput"
        )
        shown = self.read(terminal)
        assert process.wait(30) == 0, shown
        assert "Type" not in shown
        os.close(terminal)
        ended = subprocess.run(
            sites.manage("export_pageviews_to_parquet", "--date", "2026-07-02", "--delete-after-export"),
            env=sites.environment(site_database, tmp_path, ALLOW_LOCAL_DELETE=True),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert "\r" not in ended.stdout
        assert rows_in(site_database) == rows_in(site_database, NEXT) == 0

    def test_progress_is_drawn(self, site_database: str, tmp_path: Path) -> None:
        sites.insert(DAY)
        process, terminal = self.start(site_database, tmp_path, "--date", "2026-07-01")
        shown = self.read(terminal)
        assert process.wait(30) == 0
        os.close(terminal)
        assert "of 400 rows" in shown
        assert "\r2026-07-01 [" in shown


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_gives_the_day_back(site_database: str, tmp_path: Path, how: signal.Signals) -> None:
    sites.insert(DAY)
    with psycopg.connect(site_database) as blocker:
        blocker.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        process = subprocess.Popen(
            sites.manage("export_pageviews_to_parquet", "--date", "2026-07-01"),
            env=sites.environment(site_database, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 20
        while not runs().filter(state="running").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(how)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + how, (out, err)
    [run] = runs()
    assert (run.state, run.lease) == ("failed", None)
    assert objects(tmp_path) == []
    assert b"Traceback" not in err

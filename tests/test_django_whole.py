"""A day is whole only if that can be shown: what a table still has of a day whose rows were deleted is a remainder."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django.models import Run
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import delete_day, export_day
from parquet_analytics.exceptions import DayLost

from tests import sites
from tests.archives import saying
from tests.clock import TODAY
from tests.sites import export, run

DAY = TODAY - datetime.timedelta(days=20)
ROWS = 20
VIEWS = sum(range(ROWS))


def late(day: datetime.date = DAY) -> None:
    PageView.objects.create(project=Project.objects.get(slug="docs"), path="/late", view_count=1000, date=day)


def key(folder: Path, prefix: str = "analytics/pageviews") -> Path:
    return folder / f"{prefix}/{DAY:%Y/%m/%d}/pageviews_{DAY}.parquet"


def answer() -> tuple[int, bool]:
    """The views of the day, and whether it is missing."""
    querier = PageViewsQuerier(max_age=0)
    table = querier.daily_totals("docs", DAY, DAY, status=None)
    return sum(table["count"].to_pylist()), DAY in querier.coverage.missing


@pytest.fixture
def deleted(site_database: str, tmp_path: Path) -> Path:
    """The day is exported, and its rows have left the table; then one came late."""
    sites.few(DAY - datetime.timedelta(days=1), rows=3)
    sites.few(DAY, rows=ROWS)
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=10):
        export_day(DAY)
        assert delete_day(DAY)[1]["deleted"] == ROWS
    late()
    return tmp_path


def test_the_file_of_a_deleted_day_that_is_gone_is_an_error_and_no_new_day(deleted: Path) -> None:
    key(deleted).unlink()
    with sites.archive(deleted, ALLOW_LOCAL_DELETE=True, HOT_DAYS=10):
        code, _, err = export("--date", str(DAY))
        assert code == 3
        assert all(part in err for part in (str(DAY), "20 rows", key(deleted).name, "--discard-stored"))
        assert not key(deleted).exists()
        assert Run.objects.latest("id").state == Run.State.MISMATCH
        assert answer() == (0, True)
        code, out, _ = run("parquet_analytics", "status", "--since", str(DAY), "--until", str(DAY))
        assert "mismatch" in out
        # What is left is the day from now on, if somebody says so.
        assert export("--date", str(DAY), "--replace", "--discard-stored")[0] == 0
        assert answer() == (1000, False)


def test_a_purged_ledger_is_no_reason_to_take_a_remainder_for_the_day(deleted: Path) -> None:
    Run.objects.all().delete()
    with sites.archive(deleted, ALLOW_LOCAL_DELETE=True, HOT_DAYS=10):
        # The file is whole.
        assert answer() == (VIEWS, False)
        key(deleted).unlink()
        assert answer() == (0, True)
        with pytest.raises(DayLost):
            export_day(DAY)


@pytest.mark.parametrize("elsewhere", ["prefix", "folder"])
def test_another_place_is_no_reason_to_take_a_remainder_for_the_day(
    deleted: Path, elsewhere: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, prefix = (deleted, "other") if elsewhere == "prefix" else (tmp_path_factory.mktemp("other"), "views")
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True, HOT_DAYS=10, PREFIX=prefix):
        assert answer() == (0, True)
        with pytest.raises(DayLost, match=saying(str(DAY), prefix, "deleted from the database")) as caught:
            export_day(DAY)
        assert caught.value.key == str(key(folder, prefix).relative_to(folder))
        assert not key(folder, prefix).exists()
        # The other days are as whole as before.
        other = DAY - datetime.timedelta(days=1)
        assert export_day(other)[0].rows == 3
    # And with the file at its new place, it goes on.
    key(folder, prefix).parent.mkdir(parents=True)
    key(folder, prefix).write_bytes(key(deleted).read_bytes())
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True, HOT_DAYS=10, PREFIX=prefix):
        assert export_day(DAY)[1]["total_records"] == ROWS + 1
        assert answer() == (VIEWS + 1000, False)


def test_a_day_that_the_table_has_whole_is_exported_again(site_database: str, tmp_path: Path) -> None:
    sites.few(DAY, rows=ROWS)
    with sites.archive(tmp_path, HOT_DAYS=10):
        export_day(DAY)
        # A deletion that was refused has deleted nothing: this folder is local.
        assert export("--date", str(DAY), "--delete-after-export")[0] == 1
        key(tmp_path).unlink()
        assert export_day(DAY)[0].outcome == "created"
        assert answer() == (VIEWS, False)


def test_without_the_store_old_days_that_nothing_is_known_of_are_missing(deleted: Path) -> None:
    recent = TODAY - datetime.timedelta(days=2)
    late(recent)
    Run.objects.all().delete()
    down = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": "nowhere",
            "endpoint_url": "http://127.0.0.1:9",
            "access_key": "a",
            "secret_key": "b",
            "region_name": "us-east-1",
        },
    }
    with sites.archive(down, HOT_DAYS=10):
        querier = PageViewsQuerier(max_age=0, timeout=5)
        table = querier.daily_totals("docs", DAY, TODAY, status=None)
        assert DAY in querier.coverage.missing
        assert recent in querier.coverage.live
        assert sum(table["count"].to_pylist()) == 1000

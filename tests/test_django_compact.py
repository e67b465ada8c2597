"""Months' files in Django: the nightly task, the command, their rows in the ledger, and erasures."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from parquet_analytics.django import runs, tasks
from parquet_analytics.django.models import Run
from parquet_analytics.django.querier import pageviews_querier
from parquet_analytics.django.runs.ledger import Ledger
from parquet_analytics.exceptions import DayIsTaken

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY, NEXT, export

MONTH = f"{DAY:%Y-%m}"


@pytest.fixture
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    """A site whose archive is this folder; the table has 400 rows of each of two days."""
    sites.insert(DAY, NEXT)
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True):
        yield tmp_path


def compactions() -> list[tuple[str, str, str]]:
    return list(Run.objects.filter(kind="compact").order_by("id").values_list("state", "outcome", "error_type"))


def test_the_command_says_what_became_of_each_month(folder: Path) -> None:
    assert export("--since", str(DAY), "--until", str(NEXT))[0] == 0
    code, out, err = sites.run("parquet_analytics", "compact")
    assert (code, err) == (0, "")
    assert out.startswith(f"{MONTH}: created, 2 days (2 read), ")
    assert sites.run("parquet_analytics", "compact")[1].startswith(f"{MONTH}: unchanged, 2 days (0 read), ")
    code, out, _ = sites.run("parquet_analytics", "compact", "--since", str(DAY), "--until", str(DAY), "--json")
    [month] = map(json.loads, out.splitlines())
    assert (code, month["schema"], month["month"], month["outcome"], month["days"]) == (0, 1, MONTH, "unchanged", 2)
    code, _, err = sites.run("parquet_analytics", "compact", "--since", str(NEXT), "--until", str(DAY))
    assert (code, "lies after" in err) == (2, True)
    # What did nothing leaves no row.
    assert compactions() == [("done", "1 of 1", "")]
    [run] = Run.objects.filter(kind="compact")
    assert run.rows
    assert run.bytes == sum(
        path.stat().st_size for path in (folder / "analytics/pageviews/_derived").rglob("*.parquet")
    )
    # It is no day's.
    assert sites.run("parquet_analytics", "status", "--since", str(DAY), "--until", str(NEXT))[0] == 0


def test_the_night_compacts_unless_it_is_told_not_to(site_database: str, tmp_path: Path) -> None:
    yesterday = TODAY - datetime.timedelta(days=1)
    sites.few(yesterday)
    with sites.archive(tmp_path, COMPACT=False):
        tasks.export_pageviews_to_parquet()
        assert not list(tmp_path.rglob("_derived/series/*"))
    with sites.archive(tmp_path):
        tasks.export_pageviews_to_parquet()
        assert list(tmp_path.rglob("_derived/series/*.parquet"))
        assert compactions() == [("done", "1 of 1", "")]
        querier = pageviews_querier()
        assert querier.daily_totals(None, yesterday, yesterday, project_id=1, status=None).num_rows <= 1
        # By hand, for a span.
        tasks.compact_pageviews(str(yesterday), str(yesterday))
        assert len(compactions()) == 1


def test_one_compaction_at_a_time(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    export("--since", str(DAY), "--until", str(NEXT))
    location = runs.exporter().location
    with Ledger("compact", DAY, location):
        with pytest.raises(DayIsTaken):
            runs.compact()
        assert sites.run("parquet_analytics", "compact")[0] == 75
        # Days are exported and deleted meanwhile.
        assert export("--date", str(DAY))[0] == 0
        with caplog.at_level(logging.ERROR, "parquet_analytics.django"):
            tasks.export_pageviews_to_parquet()
        assert "compacting" not in caplog.text
    assert runs.compact()[0]["outcome"] == "created"


def test_a_compaction_that_fails_is_told_and_keeps_no_export_from_its_end(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export("--since", str(DAY), "--until", str(NEXT))
    runs.compact()
    sites.few(TODAY - datetime.timedelta(days=1))
    # A day that nobody can read.
    (folder / f"analytics/pageviews/{NEXT:%Y/%m/%d}/pageviews_{NEXT}.parquet").write_bytes(b"PAR1 nothing PAR1")
    with caplog.at_level(logging.ERROR, "parquet_analytics.django"):
        tasks.export_pageviews_to_parquet()
    assert "compacting page views failed: " in caplog.text
    assert str(NEXT) in caplog.text
    assert Run.objects.filter(kind="export", day=TODAY - datetime.timedelta(days=1), state="verified").exists()
    assert compactions()[-1][0] in {"failed", "mismatch"}

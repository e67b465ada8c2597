"""Questions about everything there is: many years are answered whole, in bounded memory, and a mistyped year is refused
before it costs anything."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData
from parquet_analytics.django.querier import PageViewsQuerier, pageviews_querier
from parquet_analytics.exceptions import InvalidInput

from tests import sites
from tests.archives import Place
from tests.clock import TODAY
from tests.sites import export

DAY = datetime.timedelta(days=1)
MISTYPED = [
    ("0206-07-01", None),
    ("0001-01-01", None),
    ("0001-01-01", "9999-12-31"),
    ("2026-07-01", "9999-12-31"),
    ("2026-07-01", "2206-07-01"),
]


def key(day: datetime.date) -> str:
    return f"analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet"


def years_of_days(folder: Path, sample: SampleData, number: int) -> tuple[datetime.date, datetime.date]:
    """So many days up to the first of July, all with the same rows but for the date."""
    last = datetime.date(2026, 7, 1)
    rows = pa.table(sample.day(last))
    at = rows.schema.get_field_index("date")

    def of(day: datetime.date) -> pa.Table:
        return rows.set_column(at, rows.schema.field(at), pa.array([day] * rows.num_rows, rows.schema.field(at).type))

    exporter = ParquetAnalyticsExporter(folder.as_uri(), source=of)
    for back in range(number):
        exporter.export_daily_pageviews(last - back * DAY)
    return last - (number - 1) * DAY, last


@pytest.mark.full
def test_twelve_years_are_answered_whole_and_so_is_the_time_before_them(tmp_path: Path) -> None:
    sample = SampleData(rows_per_day=60, projects=8)
    first, last = years_of_days(tmp_path, sample, 4_400)
    slug = sample.special_projects()["largest"]
    querier = ParquetAnalyticsQuerier(tmp_path.as_uri())
    [a_day] = querier.daily_totals(slug, last, last, status=None)["count"].to_pylist()
    for since in (first, datetime.date(1970, 1, 1)):
        [found] = querier.sql("SELECT sum(view_count)::BIGINT FROM pageviews", since=since, until=last, projects=[slug])
        assert found.to_pylist() == [4_400 * a_day]
        assert (
            sum(querier.top_pages(slug, since, last, status=None, limit=10_000)["count"].to_pylist()) == 4_400 * a_day
        )
        assert querier.query_pageviews(slug, since, last, columns=["view_count"]).num_rows % 4_400 == 0
        assert querier.coverage is not None
        assert len(querier.coverage.complete) == 4_400
        assert len(querier.coverage.missing) == (first - since).days
        assert querier.coverage.through == last
    filled = querier.daily_totals(slug, "1970-01-01", last, fill=True)
    assert filled.num_rows == (last - datetime.date(1970, 1, 1)).days + 1
    assert querier.explain(slug, first, last).num_rows == 4_400


@pytest.mark.parametrize(("since", "until"), MISTYPED)
def test_a_mistyped_year_is_refused_at_once(place: Place, since: str, until: str | None) -> None:
    querier = place.querier()
    asks: list[Any] = [
        lambda: querier.daily_totals("docs", since, until, fill=True),
        lambda: querier.top_pages(None, since, until, project_id=1),
        lambda: querier.query_pageviews("docs", since, until),
        lambda: querier.iter_pageviews("docs", since, until),
        lambda: querier.sql("SELECT 1 FROM pageviews", since=since, until=until),
        lambda: querier.explain("docs", since, until),
    ]
    for ask in asks:
        begun = time.monotonic()
        with pytest.raises(InvalidInput, match=r"are \d+ days.*is the year right\? A question may span 36600 days"):
            ask()
        assert time.monotonic() - begun < 0.5
    assert querier.stats is None


@pytest.mark.parametrize(("since", "until"), MISTYPED)
@pytest.mark.parametrize("shadow", [False, True])
def test_a_mistyped_year_asks_nobody(
    site_database: str, tmp_path: Path, since: str, until: str | None, shadow: bool
) -> None:
    with sites.archive(tmp_path, SHADOW=shadow):
        querier = pageviews_querier()
        with CaptureQueriesContext(connection) as queries, pytest.raises(InvalidInput, match="is the year right"):
            querier.daily_totals("docs", since, until)
        assert len(queries) == 0


def test_a_site_answers_about_a_project_that_is_older_than_ten_years(site_database: str, tmp_path: Path) -> None:
    published = TODAY - 4_500 * DAY
    days = [published, published + DAY, published + 700 * DAY, TODAY - 2 * DAY, TODAY]
    for day in days:
        sites.few(day)
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=1, LOOKBACK_DAYS=1):
        before = PageViewsQuerier().query_pageviews("docs", published)
        assert before.num_rows == 100
        for day in days[1:4]:
            assert export("--date", str(day), "--delete-after-export")[0] == 0
        querier = PageViewsQuerier()
        assert querier.query_pageviews("docs", published).equals(before)
        assert querier.coverage is not None
        assert querier.coverage.complete == tuple(days[1:4])
        assert querier.coverage.live == (published, TODAY)
        assert len(querier.coverage.missing) == 4_501 - 5
        # The first day that is asked about may be far before all of them.
        assert querier.query_pageviews("docs", "1970-01-01").equals(before)

"""The Django querier while other processes move days from the table to the store, and when one of the two goes away in
the middle."""

from __future__ import annotations

import datetime
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from parquet_analytics.coverage import Coverage
from parquet_analytics.django import days
from parquet_analytics.django.models import Run
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs.ledger import runs
from parquet_analytics.django.shadow import ShadowQuerier, shadow
from parquet_analytics.exceptions import InvalidInput

from tests import sites
from tests.archives import Place, rows_of
from tests.clock import TODAY
from tests.sites import export
from tests.torture.proxies import Response, S3Proxy, forward


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


DAYS = [ago(number) for number in range(6, -1, -1)]
SLUG = sites.SAMPLE.special_projects()["largest"]
KEYS: dict[str, Any] = {"HOT_DAYS": 1, "LOOKBACK_DAYS": 1}


@pytest.fixture
def entry(place: Place) -> dict[str, Any]:
    return sites.s3_entry(place)


@pytest.fixture
def site(site_database: str, entry: dict[str, Any]) -> Iterator[str]:
    """Seven days of page views in the table, until today; nothing is exported yet."""
    with sites.archive(entry, **KEYS):
        sites.insert(*DAYS)
        yield site_database


@pytest.fixture
def proxy(place: Place) -> Iterator[S3Proxy]:
    proxy = S3Proxy(place.s3.endpoint_url)
    yield proxy
    proxy.close()


def views_by_day(url: str) -> dict[datetime.date, int]:
    """What PostgreSQL says of the project."""
    return dict(
        rows_of(
            url,
            "SELECT date, sum(view_count)::bigint FROM analytics_pageview v"
            " JOIN projects_project p ON p.id = v.project_id WHERE p.slug = %s AND status = 200 GROUP BY date",
            [SLUG],
        )
    )


def answered(querier: PageViewsQuerier, since: datetime.date = DAYS[0]) -> dict[datetime.date, int]:
    table = querier.daily_totals(SLUG, since)
    return dict(zip(table["date"].to_pylist(), table["count"].to_pylist(), strict=True))


def elsewhere(site: str, entry: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    """The export command in another process, of which this one's memory of files knows nothing."""
    command = sites.manage("export_pageviews_to_parquet", "--delete-after-export", *arguments)
    environment = sites.environment(site, entry, **KEYS)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_day_that_another_process_exported_and_deleted_is_there_at_once(site: str, entry: dict[str, Any]) -> None:
    """Although it is remembered, for up to ten minutes, that there was no file."""
    truth = views_by_day(site)
    assert answered(PageViewsQuerier()) == truth
    mover = elsewhere(site, entry, "--date", str(ago(4)))
    said, _ = mover.communicate(timeout=120)
    assert mover.returncode == 0, said
    assert sites.rows_in(site, ago(4)) == 0
    querier = PageViewsQuerier()
    assert answered(querier) == truth
    assert querier.coverage is not None
    assert querier.coverage.complete == (ago(4),)


def test_questions_are_answered_alike_while_days_are_exported_and_deleted(site: str, entry: dict[str, Any]) -> None:
    truth = views_by_day(site)
    querier = PageViewsQuerier()
    whole = querier.query_pageviews(SLUG, DAYS[0])
    mover = elsewhere(site, entry, "--since", str(DAYS[0]), "--until", str(ago(2)))
    asked, seen = 0, set()
    while mover.poll() is None:
        assert answered(querier) == truth
        assert querier.coverage is not None
        seen.add(len(querier.coverage.complete))
        assert querier.query_pageviews(SLUG, DAYS[0]).equals(whole)
        assert pa.Table.from_batches(querier.iter_pageviews(SLUG, DAYS[0])).equals(whole)
        asked += 1
    said, _ = mover.communicate()
    assert mover.returncode == 0, said
    assert asked >= 5
    assert len(seen) >= 3, "the days moved before or after, not meanwhile"
    assert answered(querier) == truth
    assert querier.coverage is not None
    assert querier.coverage.live == (ago(1), TODAY)


def test_what_a_deletion_left_is_no_answer_when_the_file_does_not_count_any_more(site: str) -> None:
    truth = views_by_day(site)
    export("--date", str(ago(4)), "--delete-after-export")
    sites.few(ago(4), project=SLUG)  # late rows
    location = runs()[0].location
    Run.objects.create(kind="export", day=ago(4), location=location, state="mismatch", started_at=days.now())
    querier = PageViewsQuerier()
    assert answered(querier) == {day: views for day, views in truth.items() if day != ago(4)}
    assert querier.coverage is not None
    assert querier.coverage.missing == (ago(4),)
    # Nor is it when the ledger forgets; the store has not.
    Run.objects.filter(kind="delete").delete()
    answered(querier)
    assert querier.coverage.missing == (ago(4),)


@pytest.mark.parametrize("exported_until", [1, 2])
def test_a_store_that_goes_away_between_footers_and_rows_is_made_up_for(
    site: str, place: Place, proxy: S3Proxy, exported_until: int, caplog: pytest.LogCaptureFixture
) -> None:
    export("--since", str(DAYS[0]), "--until", str(ago(exported_until)))
    with sites.archive(sites.s3_entry(place, proxy.url), **KEYS):
        querier = PageViewsQuerier()
        rows, totals = querier.query_pageviews(SLUG, DAYS[0]), answered(querier)
        assert querier.coverage is not None
        assert querier.coverage.complete == tuple(DAYS[:-exported_until])
        proxy.rewrite = lambda _address, _request: Response.error(503, "SlowDown")
        with caplog.at_level(logging.WARNING, "parquet_analytics"):
            assert answered(querier) == totals
            assert querier.coverage.live == tuple(DAYS)
            assert querier.query_pageviews(SLUG, DAYS[0]).equals(rows)
            assert pa.Table.from_batches(querier.iter_pageviews(SLUG, DAYS[0])).equals(rows)
    assert caplog.text.count("the store cannot be asked") == 3


def test_days_before_the_first_cost_no_requests_and_few_looks_at_the_table(
    site: str, place: Place, proxy: S3Proxy
) -> None:
    """A young site is asked about thirty days by default, and somebody may ask about thirty years."""
    export("--since", str(DAYS[0]), "--until", str(ago(1)))
    requests: list[str] = []

    def counting(address: str, request: Any) -> Response:
        requests.append(request.path)
        return forward(address, request)

    with sites.archive(sites.s3_entry(place, proxy.url), **KEYS):
        querier = PageViewsQuerier()
        querier.daily_totals(SLUG)
        querier.daily_totals(SLUG, ago(11_000))
        assert querier.coverage == Coverage(
            ago(11_000),
            TODAY,
            complete=tuple(DAYS[:-1]),
            missing=tuple(ago(number) for number in range(11_000, 6, -1)),
            live=(TODAY,),
        )
        proxy.rewrite = counting
        with CaptureQueriesContext(connection) as queries:
            querier.daily_totals(SLUG)
        # The ledger (with what is being erased) twice, today's rows, and the day that the table begins on.
        assert len(queries) == 6, queries.captured_queries
        with CaptureQueriesContext(connection) as queries:
            querier.daily_totals(SLUG, ago(11_000))
        assert len(queries) == 6, queries.captured_queries
        assert len(requests) == 2 * len(DAYS[:-1])


def test_a_table_that_cannot_be_read_in_time_does_not_spoil_the_callers_transaction(site: str) -> None:
    export("--date", str(ago(3)))
    with psycopg.connect(site) as other, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE projects_project SET name = 'renamed' WHERE slug = %s", [SLUG])
        cursor.execute("SET LOCAL lock_timeout = '50ms'")
        other.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
        querier = PageViewsQuerier()
        querier.daily_totals(SLUG, DAYS[0])
        assert querier.coverage is not None
        assert querier.coverage.complete == (ago(3),)
        assert querier.coverage.live == ()
        other.rollback()
        cursor.execute("SELECT name FROM projects_project WHERE slug = %s", [SLUG])
        assert cursor.fetchone() == ("renamed",)


@pytest.mark.parametrize(("zone", "offset"), [("Pacific/Kiritimati", 14), ("Pacific/Niue", -11)])
def test_today_is_the_day_that_the_table_counts_on(
    site: str, entry: dict[str, Any], zone: str, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon = datetime.datetime.combine(TODAY, datetime.time(12 if offset > 0 else 1), datetime.UTC)
    monkeypatch.setattr(days, "now", lambda: noon)
    there = (noon + datetime.timedelta(hours=offset)).date()
    assert there != TODAY
    with sites.archive(entry, DAY_TIME_ZONE=zone):
        querier = PageViewsQuerier()
        querier.daily_totals(SLUG)
        assert querier.coverage is not None
        assert (querier.coverage.since, querier.coverage.until) == (there - datetime.timedelta(days=30), there)
        assert there in querier.coverage.live
        with pytest.raises(InvalidInput, match="lies after"):
            querier.daily_totals(SLUG, there + datetime.timedelta(days=1))
        with pytest.raises(InvalidInput):
            querier.daily_totals(SLUG, "")


def test_a_sum_beyond_what_a_row_holds_is_whole(site: str) -> None:
    from parquet_analytics.demo.analytics.models import PageView

    some = PageView.objects.filter(project__slug=SLUG, date=TODAY, status=200)
    path = some.first().path
    PageView.objects.filter(pk__in=[page.pk for page in some[:3]]).update(view_count=2**31 - 1)
    expected = views_by_day(site)[TODAY]
    assert expected > 3 * (2**31 - 1) - 1
    querier = PageViewsQuerier()
    assert answered(querier, TODAY) == {TODAY: expected}
    pages = querier.top_pages(SLUG, TODAY, limit=10_000)
    assert sum(pages["count"].to_pylist()) == expected
    assert path in pages["path"].to_pylist()[:3]


@pytest.mark.parametrize(
    ("since", "until"), [("0001-01-01", None), ("0001-01-01", "9999-12-31"), ("2026-07-01", "9999-12-31")]
)
def test_a_mistyped_year_is_refused_before_it_costs_anything(site: str, since: str, until: str | None) -> None:
    querier = PageViewsQuerier()
    with CaptureQueriesContext(connection) as queries, pytest.raises(InvalidInput, match="may span 36600 days"):
        querier.daily_totals(SLUG, since, until)
    assert len(queries) == 0


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31"])
def test_the_first_and_the_last_day_there_are_can_be_asked_about(site: str, day: str) -> None:
    querier = PageViewsQuerier()
    assert querier.daily_totals(SLUG, day, day).num_rows == 0
    assert querier.coverage is not None
    assert querier.coverage.through == (None if day < "2026" else datetime.date.max)


class TestShadow:
    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        shadow.wait()
        shadow._forget()

    def test_a_difference_is_logged_once_and_counted_each_time(
        self, site: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        export("--since", str(DAYS[0]), "--until", str(ago(2)))
        with psycopg.connect(site) as database:
            database.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE date = %s", [ago(3)])
        querier = ShadowQuerier()
        with caplog.at_level(logging.WARNING, "parquet_analytics.shadow"):
            for _ in range(3):
                querier.daily_totals(SLUG, DAYS[0])
            shadow.wait()
            assert caplog.text.count("answers differently") == 1
            querier.daily_totals(SLUG, ago(3))
            shadow.wait()
            assert caplog.text.count("answers differently") == 2
        assert shadow.counts == {"compared": 4, "different": 4, "failed": 0, "dropped": 0}

    def test_how_many_were_compared_is_told_now_and_then(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "parquet_analytics.shadow"):
            for number in range(1, 2_002):
                shadow.submit(lambda: None)
                if number % 50 == 0:
                    shadow.wait()
            shadow.wait()
        about = "in this process: {} compared, 0 different, 0 failed, 0 dropped"
        told = [record.getMessage() for record in caplog.records]
        assert [each.partition("table, ")[2] for each in told] == [about.format(n) for n in ("1", "1,001", "2,001")]

    def test_a_child_compares_although_the_parents_thread_was_busy_when_it_was_made(self) -> None:
        held, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with shadow._lock:
                held.set()
                may_go.wait(30)

        holder = threading.Thread(target=hold)
        shadow.submit(lambda: None)
        shadow.wait()
        holder.start()
        assert held.wait(10)
        child = os.fork()
        if child == 0:
            # os._exit, whatever happens: this is a copy of the test's process.
            outcome = 2
            try:
                compare = threading.Thread(target=lambda: (shadow.submit(lambda: None), shadow.wait()), daemon=True)
                compare.start()
                compare.join(10)
                outcome = 0 if not compare.is_alive() and shadow.counts["compared"] == 1 else 1
            finally:
                os._exit(outcome)
        may_go.set()
        holder.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert shadow.counts["compared"] == 1

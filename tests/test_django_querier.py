"""The Django querier: any mix of days in the table and in the store answers as PostgreSQL alone does, each day from one
place; and what it says when a part is out of reach."""

from __future__ import annotations

import datetime
import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from parquet_analytics import ParquetAnalyticsQuerier
from parquet_analytics.coverage import METADATA, Coverage
from parquet_analytics.django.querier import PageViewsQuerier, pageviews_querier
from parquet_analytics.django.querier import page_views as django_querier
from parquet_analytics.django.runs.ledger import runs
from parquet_analytics.django.shadow import ShadowQuerier, shadow
from parquet_analytics.exceptions import InvalidInput, QueryError, StoreError

from tests import sites
from tests.archives import ORDER, SELECT
from tests.clock import TODAY
from tests.sites import export


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


DAYS = [ago(number) for number in range(6, -1, -1)]
PROJECTS = sites.SAMPLE.special_projects()


@pytest.fixture
def place_entry(place: Any) -> dict[str, Any]:
    return sites.s3_entry(place)


@pytest.fixture
def site(site_database: str, place_entry: dict[str, Any]) -> Iterator[str]:
    """Seven days of page views in the table, until today; nothing is exported yet."""
    with sites.archive(place_entry, HOT_DAYS=1, LOOKBACK_DAYS=1):
        sites.insert(*DAYS)
        yield site_database


def asked(sql: str, url: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as database:
        return database.execute(sql, values).fetchall()


# Each report, and what PostgreSQL says to the same question.
def top_pages(q: PageViewsQuerier, slug: str, status: int | None, limit: int, offset: int) -> Any:
    table = q.top_pages(slug, DAYS[0], status=status, limit=limit, offset=offset)
    return list(zip(table["path"].to_pylist(), table["count"].to_pylist(), strict=True))


TOP_PAGES = """
    SELECT v.path, sum(v.view_count)::bigint FROM analytics_pageview v JOIN projects_project p ON p.id = v.project_id
    WHERE p.slug = %s AND date BETWEEN %s AND %s AND (%s::int IS NULL OR status = %s)
    GROUP BY v.path ORDER BY 2 DESC, v.path COLLATE "C" LIMIT %s OFFSET %s
"""
PER_VERSION = """
    SELECT v.path, sum(v.view_count)::bigint, b.slug FROM analytics_pageview v
    JOIN projects_project p ON p.id = v.project_id LEFT JOIN builds_version b ON b.id = v.version_id
    WHERE p.slug = %s AND date BETWEEN %s AND %s AND status = 200
    GROUP BY v.path, b.slug ORDER BY 2 DESC, v.path COLLATE "C", b.slug COLLATE "C" NULLS FIRST LIMIT 25
"""
TOTALS = """
    SELECT date, sum(view_count)::bigint FROM analytics_pageview v JOIN projects_project p ON p.id = v.project_id
    WHERE p.slug = %s AND date BETWEEN %s AND %s AND (%s::int IS NULL OR status = %s) GROUP BY date ORDER BY date
"""


def compare_all_reports(q: PageViewsQuerier, truth: dict[str, Any], slug: str) -> int:
    """Asks everything about a project and compares; gives the number of comparisons."""
    span = (DAYS[0], TODAY)
    for status in (200, 404, None):
        for limit, offset in ((10, 0), (25, 5), (100_000, 0)):
            assert top_pages(q, slug, status, limit, offset) == truth["top"][status, limit, offset]
        table = q.daily_totals(slug, *span, status=status)
        found = list(zip(table["date"].to_pylist(), table["count"].to_pylist(), strict=True))
        assert found == truth["totals"][status]
        filled = q.daily_totals(slug, *span, status=status, fill=True)
        assert filled["date"].to_pylist() == DAYS
        assert filled["count"].to_pylist() == [dict(found).get(day, 0) for day in DAYS]
    per = q.top_pages(slug, *span, limit=25, per_version=True)
    assert [tuple(row.values()) for row in per.to_pylist()] == truth["versions"]
    rows = q.query_pageviews(slug, *span)
    assert [tuple(row.values()) for row in rows.to_pylist()] == truth["rows"]
    some = q.query_pageviews(slug, *span, columns=["view_count", "path"], status=404)
    assert some.schema.names == ["view_count", "path"]
    assert [tuple(row.values()) for row in some.to_pylist()] == [
        (row[7], row[5]) for row in truth["rows"] if row[9] == 404
    ]
    stream = q.iter_pageviews(slug, *span)
    assert [tuple(row.values()) for row in stream.read_all().to_pylist()] == truth["rows"]
    counted = q.sql("SELECT count(*) n, sum(view_count)::BIGINT v FROM pageviews", since=DAYS[0], projects=[slug])
    assert counted.to_pylist() == [{"n": len(truth["rows"]), "v": sum(row[7] for row in truth["rows"]) or None}]
    both = q.daily_totals(slug, *span, project_id=truth["id"])
    assert both["count"].to_pylist() == [count for _, count in truth["totals"][200]]
    assert q.daily_totals(None, *span, project_id=truth["id"])["count"].to_pylist() == both["count"].to_pylist()
    assert q.daily_totals(slug, *span, project_id=truth["id"] + 1_000_000).num_rows == 0
    labels = q.get_daily_totals_from_parquet(slug, DAYS[0])
    assert labels["int_data"] == [count for _, count in truth["totals"][200]]
    assert [(page["path"], page["count"]) for page in q.get_top_pages_from_parquet(slug, DAYS[0])] == truth["top"][
        200, 10, 0
    ]
    return 27


def truth_of(url: str, slug: str) -> dict[str, Any]:
    span = (DAYS[0], TODAY)
    statuses = (200, 404, None)
    return {
        "id": asked("SELECT id FROM projects_project WHERE slug = %s", url, slug)[0][0],
        "top": {
            (status, limit, offset): asked(TOP_PAGES, url, slug, *span, status, status, limit, offset)
            for status in statuses
            for limit, offset in ((10, 0), (25, 5), (100_000, 0))
        },
        "versions": asked(PER_VERSION, url, slug, *span),
        "totals": {status: asked(TOTALS, url, slug, *span, status, status) for status in statuses},
        "rows": asked(
            f"{SELECT} WHERE p.slug = %s AND v.date BETWEEN %s AND %s ORDER BY v.date DESC, {ORDER}", url, slug, *span
        ),
    }


@pytest.mark.parametrize("seed", range(4))
def test_any_mix_of_live_and_archived_days_answers_as_postgresql_alone(site: str, seed: int) -> None:
    slugs = [PROJECTS["largest"], PROJECTS["tiny"], *random.Random(seed).sample(sorted(set(PROJECTS.values())), 2)]
    truths = {slug: truth_of(site, slug) for slug in dict.fromkeys(slugs)}
    random_ = random.Random(seed)
    places = {day: random_.choice(["live", "archived", "deleted"]) for day in DAYS[:-1]}
    for day, where in places.items():
        if where != "live":
            deleting = ["--delete-after-export"] if where == "deleted" and day < ago(1) else []
            assert export("--date", str(day), *deleting)[0] == 0
    # What is in both places is counted once; what has been archived is answered from there.
    compared = sum(compare_all_reports(PageViewsQuerier(), truth, slug) for slug, truth in truths.items())
    assert compared >= 54
    q = PageViewsQuerier()
    table = q.daily_totals(PROJECTS["largest"], DAYS[0])
    live = tuple(day for day in DAYS if places.get(day, "live") == "live")
    assert q.coverage is not None
    assert q.coverage.live == live
    assert q.coverage.complete == tuple(day for day in DAYS if day not in live)
    assert q.coverage.missing == q.coverage.empty == ()
    assert q.coverage.through == TODAY
    told = json.loads(table.schema.metadata[METADATA])
    assert told["through"] == str(TODAY)


def test_an_archived_day_is_not_read_from_the_table(site: str) -> None:
    """Rows that came after the export are seen when they are merged, and never beside the file."""
    export("--date", str(ago(3)))
    before = PageViewsQuerier().daily_totals(PROJECTS["largest"], ago(3), ago(3))["count"].to_pylist()
    with psycopg.connect(site) as database:
        database.execute("UPDATE analytics_pageview SET view_count = view_count + 1000 WHERE date = %s", [ago(3)])
    assert PageViewsQuerier().daily_totals(PROJECTS["largest"], ago(3), ago(3))["count"].to_pylist() == before
    export("--date", str(ago(3)))
    assert PageViewsQuerier().daily_totals(PROJECTS["largest"], ago(3), ago(3))["count"].to_pylist() > before


def test_a_file_that_is_not_verified_is_not_believed(site: str) -> None:
    slug = PROJECTS["largest"]
    export("--date", str(ago(3)))
    with psycopg.connect(site) as database:
        database.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE date = %s", [ago(3)])
    truth = truth_of(site, slug)["totals"][200]
    for state in ("mismatch", "failed", "unknown", "running", "abandoned"):
        runs().update(state=state)
        q = PageViewsQuerier()
        assert q.daily_totals(slug, DAYS[0])["count"].to_pylist() == [count for _, count in truth]
        assert q.coverage is not None
        assert ago(3) in q.coverage.live


def test_a_file_that_the_ledger_knows_nothing_of_is_believed(site: str) -> None:
    """A library or another site exported it, and may have deleted the rows."""
    slug = PROJECTS["largest"]
    truth = truth_of(site, slug)["totals"][200]
    export("--date", str(ago(3)), "--delete-after-export")
    runs().delete()
    q = PageViewsQuerier()
    assert q.daily_totals(slug, DAYS[0])["count"].to_pylist() == [count for _, count in truth]


def test_days_that_nobody_has_are_missing_and_not_zero(site: str) -> None:
    slug = PROJECTS["largest"]
    with psycopg.connect(site) as database:
        database.execute("DELETE FROM analytics_pageview WHERE date IN (%s, %s)", [ago(4), ago(2)])
    export("--date", str(ago(2)))
    q = PageViewsQuerier()
    q.daily_totals(slug, DAYS[0], fill=True)
    assert q.coverage == Coverage(
        DAYS[0], TODAY, empty=(ago(2),), missing=(ago(4),), live=(ago(6), ago(5), ago(3), ago(1), TODAY)
    )
    assert q.coverage.through == ago(5)


def test_a_file_that_has_vanished_is_made_up_for_by_the_table(site: str, place: Any) -> None:
    slug = PROJECTS["largest"]
    truth = truth_of(site, slug)["totals"][200]
    export("--date", str(ago(3)))
    export("--date", str(ago(2)), "--delete-after-export")
    keys = place.keys()
    for key in keys:
        if key.endswith(".parquet"):
            place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{key}")
    q = PageViewsQuerier(max_age=0)
    assert q.daily_totals(slug, DAYS[0])["count"].to_pylist() == [count for day, count in truth if day != ago(2)]
    assert q.coverage is not None
    assert q.coverage.missing == (ago(2),)
    rows = q.query_pageviews(slug, DAYS[0])
    assert set(rows["date"].to_pylist()) == {*DAYS} - {ago(2)}


def test_a_day_that_is_exported_and_deleted_during_the_question_is_never_zero(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole move happens at the worst moments: before the table is read, and after it."""
    slug = PROJECTS["largest"]
    truth = [count for _, count in truth_of(site, slug)["totals"][200]]
    original = django_querier.LiveRows.rows
    moves: list[datetime.date] = []

    def moving(when: str, day: datetime.date) -> Callable[..., Any]:
        def rows(self: Any, *asked: Any) -> Any:
            if when == "before" and day not in moves:
                moves.append(day)
                assert export("--date", str(day), "--delete-after-export")[0] == 0
            found = original(self, *asked)
            if when == "after" and day not in moves:
                moves.append(day)
                assert export("--date", str(day), "--delete-after-export")[0] == 0
            return found

        return rows

    PageViewsQuerier().daily_totals(slug, DAYS[0])  # believes for a minute that there are no files
    for when, day in (("before", ago(5)), ("after", ago(4)), ("before", ago(3))):
        monkeypatch.setattr(django_querier.LiveRows, "rows", moving(when, day))
        q = PageViewsQuerier()
        assert q.daily_totals(slug, DAYS[0])["count"].to_pylist() == truth
        assert q.coverage is not None
        assert day in q.coverage.complete
    assert len(moves) == 3
    # The same without any word in the ledger, by the store alone.
    runs().delete()
    monkeypatch.setattr(django_querier.LiveRows, "rows", moving("before", ago(2)))
    monkeypatch.setattr(PageViewsQuerier, "_ledger", lambda *_: django_querier.Ledger())
    assert PageViewsQuerier().daily_totals(slug, DAYS[0])["count"].to_pylist() == truth


@pytest.fixture
def database_down(site: str) -> Iterator[Callable[[], None]]:
    port = connections["default"].settings_dict["PORT"]

    def down() -> None:
        connections["default"].close()
        connections["default"].settings_dict["PORT"] = "1"

    yield down
    connections["default"].settings_dict["PORT"] = port


def test_with_the_database_down_files_answer_and_the_rest_is_missing(
    site: str, database_down: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    slug = PROJECTS["largest"]
    truth = dict(truth_of(site, slug)["totals"][200])
    for number in (6, 5, 4):
        export("--date", str(ago(number)))
    database_down()
    q = PageViewsQuerier()
    with caplog.at_level(logging.WARNING, "parquet_analytics"):
        table = q.daily_totals(slug, DAYS[0])
    assert table["count"].to_pylist() == [truth[ago(number)] for number in (6, 5, 4)]
    assert q.coverage == Coverage(
        DAYS[0], TODAY, complete=(ago(6), ago(5), ago(4)), missing=(ago(3), ago(2), ago(1), TODAY)
    )
    assert f"the database cannot be asked for {ago(3)} to {TODAY}" in caplog.text
    assert connections["default"].settings_dict["PASSWORD"] not in caplog.text
    assert q.query_pageviews(slug, DAYS[0]).num_rows > 0
    assert len(list(q.iter_pageviews(slug, DAYS[0]))) > 0


def test_with_the_store_down_the_table_answers_what_it_has(
    site: str, place_entry: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    slug = PROJECTS["largest"]
    truth = dict(truth_of(site, slug)["totals"][200])
    export("--date", str(ago(6)), "--delete-after-export")
    export("--date", str(ago(5)))
    # Late rows of a deleted day are in the table; they are a part, and so no answer.
    sites.few(ago(6), project="late")
    location = runs()[0].location
    down = place_entry | {"OPTIONS": place_entry["OPTIONS"] | {"endpoint_url": "http://127.0.0.1:1"}}
    with sites.archive(down, HOT_DAYS=1, LOOKBACK_DAYS=1), caplog.at_level(logging.WARNING, "parquet_analytics"):
        q = PageViewsQuerier(max_age=0)
        assert q._location == location
        table = q.daily_totals(slug, DAYS[0])
        assert table["count"].to_pylist() == [truth[day] for day in DAYS[1:]]
        assert q.coverage is not None
        assert q.coverage.missing == (ago(6),)
        assert q.coverage.live == tuple(DAYS[1:])
        assert f"the store cannot be asked; from the table without {ago(6)}" in caplog.text


def test_with_both_down_it_is_an_error(
    site: str, place_entry: dict[str, Any], database_down: Callable[[], None]
) -> None:
    down = place_entry | {"OPTIONS": place_entry["OPTIONS"] | {"endpoint_url": "http://127.0.0.1:1"}}
    with sites.archive(down):
        q = PageViewsQuerier(max_age=0)
        database_down()
        with pytest.raises(StoreError) as caught:
            q.daily_totals(PROJECTS["largest"], DAYS[0])
    assert caught.value.retryable


def test_a_transaction_of_the_caller_is_seen_and_not_spoilt(site: str) -> None:
    slug = PROJECTS["largest"]
    export("--date", str(ago(3)))
    before = PageViewsQuerier().daily_totals(slug, TODAY)["count"].to_pylist()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE date = %s", [TODAY])
        assert PageViewsQuerier().daily_totals(slug, TODAY)["count"].to_pylist() > before
        with connection.cursor() as cursor:
            cursor.execute("SAVEPOINT before; ALTER TABLE parquet_analytics_run RENAME TO elsewhere")
        assert PageViewsQuerier().daily_totals(slug, DAYS[0]).num_rows == 7
        assert connection.is_usable()
        transaction.set_rollback(True)
    assert PageViewsQuerier().daily_totals(slug, TODAY)["count"].to_pylist() == before


def test_a_small_question_asks_the_database_little(site: str) -> None:
    export("--since", str(DAYS[0]))
    q = PageViewsQuerier()
    with CaptureQueriesContext(connection) as queries:
        q.daily_totals(PROJECTS["largest"], DAYS[0])
    # Projects that are being erased, the ledger, and today's rows.
    assert len(queries) == 3, queries.captured_queries
    with CaptureQueriesContext(connection) as queries:
        q.daily_totals(PROJECTS["largest"], DAYS[0], ago(1))
    assert len(queries) == 2, queries.captured_queries


def test_mistakes_are_explained_as_by_the_library(site: str) -> None:
    q = PageViewsQuerier()
    with pytest.raises(InvalidInput, match="there is no column"):
        q.query_pageviews("x", columns=["nope"])
    with pytest.raises(InvalidInput, match="name the project"):
        q.top_pages(None)
    with pytest.raises(QueryError):
        q.sql("DELETE FROM pageviews")


class TestShadow:
    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        shadow.wait()
        shadow._process = None

    def test_the_table_answers_and_the_archive_is_compared(self, site: str) -> None:
        export("--since", str(DAYS[0]), "--until", str(ago(2)))
        slug = PROJECTS["largest"]
        truth = truth_of(site, slug)
        q = ShadowQuerier()
        compare_all_reports(q, truth, slug)
        assert q.coverage is not None
        assert q.coverage.live == tuple(DAYS)
        shadow.wait()
        assert shadow.counts["compared"] > 20
        assert (shadow.counts["different"], shadow.counts["failed"], shadow.counts["dropped"]) == (0, 0, 0)

    def test_a_difference_is_logged_with_the_question_and_counted(
        self, site: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        export("--since", str(DAYS[0]), "--until", str(ago(2)))
        with psycopg.connect(site) as database:
            database.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE date = %s", [ago(3)])
        q = ShadowQuerier()
        with caplog.at_level(logging.WARNING, "parquet_analytics.shadow"):
            q.daily_totals(PROJECTS["largest"], DAYS[0])
            q.query_pageviews(PROJECTS["largest"], ago(3), ago(3))
            q.daily_totals(PROJECTS["largest"], ago(5), ago(4))
            shadow.wait()
        assert shadow.counts == {"compared": 3, "different": 2, "failed": 0, "dropped": 0}
        assert PROJECTS["largest"] in caplog.text
        assert repr(ago(3)) in caplog.text

    def test_an_archive_that_is_down_harms_nobody(self, site: str, place_entry: dict[str, Any]) -> None:
        export("--date", str(ago(3)))
        truth = truth_of(site, PROJECTS["largest"])["totals"][200]
        down = place_entry | {"OPTIONS": place_entry["OPTIONS"] | {"endpoint_url": "http://127.0.0.1:1"}}
        with sites.archive(down, SHADOW=True):
            q = pageviews_querier()
            assert isinstance(q, ShadowQuerier)
            assert q.daily_totals(PROJECTS["largest"], DAYS[0])["count"].to_pylist() == [count for _, count in truth]
            shadow.wait()
        assert shadow.counts["failed"] == 1

    def test_without_the_setting_it_is_the_hybrid_one(self, site: str) -> None:
        assert type(pageviews_querier()) is PageViewsQuerier


class TestLibraryCoverage:
    """What the library's own querier says of days."""

    def test_complete_empty_and_missing_are_three(self, tmp_path: Path) -> None:
        from parquet_analytics import ParquetAnalyticsExporter

        exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=sites.SAMPLE.day)
        exporter.export_daily_pageviews("2026-07-01")
        empty = sites.SAMPLE.day("2026-07-02").read_all().slice(0, 0)
        ParquetAnalyticsExporter(tmp_path.as_uri(), source=empty).export_daily_pageviews("2026-07-02", allow_empty=True)
        q = ParquetAnalyticsQuerier(tmp_path.as_uri())
        assert q.coverage is None
        first, second, third = (datetime.date(2026, 7, day) for day in (1, 2, 3))
        expected = Coverage(first, third, complete=(first,), empty=(second,), missing=(third,))
        slug = PROJECTS["largest"]
        for ask in (
            lambda: q.daily_totals(slug, first, third),
            lambda: q.top_pages("nobody-has-this", first, third),
            lambda: q.query_pageviews(slug, first, third),
            lambda: q.sql("SELECT count(*) FROM pageviews", since=first, until=third),
        ):
            table = ask()
            assert q.coverage == expected
            assert table.schema.metadata[METADATA] == str(expected).encode()
        assert expected.through == second
        assert json.loads(str(expected)) == {
            "since": "2026-07-01",
            "until": "2026-07-03",
            "through": "2026-07-02",
            "complete": [["2026-07-01", "2026-07-01"]],
            "empty": [["2026-07-02", "2026-07-02"]],
            "missing": [["2026-07-03", "2026-07-03"]],
            "live": [],
        }
        reader = q.iter_pageviews(slug, first, third)
        assert reader.schema.metadata[METADATA] == str(expected).encode()
        assert pa.Table.from_batches(reader).num_rows > 0
        q.sql("SELECT 1", since=first, until=third)
        assert q.coverage is None

    def test_a_hundred_years_of_coverage_stay_small(self) -> None:
        since = datetime.date(1926, 7, 1)
        all_days = tuple(since + datetime.timedelta(days=number) for number in range(36_600))
        coverage = Coverage(since, all_days[-1], complete=all_days[:-1], missing=all_days[-1:])
        assert len(str(coverage)) < 300
        assert coverage.through == all_days[-2]
        assert Coverage(since, since, missing=(since,)).through is None

    def test_data_reach_through_the_day_before_the_first_gap(self) -> None:
        """The days before a site's first are no gap."""
        a, b, c, d, e = (datetime.date(2026, 7, day) for day in range(1, 6))
        assert Coverage(a, e, missing=(a, b), complete=(c,), live=(d, e)).through == e
        assert Coverage(a, e, missing=(a, d), complete=(b,), empty=(c,), live=(e,)).through == c
        assert Coverage(a, e, missing=(d, e), complete=(b, c), empty=(a,)).through == c

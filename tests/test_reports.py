"""Each report compared with the same question asked of PostgreSQL, over a week in which one day is missing."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from parquet_analytics import ParquetAnalyticsQuerier
from parquet_analytics.exceptions import InvalidInput

from tests.archives import REUSED, SCHEMA, SELECT, TIES, Exported, rows_of

Days = tuple[datetime.date, datetime.date]
Ask = Callable[..., list[tuple[Any, ...]]]
WHERE = "v.date BETWEEN %(since)s AND %(until)s AND (%(status)s::int IS NULL OR v.status = %(status)s)"
MISSING = "no-such-project"


@pytest.fixture(scope="module")
def querier(week: Exported) -> ParquetAnalyticsQuerier:
    return week.place.querier()


@pytest.fixture(scope="module")
def all_days(week: Exported) -> Days:
    return week.days[0] - datetime.timedelta(days=1), week.days[-1]


@pytest.fixture(scope="module")
def projects(week: Exported) -> list[tuple[int, str]]:
    """Fifty projects (id, slug): the special ones, one that does not exist, and others."""
    ids = {row["slug"]: row["id"] for row in week.sample.projects().to_pylist()}
    special = list(week.sample.special_projects().values())
    others = [slug for slug in ids if slug not in special]
    chosen = [*special, *others[: 48 - len(special)]]
    return [*((ids[slug], slug) for slug in chosen), (900_001, TIES), (999_999, MISSING)]


@pytest.fixture(scope="module")
def ask(week: Exported) -> Iterator[Ask]:
    """Asks PostgreSQL."""
    with psycopg.connect(week.database, autocommit=True) as connection:
        yield lambda sql, **parameters: connection.execute(sql, parameters).fetchall()


def rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_the_projects_are_fifty_and_of_every_kind(ask: Ask, week: Exported, projects: list[tuple[int, str]]) -> None:
    assert len(set(projects)) == 50
    kinds = ask(
        "SELECT p.slug, count(*), count(*) FILTER (WHERE status <> 404), count(version_id) FROM analytics_pageview v "
        "JOIN projects_project p ON p.id = v.project_id GROUP BY 1",
    )
    by_slug = {slug: counts for slug, *counts in kinds}
    special = week.sample.special_projects()
    assert by_slug[special["only_404"]][1] == 0
    assert by_slug[special["no_versions"]][2] == 0
    assert by_slug[special["tiny"]][0] == len(week.days)
    assert by_slug[special["largest"]][0] == max(count for count, *_ in by_slug.values())
    assert MISSING not in by_slug


def test_pageviews_of_each_project(
    ask: Ask, week: Exported, querier: ParquetAnalyticsQuerier, projects: list[tuple[int, str]], all_days: Days
) -> None:
    order = 'v.date DESC, v.status, v.path COLLATE "C", b.slug COLLATE "C" NULLS FIRST, v.id'
    seen = 0
    for number, slug in projects:
        expected = ask(f"{SELECT} WHERE p.slug = %(slug)s ORDER BY {order}", slug=slug)
        table = querier.query_pageviews(slug, *all_days)
        assert table.schema.equals(SCHEMA)
        assert rows(table) == expected, slug
        assert querier.query_pageviews(None, *all_days, project_id=number).equals(table), slug
        assert querier.query_pageviews(slug, *all_days, project_id=number).equals(table), slug
        stream = querier.iter_pageviews(slug, *all_days)
        assert isinstance(stream, pa.RecordBatchReader)
        assert stream.read_all().equals(table), slug
        seen += len(expected)
    assert seen > 25_000


def test_pageviews_of_a_status_and_some_columns(
    week: Exported, querier: ParquetAnalyticsQuerier, all_days: Days
) -> None:
    slug = week.sample.special_projects()["largest"]
    whole = querier.query_pageviews(slug, *all_days)
    found = querier.query_pageviews(slug, *all_days, status=404, columns=["path", "view_count"])
    wanted = [row[5:8:2] for row in rows(whole) if row[9] == 404]
    assert rows(found) == wanted
    assert 0 < found.num_rows < whole.num_rows
    assert found.schema.names == ["path", "view_count"]


@pytest.mark.parametrize("status", [200, 404, None])
@pytest.mark.parametrize("per_version", [False, True])
def test_top_pages_of_each_project(
    ask: Ask,
    status: int | None,
    per_version: bool,
    week: Exported,
    querier: ParquetAnalyticsQuerier,
    projects: list[tuple[int, str]],
    all_days: Days,
) -> None:
    version, also = (", b.slug", ', b.slug COLLATE "C" NULLS FIRST') if per_version else ("", "")
    sql = f"""
        SELECT v.path, sum(v.view_count)::bigint{version} FROM analytics_pageview v
        JOIN projects_project p ON p.id = v.project_id LEFT JOIN builds_version b ON b.id = v.version_id
        WHERE p.slug = %(slug)s AND {WHERE} GROUP BY v.path{version}
        ORDER BY 2 DESC, v.path COLLATE "C"{also} LIMIT %(limit)s OFFSET %(offset)s
    """
    days = dict(zip(("since", "until"), all_days, strict=True))
    answered = 0
    for number, slug in projects:
        for limit, offset in ((10, 0), (1000, 5)):
            expected = ask(sql, slug=slug, status=status, limit=limit, offset=offset, **days)
            ours = {
                "limit": limit,
                "offset": offset,
                "status": status,
                "per_version": per_version,
                "project_id": number,
            }
            table = querier.top_pages(slug, *all_days, **ours)
            assert table.schema.names == ["path", "count", *(["version_slug"] if per_version else [])]
            assert rows(table) == expected, (slug, limit, offset)
            answered += bool(expected)
    assert answered > 40


def test_pages_that_tie_come_in_byte_order_of_their_path(week: Exported, querier: ParquetAnalyticsQuerier) -> None:
    table = querier.top_pages(TIES, week.days[0], week.days[-1], limit=100)
    paths = ["/A", "/_", "/a", "/a/", "/b", "/é", "/\uffee", "/\U0001f600"]
    assert rows(table) == [(path, 3 * 2 * len(week.days)) for path in paths]
    pages = [
        querier.top_pages(TIES, week.days[0], limit=3, offset=offset)["path"].to_pylist() for offset in range(0, 9, 3)
    ]
    assert [path for page in pages for path in page] == paths


def test_limits_of_none_and_beyond_the_end(week: Exported, querier: ParquetAnalyticsQuerier) -> None:
    assert querier.top_pages(TIES, week.days[0], limit=0).num_rows == 0
    assert querier.top_pages(TIES, week.days[0], offset=8).num_rows == 0
    assert querier.top_pages(TIES, week.days[0], limit=2**63 - 1).num_rows == 8


@pytest.mark.parametrize("status", [200, 404, None])
@pytest.mark.parametrize("fill", [False, True])
def test_daily_totals_of_each_project(
    ask: Ask,
    status: int | None,
    fill: bool,
    week: Exported,
    querier: ParquetAnalyticsQuerier,
    projects: list[tuple[int, str]],
    all_days: Days,
) -> None:
    counted = f"""
        SELECT v.date, sum(v.view_count)::bigint AS count FROM analytics_pageview v
        JOIN projects_project p ON p.id = v.project_id WHERE p.slug = %(slug)s AND {WHERE} GROUP BY v.date
    """
    filled = f"""
        SELECT day::date, coalesce(count, 0)
        FROM generate_series(%(since)s::date, %(until)s::date, '1 day') AS days (day)
        LEFT JOIN ({counted}) AS counted ON counted.date = day::date ORDER BY 1
    """
    days = dict(zip(("since", "until"), all_days, strict=True))
    answered = 0
    for number, slug in projects:
        expected = ask(filled if fill else f"{counted} ORDER BY 1", slug=slug, status=status, **days)
        table = querier.daily_totals(slug, *all_days, project_id=number, status=status, fill=fill)
        assert table.schema.equals(pa.schema([("date", pa.date32()), ("count", pa.int64())]))
        assert rows(table) == expected, slug
        answered += any(count for _, count in expected)
    assert answered > 40


def test_a_missing_day_is_absent_and_zero_when_filled(week: Exported, querier: ParquetAnalyticsQuerier) -> None:
    gap = week.days[2] + datetime.timedelta(days=1)
    assert gap not in week.days
    slug = week.sample.special_projects()["largest"]
    assert querier.query_pageviews(slug, gap, gap).num_rows == 0
    assert rows(querier.daily_totals(slug, week.days[0], week.days[-1]))[2:4] == [
        (day, total) for day, total in rows(querier.daily_totals(slug, week.days[2], week.days[3]))
    ]
    filled = querier.daily_totals(slug, week.days[2], week.days[3], fill=True).to_pylist()
    assert [row["date"] for row in filled] == [week.days[2], gap, week.days[3]]
    assert filled[1]["count"] == 0
    [state] = querier.explain(slug, gap, gap).to_pylist()
    assert (state["date"], state["state"]) == (gap, "absent")


def test_the_reads_that_dashboards_have_today(
    ask: Ask, week: Exported, querier: ParquetAnalyticsQuerier, projects: list[tuple[int, str]]
) -> None:
    since = week.days[1]
    for number, slug in projects:
        for status in (200, 404):
            top = ask(
                "SELECT v.path, sum(v.view_count)::bigint FROM analytics_pageview v "
                "WHERE v.project_id = %(project)s AND v.date >= %(since)s AND v.status = %(status)s "
                'GROUP BY v.path ORDER BY 2 DESC, v.path COLLATE "C" LIMIT 10',
                project=number,
                since=since,
                status=status,
            )
            answer = querier.get_top_pages_from_parquet(slug, since, status=status, project_id=number)
            assert answer == [{"path": path, "count": count} for path, count in top], slug
            totals = ask(
                "SELECT to_char(v.date, 'DD Mon'), sum(v.view_count)::bigint FROM analytics_pageview v "
                "WHERE v.project_id = %(project)s AND v.date >= %(since)s AND v.status = %(status)s "
                "GROUP BY v.date ORDER BY v.date",
                project=number,
                since=since,
                status=status,
            )
            chart = querier.get_daily_totals_from_parquet(slug, since, status, project_id=number)
            assert chart == {"labels": [day for day, _ in totals], "int_data": [count for _, count in totals]}, slug
    assert querier.get_daily_totals_from_parquet(MISSING) == {"labels": [], "int_data": []}
    assert querier.get_top_pages_from_parquet(MISSING) == []
    assert len(querier.get_top_pages_from_parquet(projects[0][1], since, 3)) == 3


def test_thirty_days_until_today_are_the_default(week: Exported, querier: ParquetAnalyticsQuerier) -> None:
    slug = week.sample.special_projects()["largest"]
    everything = querier.query_pageviews(slug, week.days[0], week.days[-1])
    assert querier.query_pageviews(slug).equals(everything)
    today = datetime.datetime.now(datetime.UTC).date()
    days = querier.explain(slug)["date"].to_pylist()
    assert (days[0], days[-1], len(days)) == (today, today - datetime.timedelta(days=30), 31)


def test_a_slug_and_an_id_that_do_not_belong_together_have_no_rows(
    week: Exported, querier: ParquetAnalyticsQuerier, projects: list[tuple[int, str]], all_days: Days
) -> None:
    (first, slug), (second, _) = projects[0], projects[5]
    assert querier.query_pageviews(slug, *all_days, project_id=first).num_rows > 0
    assert querier.query_pageviews(slug, *all_days, project_id=second).num_rows == 0
    assert querier.top_pages(slug, *all_days, project_id=second).num_rows == 0
    assert querier.daily_totals(slug, *all_days, project_id=second).num_rows == 0
    filled = querier.daily_totals(slug, *all_days, project_id=second, fill=True)
    assert set(filled["count"].to_pylist()) == {0}
    with pytest.raises(InvalidInput, match="slug, project_id or both"):
        querier.top_pages(None)


def test_a_slug_that_passed_to_another_project_is_told_apart_by_the_id(
    week: Exported, querier: ParquetAnalyticsQuerier, all_days: Days
) -> None:
    def pages(**who: Any) -> dict[str, int]:
        return dict(rows(querier.top_pages(who.get("slug"), *all_days, project_id=who.get("project_id"))))

    assert pages(slug=REUSED) == {"/old-owner": 12, "/new-owner": 6}
    assert pages(slug=REUSED, project_id=900_002) == {"/old-owner": 12}
    assert pages(slug=REUSED, project_id=900_003) == {"/new-owner": 6}
    assert pages(project_id=900_002) == {"/old-owner": 12}


def test_sql_over_everything(ask: Ask, week: Exported, querier: ParquetAnalyticsQuerier, all_days: Days) -> None:
    sql = """
        SELECT date, status, count(*) AS rows, count(version_id) AS versions, sum(view_count)::bigint AS views,
               count(DISTINCT path) AS paths, min(path {0}) AS first, max(full_path {0}) AS last, min(id) AS id
        FROM {1} GROUP BY date, status ORDER BY date, status
    """
    ours = querier.sql(sql.format("", "pageviews"), since=all_days[0], until=all_days[1])
    assert rows(ours) == ask(sql.format('COLLATE "C"', "analytics_pageview"))
    assert ours.num_rows == 2 * len(week.days)


def test_sql_of_some_projects_with_values(
    ask: Ask, week: Exported, querier: ParquetAnalyticsQuerier, projects: list[tuple[int, str]], all_days: Days
) -> None:
    slugs = [slug for _, slug in projects[:5]]
    span = {"since": all_days[0], "until": all_days[1], "projects": slugs}
    expected = ask(
        "SELECT p.slug, v.date, sum(v.view_count)::bigint FROM analytics_pageview v JOIN projects_project p "
        "ON p.id = v.project_id WHERE p.slug = ANY(%(slugs)s) AND v.status = 404 AND v.date <> %(day)s "
        'GROUP BY 1, 2 ORDER BY p.slug COLLATE "C", 2',
        slugs=slugs,
        day=week.days[0],
    )
    text = (
        "SELECT project_slug, date, sum(view_count)::BIGINT FROM pageviews WHERE status = {} AND date <> {} "
        "GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert rows(querier.sql(text.format("?", "?"), [404, week.days[0]], **span)) == expected
    assert rows(querier.sql(text.format("$2", "$1"), [week.days[0], 404], **span)) == expected
    assert rows(querier.sql(text.format("$status", "$day"), {"status": 404, "day": week.days[0]}, **span)) == expected
    assert len(expected) > 10
    assert querier.sql("SELECT count(*) AS n FROM pageviews", projects=[MISSING]).to_pylist() == [{"n": 0}]
    one = querier.sql("SELECT DISTINCT project_slug FROM pageviews", project_id=projects[1][0], since=all_days[0])
    assert one.to_pylist() == [{"project_slug": projects[1][1]}]


def test_every_row_is_there_once(week: Exported, querier: ParquetAnalyticsQuerier, all_days: Days) -> None:
    table = querier.sql("SELECT id FROM pageviews", since=all_days[0], until=all_days[1])
    expected = [row[0] for row in rows_of(week.database, "SELECT id FROM analytics_pageview ORDER BY id")]
    assert sorted(table["id"].to_pylist()) == expected


def test_urls_of_objects_are_as_other_tools_take_them(week: Exported, querier: ParquetAnalyticsQuerier) -> None:
    [key] = week.results[0]["files"]
    assert querier.get_s3_url(key) == f"{week.place.url}/{key}"

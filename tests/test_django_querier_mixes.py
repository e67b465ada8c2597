"""Days of six kinds, mixed by chance: in the store, in the table, in both, in neither, empty, or with a file that does
not count. Every report is what SQL says over all rows that there ever were."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from parquet_analytics.coverage import METADATA, Coverage
from parquet_analytics.django.models import Run
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import delete_day, export_day

from tests import sites
from tests.archives import SCHEMA, Place, execute, rows_of
from tests.clock import TODAY

KINDS = ("archived", "deleted", "live", "missing", "empty", "unverified")

Ask = Callable[..., list[tuple[Any, ...]]]

# Every row that there ever was, whatever the table still has.
ROWS = """
    SELECT v.id, v.project_id, p.slug AS project_slug, v.version_id, b.slug AS version_slug, v.path, v.full_path,
           v.view_count, v.date, v.status::smallint AS status
    FROM everything v
    JOIN projects_project p ON p.id = v.project_id
    LEFT JOIN builds_version b ON b.id = v.version_id
"""
ORDER = 'date DESC, project_slug COLLATE "C", status, path COLLATE "C", version_slug COLLATE "C" NULLS FIRST, id'


def back(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


@pytest.fixture
def site(site_database: str, place: Place) -> Iterator[str]:
    """A site whose storage is an empty place in the S3 server, and whose rows may go after a day."""
    with sites.archive(sites.s3_entry(place), HOT_DAYS=1):
        yield site_database


def remember(url: str) -> None:
    execute(url, "DROP TABLE IF EXISTS everything", "CREATE TABLE everything AS SELECT * FROM analytics_pageview")


def mixed(url: str, seed: int) -> dict[str, list[datetime.date]]:
    """Ten days, each of a kind by chance, and today."""
    choose = random.Random(seed)
    kinds = {back(number): choose.choice(KINDS) for number in range(2, 11)}
    kinds |= {back(1): "live", back(11): "deleted", back(12): "missing"}
    sample = sites.SampleData(rows_per_day=300, projects=9, seed=seed, growth=0.0, weekly_rhythm=False)
    with_rows = [day for day, kind in kinds.items() if kind not in {"missing", "empty"}]
    sites.insert(*with_rows, TODAY, sample=sample)
    remember(url)
    for day, kind in kinds.items():
        if kind in {"archived", "deleted", "empty"}:
            export_day(day, allow_empty=kind == "empty")
        if kind == "deleted":
            delete_day(day)
        if kind == "unverified":
            export_day(day)
            Run.objects.filter(day=day).update(state=Run.State.FAILED)
    by_kind: dict[str, list[datetime.date]] = {kind: [] for kind in KINDS}
    for day in sorted(kinds):
        by_kind[kinds[day]].append(day)
    return by_kind


def plain(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_a_mix_of_all_kinds_of_days_is_answered_as_postgresql_alone_would(site: str) -> None:
    compare_every_report(site, 1)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_many_mixes_of_days_are_answered_as_postgresql_alone_would(site_database: str, place: Place) -> None:
    tables = "analytics_pageview, projects_project, builds_version, parquet_analytics_run"
    for seed in range(3, 13):
        execute(site_database, f"TRUNCATE {tables} CASCADE")
        with sites.archive(sites.s3_entry(place), HOT_DAYS=1, PREFIX=f"mix-{seed}"):
            compare_every_report(site_database, seed)


def compare_every_report(site: str, seed: int) -> None:
    by_kind = mixed(site, seed)
    querier = PageViewsQuerier()
    expected_coverage = Coverage(
        back(12),
        TODAY,
        complete=tuple(sorted(by_kind["archived"] + by_kind["deleted"])),
        empty=tuple(by_kind["empty"]),
        missing=tuple(by_kind["missing"]),
        live=tuple(sorted([*by_kind["live"], *by_kind["unverified"], TODAY])),
    )
    since, until = back(12), TODAY
    with psycopg.connect(site, autocommit=True) as postgres:

        def ask(sql: str, **given: Any) -> list[tuple[Any, ...]]:
            about = {"slug": None, "number": None, "status": None, "since": since, "until": until} | given
            return postgres.execute(
                f"""
                WITH pageviews AS ({ROWS}), asked AS (
                    SELECT * FROM pageviews
                    WHERE (%(slug)s::text IS NULL OR project_slug = %(slug)s)
                    AND (%(number)s::int IS NULL OR project_id = %(number)s)
                    AND (%(status)s::int IS NULL OR status = %(status)s)
                    AND date BETWEEN %(since)s AND %(until)s
                ) {sql}
                """,  # type: ignore[arg-type]
                about,
            ).fetchall()

        names = [(number, slug) for number, slug in rows_of(site, "SELECT id, slug FROM projects_project ORDER BY id")]
        answered = 0
        for number, slug in [*names[:6], (999_999, "nobody")]:
            for who, given in (
                ({"slug": slug}, (slug, {})),
                ({"number": number}, (None, {"project_id": number})),
                ({"slug": slug, "number": number}, (slug, {"project_id": number})),
                ({"slug": "nobody", "number": number}, ("nobody", {"project_id": number})),
            ):
                name, more = given
                expected = ask(f"SELECT * FROM asked ORDER BY {ORDER}", **who)
                found = querier.query_pageviews(name, since, until, **more)
                assert found.schema.remove_metadata() == SCHEMA
                assert plain(found) == expected
                assert querier.coverage == expected_coverage
                stream = querier.iter_pageviews(name, since, until, **more)
                assert stream.schema.metadata[METADATA] == str(expected_coverage).encode()
                assert stream.read_all().equals(found)
                answered += len(expected)
            for status in (200, 404, None):
                days = since + datetime.timedelta(days=seed % 5), until - datetime.timedelta(days=seed % 3)
                who = {"slug": slug, "status": status, "since": days[0], "until": days[1]}
                found = querier.query_pageviews(slug, *days, status=status, columns=["date", "view_count"])
                assert plain(found) == ask(f"SELECT date, view_count FROM asked ORDER BY {ORDER}", **who)
                found = querier.daily_totals(slug, *days, status=status)
                totals = ask("SELECT date, sum(view_count)::bigint FROM asked GROUP BY 1 ORDER BY 1", **who)
                assert plain(found) == totals
                found = querier.daily_totals(slug, *days, status=status, fill=True)
                every = [days[0] + datetime.timedelta(days=number) for number in range((days[1] - days[0]).days + 1)]
                assert plain(found) == [(day, dict(totals).get(day, 0)) for day in every]
                for limit, offset in ((10, 0), (3, 2), (10_000, 0)):
                    top = 'SELECT path, sum(view_count)::bigint FROM asked GROUP BY 1 ORDER BY 2 DESC, path COLLATE "C"'
                    found = querier.top_pages(slug, *days, status=status, limit=limit, offset=offset)
                    assert plain(found) == ask(f"{top} LIMIT {limit} OFFSET {offset}", **who)
                top = """SELECT path, sum(view_count)::bigint, version_slug FROM asked GROUP BY 1, 3
                         ORDER BY 2 DESC, path COLLATE "C", version_slug COLLATE "C" NULLS FIRST LIMIT 20"""
                found = querier.top_pages(slug, *days, status=status, limit=20, per_version=True)
                assert plain(found) == ask(top, **who)
        assert answered > 1_000
        text = "SELECT project_slug, status, count(*), sum(view_count)::bigint AS views FROM {} GROUP BY 1, 2"
        slugs = [slug for _, slug in names[:3]]
        for projects in (None, slugs):
            found = querier.sql(text.format("pageviews"), since=since, until=until, projects=projects)
            given = {"slug": None}
            expected = [row for row in ask(text.format("asked"), **given) if projects is None or row[0] in projects]
            assert sorted(plain(found)) == sorted(expected)
            assert querier.coverage == expected_coverage

"""Projects and versions that were renamed, deleted, or whose slug passed to others: by id, all of a project is found,
and nothing else, wherever its days are and whatever its slug was when they were written."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsQuerier
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.builds.models import Version
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.shadow import ShadowQuerier, shadow
from parquet_analytics.exceptions import InvalidInput

from tests import sites
from tests.clock import TODAY
from tests.sites import export

DAYS = [TODAY - datetime.timedelta(days=number) for number in range(8, -1, -1)]
SPECIAL = sites.SAMPLE.special_projects()

TRUTH = "SELECT {} FROM truth WHERE project_id = %s AND ({}) {}"


class Site:
    """The site's database, and a copy of every page view that it ever had."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.execute("CREATE TABLE truth AS SELECT * FROM analytics_pageview")

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as database:
            cursor = database.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def late(self, project: Project, day: datetime.date, path: str) -> None:
        row = PageView.objects.create(project=project, path=path, full_path=f"/en{path}", view_count=7, date=day)
        self.execute("INSERT INTO truth SELECT * FROM analytics_pageview WHERE id = %s", row.pk)

    def truth(self, columns: str, project: int, condition: str = "TRUE", more: str = "") -> list[tuple[Any, ...]]:
        return self.execute(TRUTH.format(columns, condition, more), project)

    def compare(self, querier: ParquetAnalyticsQuerier, project: int) -> None:
        """Everything that can be asked by id, against the copy."""
        only: dict[str, Any] = {"project_id": project}
        ids = querier.query_pageviews(None, DAYS[0], **only)["id"].to_pylist()
        assert sorted(ids) == [row for (row,) in self.truth("id", project, more="ORDER BY id")]
        for status in (200, 404, None):
            where = "TRUE" if status is None else f"status = {status}"
            totals = querier.daily_totals(None, DAYS[0], status=status, **only)
            assert rows(totals) == self.truth("date, sum(view_count)::bigint", project, where, "GROUP BY 1 ORDER BY 1")
            for by in ("path", "full_path"):
                found = querier.top_pages(None, DAYS[0], status=status, limit=10_000, by=by, **only)
                assert found.schema.names == [by, "count"]
                order = f'GROUP BY 1 ORDER BY 2 DESC, {by} COLLATE "C" NULLS FIRST'
                assert rows(found) == self.truth(f"{by}, sum(view_count)::bigint", project, where, order)
        versions = [None, *(row for (row,) in self.truth("DISTINCT version_id", project) if row)][:3]
        numbers = ", ".join(str(number) for number in versions[1:]) or "-1"
        where = f"version_id IS NULL OR version_id IN ({numbers})"
        chosen = querier.query_pageviews(None, DAYS[0], versions=versions, **only)
        assert sorted(chosen["id"].to_pylist()) == [row for (row,) in self.truth("id", project, where, "ORDER BY id")]
        streamed = querier.iter_pageviews(None, DAYS[0], versions=versions, **only).read_all()
        assert streamed["id"].to_pylist() == chosen["id"].to_pylist()
        totals = querier.daily_totals(None, DAYS[0], status=None, versions=versions[1:], **only)
        assert rows(totals) == self.truth(
            "date, sum(view_count)::bigint", project, f"version_id IN ({numbers})", "GROUP BY 1 ORDER BY 1"
        )
        counted = querier.sql("SELECT count(*) FROM pageviews", since=DAYS[0], versions=versions, **only)
        assert rows(counted) == [(chosen.num_rows,)]
        assert querier.top_pages(None, DAYS[0], versions=[], **only).num_rows == 0


def rows(table: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.fixture
def site(site_database: str, tmp_path: Path) -> Iterator[Site]:
    with sites.archive(tmp_path / "archive", ALLOW_LOCAL_DELETE=True, HOT_DAYS=1, LOOKBACK_DAYS=1):
        sites.insert(*DAYS)
        yield Site(site_database, tmp_path / "archive")


def rename(project: Project, slug: str) -> None:
    project.slug = slug
    project.save()


def test_a_renamed_project_keeps_its_history_and_the_next_owner_of_its_slug_has_none_of_it(site: Site) -> None:
    old = SPECIAL["largest"]
    ours, other = Project.objects.get(slug=old), Project.objects.get(slug=SPECIAL["tiny"])
    for day in DAYS[:2]:
        assert export("--date", str(day), "--delete-after-export")[0] == 0
    assert export("--date", str(DAYS[2]))[0] == 0
    rename(ours, "renamed-once")
    rename(other, old)
    for day in DAYS[3:5]:
        assert export("--date", str(day), "--delete-after-export")[0] == 0
    # A day's file can hold a project under two slugs, and a slug for two projects.
    site.late(ours, DAYS[1], "/late")
    site.late(other, DAYS[1], "/late")
    assert export("--date", str(DAYS[1]), "--delete-after-export")[0] == 0
    rename(ours, "a-renamed-twice")
    assert export("--date", str(DAYS[5]), "--delete-after-export")[0] == 0
    assert [sites.rows_in(site.url, day) for day in DAYS[:2]] == [0, 0]
    both = ParquetAnalyticsQuerier(site.folder.as_uri()).sql(
        "SELECT count(DISTINCT project_slug) FROM pageviews", since=DAYS[1], until=DAYS[1], project_id=ours.pk
    )
    assert rows(both) == [(2,)]
    for project in (ours, other, Project.objects.exclude(pk__in=[ours.pk, other.pk]).first()):
        site.compare(PageViewsQuerier(), project.pk)
    # The library, once all days are in files.
    for day in DAYS[6:]:
        assert export("--date", str(day), "--allow-open-day")[0] == 0
    for project in (ours, other):
        site.compare(ParquetAnalyticsQuerier(site.folder.as_uri(), max_age=0), project.pk)


def test_a_deleted_versions_views_are_left_out_or_kept_as_the_caller_says(site: Site) -> None:
    project = Project.objects.get(slug=SPECIAL["largest"])
    for day in DAYS[:-1]:
        assert export("--date", str(day))[0] == 0
    gone, stays = Version.objects.filter(project=project, page_views__isnull=False).distinct()[:2]
    whole = PageViewsQuerier().query_pageviews(None, DAYS[0], DAYS[-2], project_id=project.pk)
    gone_id = gone.pk
    gone.delete()
    stays.slug = "renamed"
    stays.save()
    querier = PageViewsQuerier()
    kept = querier.query_pageviews(None, DAYS[0], DAYS[-2], project_id=project.pk)
    assert kept.equals(whole)
    assert gone_id in kept["version_id"].to_pylist()
    existing = [None, *project.versions.values_list("pk", flat=True)]
    left = querier.query_pageviews(None, DAYS[0], project_id=project.pk, versions=existing)
    # The table lost them with the version.
    assert sorted(left["id"].to_pylist()) == sorted(project.page_views.values_list("pk", flat=True))
    assert 0 < left.num_rows < kept.num_rows
    # A renamed version is the same one, under the slug of each day.
    slugs = {row["version_slug"] for row in left.to_pylist() if row["version_id"] == stays.pk}
    assert "renamed" in slugs
    assert len(slugs) == 2


def test_the_shadow_compares_by_id_and_version(site: Site) -> None:
    project = Project.objects.get(slug=SPECIAL["largest"])
    for day in DAYS[:-1]:
        assert export("--date", str(day))[0] == 0
    rename(project, "renamed")
    Version.objects.filter(project=project, page_views__isnull=False).first().delete()
    existing = [None, *project.versions.values_list("pk", flat=True)]
    shadow.wait()
    shadow._forget()
    querier = ShadowQuerier()
    for by in ("path", "full_path"):
        querier.top_pages(None, DAYS[0], project_id=project.pk, versions=existing, by=by)
    querier.daily_totals(None, DAYS[0], project_id=project.pk, versions=existing)
    shadow.wait()
    assert shadow.counts == {"compared": 3, "different": 0, "failed": 0, "dropped": 0}
    # What the table has lost is a difference, unless it is left out.
    querier.daily_totals(None, DAYS[0], project_id=project.pk)
    shadow.wait()
    assert shadow.counts["different"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"versions": "12"}, "pass a list of version ids"),
        ({"versions": 12}, "pass a list of version ids"),
        ({"versions": ["12"]}, "versions holds '12'"),
        ({"versions": [True]}, "versions holds True"),
        ({"versions": [2**31]}, f"versions holds {2**31}"),
        ({"by": "version"}, "pass 'path' or 'full_path'"),
        ({"by": "full_path", "per_version": True}, "leave per_version out"),
    ],
)
def test_impossible_versions_and_pages(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ParquetAnalyticsQuerier(tmp_path.as_uri()).top_pages("docs", **arguments)

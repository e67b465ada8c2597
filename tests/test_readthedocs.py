"""The functions that the hand-over gives Read the Docs answer as the queries that they stand in for."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Count, Sum
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.builds.models import Version
from parquet_analytics.demo.projects.models import Project

from tests import sites
from tests.sites import export
from tests.test_docs import EXAMPLES, ROOT

TODAY = datetime.datetime.now(datetime.UTC).date()
SINCE = TODAY - datetime.timedelta(days=30)


def archive() -> dict[str, Any]:
    text = ROOT / "docs" / "readthedocs.md"
    [code] = [example.code for example in EXAMPLES[text] if "readthedocs/analytics/archive.py" in example.code]
    names: dict[str, Any] = {}
    exec(compile(code, str(text), "exec"), names)
    return names


def top_viewed_pages(project: Project, limit: int, status: int, group_by: str) -> list[tuple[Any, int]]:
    queryset = PageView.objects.filter(project=project, date__gte=SINCE, status=status)
    return list(queryset.values_list(group_by).annotate(count=Sum("view_count")).order_by("-count", group_by)[:limit])


def page_views_by_date(project: Project) -> dict[str, list[Any]]:
    days = [SINCE + datetime.timedelta(days=number) for number in range(31)]
    queryset = PageView.objects.filter(project__slug=project.slug, date__gte=SINCE, status=200).values("date")
    counts = dict(queryset.annotate(total=Sum("view_count")).values_list("date", "total"))
    return {"labels": [day.strftime("%d %b") for day in days], "int_data": [counts.get(day) or 0 for day in days]}


def csv_data(project: Project, since: datetime.date, status: int) -> list[tuple[Any, ...]]:
    """What the view's query gives."""
    values = ("date", "version__slug", "path", "view_count")
    queryset = PageView.objects.filter(project=project, date__gte=since, status=status).order_by("-date")
    return list(queryset.values_list(*values))


def csv_file(data: Any) -> list[list[Any]]:
    """What the view makes of them, by its own lines."""
    csv_data = [[datetime.datetime.strftime(date, "%Y-%m-%d %H:%M:%S"), *rest] for date, *rest in data]
    csv_data.insert(0, ["Date", "Version", "Path", "Views"])
    return csv_data


def same_file(found: list[list[Any]], wanted: list[list[Any]]) -> bool:
    """One header, the newest day first, and the same rows each day; within a day there was no order."""
    assert found[0] == wanted[0]
    assert [row[0] for row in found] == [row[0] for row in wanted]
    return sorted(map(repr, found)) == sorted(map(repr, wanted))


class Before:
    """What the site's own queries say of a project."""

    def __init__(self, project: Project, since: datetime.date) -> None:
        self.pages = top_viewed_pages(project, 25, 200, "path")
        self.not_found = top_viewed_pages(project, 25, 404, "full_path")
        self.totals = page_views_by_date(project)
        self.files = {status: csv_file(csv_data(project, since, status)) for status in (200, 404)}

    def check(self, ours: dict[str, Any], project: Project, since: datetime.date, **versions: Any) -> None:
        slugs = versions.pop("slugs", None)
        assert ours["top_viewed_paths"](project, **versions) == self.pages
        assert ours["top_not_found_paths"](project, **versions) == self.not_found
        assert ours["page_views_by_date"](project, **versions) == self.totals
        assert len(self.totals["labels"]) == 31
        for status, wanted in self.files.items():
            rows = ours["csv_rows"](project, since, status, slugs=slugs, **versions)
            assert same_file(csv_file(rows), wanted)


@pytest.mark.parametrize("seed", range(2))
def test_the_dashboard_shows_what_it_showed(site_database: str, tmp_path: Path, seed: int) -> None:
    days = [TODAY - datetime.timedelta(days=number) for number in (40, 31, 30, 29, 12, 5, 1, 0)]
    sites.insert(*days)
    ours = archive()
    projects = [Project.objects.get(slug=slug) for slug in {*sites.SAMPLE.special_projects().values()}]
    before = {project.pk: Before(project, days[0]) for project in projects}
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=3, LOOKBACK_DAYS=2):
        for day in random.Random(seed).sample(days[:-1], 5):
            assert export("--date", str(day), "--delete-after-export", "--allow-empty")[0] == 0
        for project in projects:
            before[project.pk].check(ours, project, days[0])
    assert sum(len(each.pages) for each in before.values()) > 25
    assert any(each.not_found for each in before.values())


def test_a_project_that_was_renamed_keeps_its_history(site_database: str, tmp_path: Path) -> None:
    days = [TODAY - datetime.timedelta(days=number) for number in (20, 12, 5, 1)]
    sites.insert(*days)
    ours = archive()
    renamed, other = Project.objects.order_by("pk")[:2]
    before = {project.pk: Before(project, days[0]) for project in (renamed, other)}
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=3, LOOKBACK_DAYS=2):
        for number, day in enumerate(days):
            assert export("--date", str(day), "--delete-after-export")[0] == 0
            if number == 1:
                # And its slug passes to another project.
                slug = renamed.slug
                Project.objects.filter(pk=renamed.pk).update(slug="renamed")
                Project.objects.filter(pk=other.pk).update(slug=slug)
        for project in Project.objects.filter(pk__in=before):
            before[project.pk].check(ours, project, days[0])


def test_deleted_and_renamed_versions_are_answered_in_both_ways(site_database: str, tmp_path: Path) -> None:
    days = [TODAY - datetime.timedelta(days=number) for number in (12, 5, 1)]
    sites.insert(*days)
    ours = archive()
    version = Version.objects.annotate(views=Count("page_views")).order_by("-views", "pk")[0]
    project = version.project
    [*others] = Version.objects.filter(project=project).exclude(pk=version.pk)
    assert others
    whole = Before(project, days[0])
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=3, LOOKBACK_DAYS=2):
        for day in days:
            assert export("--date", str(day))[0] == 0
        Version.objects.filter(pk=others[0].pk).update(slug="renamed")
        version.delete()
        # What was viewed, under the names of then.
        whole.check(ours, project, days[0])
        # What the site says now, which has lost the deleted version's views.
        now = Before(project, days[0])
        assert now.files != whole.files
        versions = Version.objects.filter(project=project)
        now.check(ours, project, days[0], versions=versions, slugs=dict(versions.values_list("pk", "slug")))

"""The functions that the hand-over gives Read the Docs answer as the queries that they stand in for."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Sum
from parquet_analytics.demo.analytics.models import PageView
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


def csv_rows(project: Project, since: datetime.date, status: int) -> list[list[Any]]:
    values = ("date", "version__slug", "path", "view_count")
    queryset = PageView.objects.filter(project=project, date__gte=since, status=status).order_by("-date")
    rows = [[day.strftime("%Y-%m-%d %H:%M:%S"), *rest] for day, *rest in queryset.values_list(*values)]
    return [["Date", "Version", "Path", "Views"], *rows]


@pytest.mark.parametrize("seed", range(2))
def test_the_dashboard_shows_what_it_showed(site_database: str, tmp_path: Path, seed: int) -> None:
    days = [TODAY - datetime.timedelta(days=number) for number in (40, 31, 30, 29, 12, 5, 1, 0)]
    sites.insert(*days)
    ours = archive()
    projects = [Project.objects.get(slug=slug) for slug in {*sites.SAMPLE.special_projects().values()}]
    before = {
        project.slug: (
            top_viewed_pages(project, 25, 200, "path"),
            top_viewed_pages(project, 25, 404, "full_path"),
            page_views_by_date(project),
            csv_rows(project, days[0], 200),
            csv_rows(project, days[0], 404),
        )
        for project in projects
    }
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=3, LOOKBACK_DAYS=2):
        for day in random.Random(seed).sample(days[:-1], 5):
            assert export("--date", str(day), "--delete-after-export", "--allow-empty")[0] == 0
        for project in projects:
            pages, not_found, totals, rows, rows_404 = before[project.slug]
            assert ours["top_viewed_paths"](project) == pages
            assert ours["top_not_found_paths"](project) == not_found
            assert ours["page_views_by_date"](project) == totals
            assert len(totals["labels"]) == 31
            for wanted, status in ((rows, 200), (rows_404, 404)):
                found = list(ours["csv_rows"](project, days[0], status))
                assert found[0] == wanted[0]
                # The newest first, and the same rows each day; within a day there was no order.
                assert [row[0] for row in found] == [row[0] for row in wanted]
                assert sorted(map(repr, found)) == sorted(map(repr, wanted))
    assert sum(len(pages) for pages, *_ in before.values()) > 25
    assert any(not_found for _, not_found, *_ in before.values())

"""Page views come, change, are exported, deleted, restored and erased in random order, by the tasks and by hand; the
querier's answers are compared with a dictionary that knows each row's views."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from typing import Any

import pytest
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import tasks
from parquet_analytics.django.erasure import erase_pending
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day
from parquet_analytics.exceptions import DayNotStored, DeletionRefused, InvalidInput

from tests import sites

TODAY = datetime.datetime.now(datetime.UTC).date()
DAYS = [TODAY - datetime.timedelta(days=number) for number in range(9, -1, -1)]
SLUGS = "abc"


class Site:
    """What users, workers and operators do, and the views that there have to be of (day, project, path)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.views: Counter[tuple[datetime.date, int, str]] = Counter()
        self.done: Counter[str] = Counter()
        for day in DAYS:
            for slug in SLUGS:
                self.view(day, slug)

    def view(self, day: datetime.date | None = None, slug: str | None = None) -> None:
        slug = slug or self.random.choice(SLUGS)
        project, _ = Project.objects.get_or_create(slug=slug, defaults={"name": slug})
        self._insert(day or self.random.choice(DAYS), project.pk, f"/{self.random.randrange(10**9)}")

    def view_of_a_deleted_row(self) -> None:
        """The same page of the same day again, with another id."""
        for day, project, path in self.random.sample(sorted(self.views), len(self.views)):
            if not PageView.objects.filter(date=day, project_id=project, path=path).exists():
                self._insert(day, project, path)
                return

    def _insert(self, day: datetime.date, project: int, path: str) -> None:
        count = self.random.randrange(1, 50)
        PageView.objects.create(project_id=project, path=path, view_count=count, date=day, status=200)
        self.views[day, project, path] += count

    def count(self) -> None:
        row = PageView.objects.order_by("?").first()
        if row is not None:
            PageView.objects.filter(pk=row.pk).update(view_count=row.view_count + 1)
            self.views[row.date, row.project_id, row.path] += 1

    def delete_a_project(self) -> None:
        project = Project.objects.filter(slug=self.random.choice(SLUGS)).first()
        if project is not None:
            number = project.pk
            project.delete()
            self.views = Counter({key: count for key, count in self.views.items() if key[1] != number})

    def export(self) -> None:
        export_day(self.random.choice(DAYS[:-1]))

    def delete(self) -> None:
        delete_day(self.random.choice(DAYS))

    def restore(self) -> None:
        restore_day(self.random.choice(DAYS[:-1]))

    def step(self) -> None:
        work = self.random.choice(
            [self.view] * 4
            + [self.view_of_a_deleted_row, self.count, self.delete_a_project, self.export, self.delete, self.restore]
            + [erase_pending, tasks.export_pageviews_to_parquet, tasks.delete_exported_pageviews]
        )
        try:
            work()
        except (DayNotStored, DeletionRefused, InvalidInput) as error:
            self.done[f"{work.__name__}, refused: {type(error).__name__}"] += 1
        else:
            self.done[work.__name__] += 1

    def compare(self) -> None:
        """Once what came late is exported, each answer is that of the dictionary."""
        tasks.export_pageviews_to_parquet()
        querier = PageViewsQuerier(max_age=self.random.choice([0, None]))
        for project in Project.objects.all():
            by_day: Counter[datetime.date] = Counter()
            by_path: Counter[str] = Counter()
            for (day, number, path), count in self.views.items():
                if number == project.pk:
                    by_day[day] += count
                    by_path[path] += count
            asked: dict[str, Any] = {"since": DAYS[0], "until": TODAY, "project_id": project.pk}
            totals = querier.daily_totals(project.slug, **asked)
            assert counted(totals, "date") == by_day
            assert querier.coverage is not None
            assert querier.coverage.missing == ()
            assert counted(querier.top_pages(project.slug, **asked, limit=10_000), "path") == by_path
            rows = querier.query_pageviews(project.slug, **asked)
            assert sum(rows["view_count"].to_pylist()) == by_day.total()
        here = set(Project.objects.values_list("pk", flat=True))
        found = querier.sql("SELECT DISTINCT project_id FROM pageviews", since=DAYS[0])
        assert set(found["project_id"].to_pylist()) <= here
        self.done["compared"] += 1


def counted(table: Any, column: str) -> Counter[Any]:
    return Counter(dict(zip(table[column].to_pylist(), table["count"].to_pylist(), strict=True)))


@pytest.mark.parametrize("steps", [120, pytest.param(1500, marks=pytest.mark.full)])
@pytest.mark.timeout(600)
def test_whatever_happens_in_whatever_order_every_view_counts_once(
    site_database: str, place: Any, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    # Erased when it is their turn.
    monkeypatch.setattr(tasks.erase_deleted_projects, "apply_async", lambda **_: None)
    seed = random.randrange(1_000_000)
    print(f"\nseed {seed}")
    with sites.archive(sites.s3_entry(place), HOT_DAYS=1, LOOKBACK_DAYS=len(DAYS) - 1, GRACE_MINUTES=0):
        site = Site(seed)
        for _ in range(steps):
            site.step()
            if site.random.random() < 0.2:
                site.compare()
        site.compare()
    print(", ".join(f"{name} {count}" for name, count in sorted(site.done.items())))
    if steps >= 1000:
        names = {"view", "view_of_a_deleted_row", "count", "delete_a_project", "export", "delete", "restore"}
        names |= {"erase_pending", "export_pageviews_to_parquet", "delete_exported_pageviews"}
        assert set(site.done) >= names

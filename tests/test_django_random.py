"""Page views come, change, move to other days, are exported, deleted, restored and erased in random order, by the tasks
and by hand, while projects are renamed and another site has the same storage by mistake; the querier's answers are
compared with a dictionary that knows each row's views."""

from __future__ import annotations

import datetime
import io
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
from django.db import IntegrityError, transaction
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import tasks
from parquet_analytics.django.erasure import erase_pending
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day, exporter
from parquet_analytics.exceptions import DayNotStored, DeletionRefused, ErasureRefused, InvalidInput, StaleSnapshot

from tests import sites
from tests.clock import TODAY
from tests.services import Postgres
from tests.test_torture import SEED

DAYS = [TODAY - datetime.timedelta(days=number) for number in range(9, -1, -1)]
SLUGS = "abc"
# Projects are renamed to any of these; whoever gets views below one of the others is a new project.
NAMES = SLUGS + "def"
PROBE = "/_derived/conditional-write-probe"


class Site:
    """What users, workers and operators do, and the views that there have to be of (day, project, path)."""

    def __init__(self, seed: int, place: Any, other: str) -> None:
        self.random = random.Random(seed)
        self.place = place
        self.client = place.s3.client()
        self.other = other
        self.deleted: set[int] = set()
        self.renamed: set[int] = set()
        self.moves = 0
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
        row = self.any(PageView)
        if row is not None:
            PageView.objects.filter(pk=row.pk).update(view_count=row.view_count + 1)
            self.views[row.date, row.project_id, row.path] += 1

    def move_a_row(self) -> None:
        """To another day, where the page has no row yet; with more views, since nights know a day by its rows and
        views, and do not see two rows with as many that change places."""
        row = self.any(PageView)
        day = self.random.choice(DAYS)
        if row is None or row.date == day:
            return
        self.moves += 1
        views = row.view_count + 1000 * self.moves
        try:
            with transaction.atomic():
                PageView.objects.filter(pk=row.pk).update(date=day, view_count=views)
        except IntegrityError:
            return
        self.views[row.date, row.project_id, row.path] -= row.view_count
        self.views[day, row.project_id, row.path] += views
        self.views = +self.views

    def rename_a_project(self) -> None:
        """To a free slug; new views below the old one are another project's."""
        project = self.any(Project)
        free = set(NAMES) - set(Project.objects.values_list("slug", flat=True))
        if project is not None and free:
            Project.objects.filter(pk=project.pk).update(slug=self.random.choice(sorted(free)))
            self.renamed.add(project.pk)

    def any(self, model: Any) -> Any:
        return self.random.choice([*model.objects.order_by("pk")] or [None])

    def delete_a_project(self) -> None:
        project = Project.objects.filter(slug=self.random.choice(NAMES)).first()
        if project is not None:
            number = project.pk
            project.delete()
            self.deleted.add(number)
            self.views = Counter({key: count for key, count in self.views.items() if key[1] != number})

    def erase_pending(self) -> None:
        erase_pending()
        for key in self.stored():
            if key.endswith(".parquet"):
                body = self.client.get_object(Bucket=self.place.bucket, Key=key)["Body"].read()
                projects = pq.read_table(io.BytesIO(body), columns=["project_id"])["project_id"].to_pylist()
                assert not self.deleted & set(projects), key

    def another_database(self) -> None:
        """Another site with the same storage and prefix is refused, and changes nothing."""
        stored, ours = exporter().stored_days(), self.any(Project)
        if not stored or ours is None:
            return
        day, project = self.random.choice(stored), ours.pk
        before, rows = self.stored(), self.rows()
        with sites.databases(default=self.other):
            stranger = Project.objects.create(pk=project, slug="stranger", name="stranger")
            PageView.objects.create(project=stranger, path="/", view_count=1, date=day, status=200)
            theirs = self.rows()
            who = exporter()
            for error, call in (
                (StaleSnapshot, lambda: export_day(day, per_project=True)),
                (DeletionRefused, lambda: delete_day(day)),
                (DeletionRefused, lambda: who.delete_exported_pageviews(day)),
                (ErasureRefused, lambda: who.erase_project(project)),
                (ErasureRefused, lambda: who.erase_from_day(day, slugs=NAMES)),
            ):
                with pytest.raises(error):
                    call()
            assert self.rows() == theirs
            stranger.delete()
            with pytest.raises(ErasureRefused):
                erase_pending()
        assert self.stored() == before
        assert self.rows() == rows

    def stored(self) -> dict[str, str]:
        """The version of each object, but for the one that deletions try the store with."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.place.bucket, Prefix=f"{self.place.location}/"
        )
        found = {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", ())}
        return {key: etag for key, etag in found.items() if not key.endswith(PROBE)}

    def rows(self) -> list[Any]:
        return list(PageView.objects.order_by("pk").values())

    def export(self) -> None:
        export_day(self.random.choice(DAYS[:-1]))

    def delete(self) -> None:
        delete_day(self.random.choice(DAYS))

    def restore(self) -> None:
        restore_day(self.random.choice(DAYS[:-1]))

    def step(self) -> None:
        work = self.random.choice(
            [self.view] * 4
            + [self.view_of_a_deleted_row, self.count, self.move_a_row, self.rename_a_project, self.delete_a_project]
            + [self.export, self.delete, self.restore, self.erase_pending, self.another_database]
            + [tasks.export_pageviews_to_parquet, tasks.delete_exported_pageviews]
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
            totals = querier.daily_totals(None, **asked)
            assert counted(totals, "date") == by_day
            assert querier.coverage is not None
            assert querier.coverage.missing == ()
            assert counted(querier.top_pages(None, **asked, limit=10_000), "path") == by_path
            rows = querier.query_pageviews(None, **asked)
            assert sum(rows["view_count"].to_pylist()) == by_day.total()
            # Below its slug of today, what was written or is read since then.
            named = counted(querier.daily_totals(project.slug, **asked), "date")
            assert named <= by_day if project.pk in self.renamed else named == by_day
        here = set(Project.objects.values_list("pk", flat=True))
        found = querier.sql("SELECT DISTINCT project_id FROM pageviews", since=DAYS[0])
        assert set(found["project_id"].to_pylist()) <= here
        self.done["compared"] += 1


def counted(table: Any, column: str) -> Counter[Any]:
    return Counter(dict(zip(table[column].to_pylist(), table["count"].to_pylist(), strict=True)))


@pytest.fixture
def other(postgres: Postgres, django_template: str) -> Iterator[str]:
    """Another site's database."""
    url = postgres.create_database(django_template)
    yield url
    postgres.drop_database(url)


@pytest.mark.parametrize(
    ("steps", "per_project"),
    [
        pytest.param(120, False, marks=pytest.mark.timeout(600)),
        pytest.param(120, True, marks=pytest.mark.timeout(600)),
        pytest.param(1000, True, marks=[pytest.mark.full, pytest.mark.timeout(3600)]),
    ],
)
def test_whatever_happens_in_whatever_order_every_view_counts_once(
    site_database: str,
    place: Any,
    other: str,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[[object], None],
    steps: int,
    per_project: bool,
) -> None:
    # Erased when it is their turn.
    monkeypatch.setattr(tasks.erase_deleted_projects, "apply_async", lambda **_: None)
    seed = int(os.environ.get(SEED) or random.randrange(1_000_000))
    tell(f"seed {seed}")
    given = {"HOT_DAYS": 1, "LOOKBACK_DAYS": len(DAYS) - 1, "GRACE_MINUTES": 0, "PER_PROJECT": per_project}
    with sites.archive(sites.s3_entry(place), **given):
        site = Site(seed, place, other)
        for _ in range(steps):
            site.step()
            if site.random.random() < 0.2:
                site.compare()
        site.compare()
    tell(", ".join(f"{name} {count}" for name, count in sorted(site.done.items())))
    if steps >= 1000:
        names = {"view", "view_of_a_deleted_row", "count", "move_a_row", "rename_a_project", "delete_a_project"}
        names |= {"export", "delete", "restore", "erase_pending", "another_database"}
        names |= {"export_pageviews_to_parquet", "delete_exported_pageviews"}
        assert set(site.done) >= names

"""What whoever tests the small Read the Docs does in it, each in a process of its own: run with the site's settings."""
# ruff: noqa: E402 - Django is set up first

import datetime
import importlib.util
import json
import sys
from collections import Counter

import django

django.setup()

from django.db import connection
from django.test import Client
from django.test.utils import setup_test_environment
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from parquet_analytics import SampleData
from readthedocs.analytics.models import PageView
from readthedocs.builds.models import Version
from readthedocs.projects.models import Project

TODAY = datetime.datetime.now(datetime.UTC).date()


def load(days: int) -> None:
    """Projects, and their page views of so many days."""
    sample = SampleData(rows_per_day=150, projects=10, growth=0.0, weekly_rhythm=False)
    born = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    Project.objects.bulk_create(Project(pub_date=born, **row) for row in sample.projects().to_pylist())
    Version.objects.bulk_create(Version(**row) for row in sample.versions().to_pylist())
    for number in range(days):
        rows = sample.day(TODAY - datetime.timedelta(days=number)).read_all()
        rows = rows.drop_columns(["project_slug", "version_slug"]).to_pylist()
        PageView.objects.bulk_create(PageView(**row) for row in rows)
    # As DatabaseScheduler wrote it down, long ago.
    every, _ = CrontabSchedule.objects.get_or_create(minute="27", hour="*/6")
    for name in ("every-day-delete-old-page-views", "an older name of it"):
        PeriodicTask.objects.create(
            name=name, task="readthedocs.analytics.tasks.delete_old_page_counts", crontab=every, queue="web"
        )


def age(slug: str, days: int) -> None:
    Project.objects.filter(slug=slug).update(
        pub_date=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    )


def show() -> dict:
    """The dashboard's page and downloads of every project."""
    setup_test_environment()
    shown = {}
    for slug in Project.objects.order_by("pk").values_list("slug", flat=True):
        client, url = Client(), f"/dashboard/{slug}/traffic-analytics/"
        context = client.get(url).context
        shown[slug] = {name: context[name] for name in ("page_data", "top_pages_200", "top_pages_404")}
        for status in ("200", "404"):
            answer = client.get(url, {"download": "true", "status": status})
            assert answer["Content-Type"] == "text/csv"
            shown[slug][status] = b"".join(answer.streaming_content).decode()
    if importlib.util.find_spec("readthedocs.analytics.archive") is not None:
        from parquet_analytics.django.shadow import shadow

        shadow.wait()
    return shown


def rename(old: str, new: str, other: str) -> None:
    """A project gets a new slug, another one its old slug, and its most viewed version a new one."""
    project = Project.objects.get(slug=old)
    project.slug = new
    project.save()
    Project.objects.filter(slug=other).update(slug=old)
    version = most_viewed(project)[0]
    Version.objects.filter(pk=version).update(slug="renamed")


def most_viewed(project: Project) -> list[int]:
    found = Counter(project.page_views.filter(version__isnull=False).values_list("version", flat=True))
    return sorted(found, key=lambda version: (-found[version], version))


def delete(slug: str) -> None:
    """The version that has the most views but one; all rows, with the slugs of now, are remembered."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE kept AS SELECT v.*, b.slug AS version_slug FROM analytics_pageview v"
            " LEFT JOIN builds_version b ON b.id = v.version_id"
        )
    Version.objects.get(pk=most_viewed(Project.objects.get(slug=slug))[1]).delete()


def kept(slug: str, since: str, until: str) -> list:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT date, version_slug, path, view_count FROM kept JOIN projects_project p ON p.id = project_id"
            " WHERE p.slug = %s AND status = 200 AND date BETWEEN %s AND %s",
            [slug, since, until],
        )
        return cursor.fetchall()


def archived(slug: str, since: str, **how: bool) -> list:
    from readthedocs.analytics import archive

    project = Project.objects.get(slug=slug)
    return list(archive.csv_rows(project, datetime.date.fromisoformat(since), 200, **how))


def sums(slug: str) -> list:
    """Views by each of the functions that sum up, without deleted versions and with them."""
    from readthedocs.analytics import archive

    project = Project.objects.get(slug=slug)
    found = []
    for how in (False, True):
        pages = (archive.top_viewed_pages(project, None, 100_000, 200, by, how) for by in ("path", "full_path"))
        days = archive.page_views_by_date(project, None, 200, how)
        found.append({sum(days.values()), *(sum(row.count for row in each) for each in pages)})
    return [list(each) for each in found]


def oldest() -> str:
    return str(PageView.objects.earliest("date").date)


def work(*names: str) -> str:
    """Runs tasks as a worker does; without names, those of the schedule that are of page views. Gives the day that the
    table begins on afterwards."""
    from readthedocs.worker import app

    app.loader.import_default_modules()
    names = names or tuple(entry["task"] for name, entry in app.conf.beat_schedule.items() if "page-views" in name)
    assert names
    for name in names:
        app.tasks[name].apply(throw=True)
    return oldest()


name, arguments, how = json.loads(sys.argv[1])
print(json.dumps(globals()[name](*arguments, **how), default=str))

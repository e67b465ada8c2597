"""What may happen at the worst moment, or in a site that is set up in an unusual way, and must neither lose a row nor
be reported as something else."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import override_settings
from parquet_analytics.demo import site
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import restore, tasks
from parquet_analytics.django.erasure import erase_pending, hidden_projects
from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.django.operations.status import status
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day, exporter
from parquet_analytics.exceptions import BadRow, ConfigurationError, DayIsTaken, DeletionRefused, InvalidInput

from tests import sites
from tests.services import Postgres
from tests.sites import DAY


class LedgerElsewhere:
    """A router."""

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return "ledger" if model._meta.app_label == "parquet_analytics" else None

    db_for_write = db_for_read


def view(path: str, count: int) -> None:
    project = Project.objects.get(slug="docs")
    PageView.objects.create(project=project, path=path, view_count=count, date=DAY, status=200)


def test_a_deletion_that_is_taken_back_erases_nothing_when_the_ledger_is_in_another_database(
    postgres: Postgres, django_template: str, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(tasks.erase_deleted_projects, "apply_async", lambda **options: sent.append(options))
    urls = {alias: postgres.create_database(django_template) for alias in ("default", "ledger")}
    with (
        sites.databases(**urls),
        override_settings(DATABASE_ROUTERS=[LedgerElsewhere()]),
        sites.archive(sites.s3_entry(place)),
    ):
        for slug in ("alive", "other"):
            sites.few(DAY, project=slug)
        export_day(DAY)
        project = Project.objects.get(slug="alive")
        number = project.pk
        with transaction.atomic():
            project.delete()
            transaction.set_rollback(True)
        assert (hidden_projects(), erase_pending(), sent) == ([], [], [])
        assert exporter().verify(DAY)["total_records"] == 40
        Project.objects.get(slug="alive").delete()
        assert hidden_projects() == [number]
        assert len(sent) == 1
        assert erase_pending() == [number]
        assert exporter().verify(DAY)["total_records"] == 20
        assert Erasure.objects.using("ledger").get().finished_at is not None
    for url in urls.values():
        postgres.drop_database(url)


@pytest.mark.parametrize("by", ["ledger", "library"])
def test_rows_that_are_exported_while_a_day_is_restored_are_in_a_place(
    site_database: str, place: Any, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Restoring writes the file anew where it has two rows of one natural key."""

    def late() -> None:
        view("/late", 1_000)
        if by == "library":
            exporter().export_daily_pageviews(DAY)
            exporter().delete_exported_pageviews(DAY)
        else:
            with contextlib.suppress(DayIsTaken):
                export_day(DAY)
                delete_day(DAY)

    with sites.archive(sites.s3_entry(place)):
        sites.few(DAY)
        export_day(DAY)
        delete_day(DAY)
        view("/3", 100)
        export_day(DAY)
        delete_day(DAY)
        asked: list[Any] = []
        gone = restore._gone

        def between(*about: Any) -> set[int]:
            if not asked:
                late()
            asked.append(about)
            return gone(*about)

        monkeypatch.setattr(restore, "_gone", between)
        # The late row is in the table, or the file is another than was read.
        with pytest.raises((InvalidInput, DayIsTaken)):
            restore_day(DAY)
        if by == "ledger":
            export_day(DAY)
        assert exporter().verify(DAY)["total_views"] == 190 + 100 + 1_000


def test_a_deletion_that_was_refused_makes_no_rows_late(site_database: str, tmp_path: Path) -> None:
    with sites.archive(tmp_path, LOOKBACK_DAYS=10_000):
        sites.few(DAY)
        export_day(DAY)
        with pytest.raises(DeletionRefused):
            delete_day(DAY)
        assert [day.state for day in status(DAY, DAY).days] == ["verified"]
        view("/late", 1)
        assert [day.state for day in status(DAY, DAY).days] == ["late"]


def test_a_database_that_does_not_commit_by_itself_is_refused(site_database: str, place: Any) -> None:
    """Else a day would be said to be restored, and not a row be there."""
    with sites.archive(sites.s3_entry(place)):
        sites.few(DAY)
        export_day(DAY)
        delete_day(DAY)
        with sites.databases(default={**site.postgresql(site_database), "AUTOCOMMIT": False}):
            for work in (restore_day, export_day, delete_day):
                with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                    work(DAY)
        assert Run.objects.count() == 2
        assert restore_day(DAY)["restored"] == PageView.objects.count() == 20


def test_rows_without_their_project_are_not_left_out_by_the_orm(site_database: str, place: Any) -> None:
    """Some databases do not look after foreign keys. PostgreSQL's own source refuses such rows as well."""
    with sites.archive(sites.s3_entry(place)):
        sites.few(DAY)
        sites.few(DAY, project="ghost")
        with transaction.atomic(), connections["default"].cursor() as cursor:
            cursor.execute(
                "SELECT conname FROM pg_constraint WHERE conrelid = 'analytics_pageview'::regclass AND contype = 'f'"
            )
            for (name,) in cursor.fetchall():
                cursor.execute(f'ALTER TABLE analytics_pageview DROP CONSTRAINT "{name}"')
            cursor.execute("DELETE FROM projects_project WHERE slug = 'ghost'")
            with pytest.raises(BadRow, match=r"column project_slug: its project \d+ does not exist"):
                export_day(DAY)
        assert place.keys() == []

"""Rows that get another date after their export count once: on the day where the table has them, whichever of the two
days is deleted first."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import tasks
from parquet_analytics.django.models import Run
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete, delete_day, due_days, export_day, exporter
from parquet_analytics.django.runs.ledger import Ledger
from parquet_analytics.django.table import effects
from parquet_analytics.exceptions import DatabaseError, DeletionRefused, InvalidInput

from tests import sites
from tests.clock import TODAY

FIRST, OLD, NEW = (TODAY - datetime.timedelta(days=number) for number in (8, 5, 3))
VIEWS = sum(range(20))


@pytest.fixture
def row(site_database: str, place: Any) -> Iterator[PageView]:
    """A row of 19 views on one of three days that are exported."""
    with sites.archive(sites.s3_entry(place), HOT_DAYS=1, LOOKBACK_DAYS=9, GRACE_MINUTES=0):
        for day in (FIRST, OLD, NEW):
            sites.few(day)
        PageView.objects.filter(date=OLD, view_count=19).update(path="/moves")
        tasks.export_pageviews_to_parquet()
        yield PageView.objects.get(date=OLD, view_count=19)


def move(row: PageView, day: datetime.date, **changes: Any) -> None:
    PageView.objects.filter(pk=row.pk).update(date=day, **changes)


def counted() -> dict[datetime.date, int]:
    table = PageViewsQuerier(max_age=0).daily_totals("docs", FIRST, TODAY)
    return dict(zip(table["date"].to_pylist(), table["count"].to_pylist(), strict=True))


MOVED = {FIRST: VIEWS, OLD: VIEWS - 19, NEW: VIEWS + 19}


def while_it_is_deleted(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Between the looks at the day and the first row that goes."""
    before = effects.refuse_dangling

    def then(*given: Any) -> None:
        happens()
        before(*given)

    monkeypatch.setattr(effects, "refuse_dangling", then)


def test_a_row_that_moved_before_its_old_day_is_deleted_is_not_in_that_file(row: PageView) -> None:
    """Nobody would look at a day again of which the table has nothing."""
    move(row, NEW)
    assert delete_day(OLD)[1]["deleted"] == 19
    tasks.export_pageviews_to_parquet()
    assert counted() == MOVED
    assert not PageView.objects.filter(date=OLD).exists()


def test_an_old_day_can_be_deleted_when_the_new_one_is_exported(row: PageView) -> None:
    move(row, NEW)
    export_day(NEW)
    # As many rows with as many views came as went, so that the day looks as it did.
    PageView.objects.create(project=Project.objects.get(), path="/late", view_count=19, date=OLD)
    assert delete_day(OLD)[1]["deleted"] == 20
    assert delete_day(NEW)[1]["deleted"] == 21
    assert counted() == {**MOVED, OLD: VIEWS}


def test_a_new_day_can_be_deleted_before_the_old_one_is_exported(row: PageView) -> None:
    move(row, NEW)
    export_day(NEW)
    assert delete_day(NEW)[1]["deleted"] == 21
    assert counted() == MOVED


def test_a_row_that_moved_while_its_old_day_was_deleted_may_come_back_changed(row: PageView) -> None:
    move(row, NEW)
    delete_day(OLD)
    move(row, OLD, view_count=100)
    tasks.export_pageviews_to_parquet()
    assert counted() == {FIRST: VIEWS, OLD: VIEWS + 81, NEW: VIEWS}


@pytest.mark.parametrize("refused", ["deletion", "restoration"])
def test_a_row_that_moved_after_a_refusal_leaves_its_old_day(row: PageView, refused: str) -> None:
    """What was refused is not taken for what let all rows of the day go."""
    PageView.objects.filter(date=OLD).exclude(pk=row.pk).delete()
    export_day(OLD)
    if refused == "restoration":
        with pytest.raises(InvalidInput):
            restore_day(OLD)
    else:
        with pytest.raises(DeletionRefused), Ledger(Run.Kind.DELETE, OLD, exporter().location):
            raise DeletionRefused("a column would be lost")
    move(row, NEW)
    tasks.export_pageviews_to_parquet()
    assert counted() == MOVED


def test_a_row_that_moved_from_a_day_with_as_many_rows_is_not_in_the_file_of_what_is_deleted(row: PageView) -> None:
    """A late row hides that another one left, and leaves too before the next night."""
    move(row, NEW)
    late = PageView.objects.create(project=Project.objects.get(), path="/late", view_count=30, date=OLD)
    assert delete_day(OLD)[1]["deleted"] == 19
    move(late, NEW)
    tasks.export_pageviews_to_parquet()
    assert counted() == {**MOVED, NEW: VIEWS + 19 + 30}


@pytest.mark.parametrize("fails", [False, True])
def test_a_row_that_moves_during_the_deletion_of_its_old_day_counts_once(
    row: PageView, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    while_it_is_deleted(monkeypatch, lambda: move(row, NEW))
    if fails:

        def away(*_: Any, **__: Any) -> None:
            raise DatabaseError("the database is away", retryable=True)

        monkeypatch.setattr(delete, "export_day", away)
        with pytest.raises(DatabaseError):
            delete_day(OLD)
        monkeypatch.undo()
        tasks.export_pageviews_to_parquet()
    else:
        assert delete_day(OLD)[1]["moved_ids"] == [row.pk]
        export_day(NEW)
    assert not PageView.objects.filter(date=OLD).exists()
    assert counted() == MOVED
    assert due_days(FIRST, NEW, exporter().location) == []

"""What would go with page views that a site deletes: columns that no file holds, rows of other tables, and rows that
would refer to nothing. The settings accept it, and the doctor names it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.conf import settings
from django.db import connection
from django.test import override_settings
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day
from parquet_analytics.exceptions import DeletionRefused

from tests import sites
from tests.archives import Place, execute, saying
from tests.sites import DAY


@pytest.fixture
def site(site_database: str, place: Place) -> Iterator[str]:
    with sites.archive(sites.s3_entry(place)):
        yield site_database


@pytest.fixture
def bookmarks(site: str) -> Iterator[None]:
    try:
        with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "tests.bookmarks"]):
            from tests.bookmarks.models import Bookmark

            # Models remember which others refer to them.
            apps.clear_cache()
            with connection.schema_editor() as editor:
                editor.create_model(Bookmark)
            yield
    finally:
        apps.clear_cache()


def doctor() -> dict[str, list[str]]:
    _, out, _ = sites.run("parquet_analytics", "doctor", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    return {each["check"]: [each["state"], each["message"], each["hint"]] for each in found}


def test_relations_that_nothing_looks_after_do_not_dangle_unasked(bookmarks: None, place: Place) -> None:
    sites.few(DAY)
    export_day(DAY)
    state, message, hint = doctor()["other rows"]
    assert (state, "DELETE_CASCADES" in hint) == ("warning", True)
    assert "bookmarks.Bookmark.view (SET_NULL, without a constraint)" in message
    with pytest.raises(DeletionRefused, match=saying("2026-07-01", "bookmarks.Bookmark.view", "DELETE_CASCADES")):
        delete_day(DAY)
    assert PageView.objects.count() == 20
    with sites.archive(sites.s3_entry(place), DELETE_CASCADES=True):
        assert doctor()["other rows"][0] == "ok"
        assert delete_day(DAY)[1]["deleted"] == 20


def test_what_the_database_does_besides_is_not_done_unasked(site: str, place: Place) -> None:
    execute(
        site, "CREATE TABLE bookmark (view bigint CONSTRAINT of_view REFERENCES analytics_pageview ON DELETE CASCADE)"
    )
    sites.few(DAY)
    code, _, err = sites.export("--date", str(DAY), "--delete-after-export")
    assert code != 0
    assert "public.bookmark loses rows (constraint of_view, ON DELETE CASCADE)" in err
    assert "set DELETE_CASCADES" in err
    assert doctor()["other rows"][0] == "warning"
    assert PageView.objects.count() == 20
    with sites.archive(sites.s3_entry(place), DELETE_CASCADES=True):
        assert delete_day(DAY)[1]["deleted"] == 20


def test_columns_are_not_lost_unasked(site: str, place: Place) -> None:
    execute(site, "ALTER TABLE analytics_pageview ADD referrer text")
    sites.few(DAY)
    export_day(DAY)
    with pytest.raises(DeletionRefused, match=saying("2026-07-01", "referrer")):
        delete_day(DAY)
    state, message, hint = doctor()["other columns"]
    assert (state, "referrer" in message, "DELETE_COLUMNS" in hint) == ("warning", True, True)
    code, _, err = sites.export("--date", str(DAY), "--delete-after-export")
    assert code != 0
    assert 'set DELETE_COLUMNS to ["referrer"]' in err
    with sites.archive(sites.s3_entry(place), DELETE_COLUMNS=["referrer"]):
        assert doctor()["other columns"][0] == "ok"
        assert delete_day(DAY)[1]["deleted"] == 20
        assert restore_day(DAY)["columns_lost"] == ["referrer"]

"""Erasure goes by what is stored, not by what is named today: none is left anywhere, or the erasure is not finished and
says where it is not."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from parquet_analytics import ParquetAnalyticsQuerier
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import days as site_days
from parquet_analytics.django import erasure, tasks
from parquet_analytics.django.erasure import erase_pending, hidden_projects, sweep
from parquet_analytics.django.models import Erasure, Run
from parquet_analytics.django.operations.doctor import CHECKS
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import export_day, exporter
from parquet_analytics.django.runs.ledger import LEASE, Ledger, runs
from parquet_analytics.exceptions import (
    CorruptFile,
    DayIsTaken,
    ErasureRefused,
    ParquetAnalyticsError,
    PermissionDenied,
)

from tests import sites
from tests.archives import saying
from tests.services import Postgres
from tests.sites import DAY, NEXT, export
from tests.test_django_erasure import LIST, TODAY, copies, organizations_copies, sent, site, stored, views  # noqa: F401
from tests.torture.proxies import Response, S3Proxy, forward


def number(slug: str) -> int:
    return int(Project.objects.get(slug=slug).pk)


def delete_list(place: Any) -> None:
    place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{LIST}")


def listed(place: Any) -> list[int]:
    return [each["project_id"] for each in json.loads(place.read(LIST))["projects"]]


def everything_of(place: Any, project: int) -> list[str]:
    keys = [key for key in place.keys() if key.endswith(".parquet")]  # noqa: SIM118
    return [key for key in keys if project in stored(place, key=key)]


def doctor() -> list[tuple[str, str]]:
    return [(found.state, f"{found.message} {found.hint}") for found in CHECKS["erasures"]()]


# What is stored


@pytest.mark.parametrize("again", [None, DAY, NEXT])
def test_copies_under_a_slug_from_before_go(site: str, place: Any, again: datetime.date | None) -> None:  # noqa: F811
    going = number("going")
    Project.objects.filter(slug="going").update(slug="renamed")
    if again is not None:
        # The day's file has the new slug alone now, and the copy under the old one stays where it was.
        PageView.objects.create(project_id=going, path="/late", view_count=1, date=again)
        assert export("--date", str(again), "--per-project")[0] == 0
    Project.objects.get(slug="renamed").delete()
    erase_pending()
    assert everything_of(place, going) == []
    assert Erasure.objects.get().finished_at is not None
    assert len(copies(place, "project/staying")) == 2


def test_a_copy_whose_old_slug_belongs_to_another_project_by_now_goes(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    Project.objects.filter(slug="going").update(slug="renamed")
    PageView.objects.create(project_id=going, path="/late", view_count=1, date=DAY)
    assert export("--date", str(DAY), "--per-project")[0] == 0
    Project.objects.create(slug="going", name="another")
    Project.objects.get(slug="renamed").delete()
    erase_pending()
    assert everything_of(place, going) == []


def test_very_many_copies_bound_what_is_looked_at_and_a_flag_lifts_it(
    site: str,  # noqa: F811
    place: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going = number("going")
    Project.objects.filter(slug="going").update(slug="renamed")
    PageView.objects.create(project_id=going, path="/late", view_count=1, date=DAY)
    assert export("--date", str(DAY), "--per-project")[0] == 0
    Project.objects.create(slug="going", name="another")
    monkeypatch.setattr(sweep, "_MOST_COPIES", 1)
    Project.objects.get(slug="renamed").delete()
    code, out, _ = sites.run("parquet_analytics", "erase")
    assert (code, "--every-copy" in out) == (0, True)
    # Those under the slugs that its rows have in the days are gone all the same.
    assert copies(place, "project/renamed") == []
    Erasure.objects.update(finished_at=None)
    assert sites.run("parquet_analytics", "erase", "--every-copy")[0] == 0
    assert everything_of(place, going) == []
    assert Erasure.objects.get().note is None


def test_slugs_that_were_found_are_known_after_a_crash(
    site: str,  # noqa: F811
    place: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once the day is written anew, nothing else knows them, where a living project has the slug."""
    going = number("going")
    Project.objects.filter(slug="going").update(slug="renamed")
    Project.objects.create(slug="going", name="another")
    Project.objects.get(slug="renamed").delete()
    monkeypatch.setattr(sweep, "_MOST_COPIES", 1)
    proxy = S3Proxy(place.s3.endpoint_url)

    def keeping(address: str, request: Any) -> Response:
        if request.method == "DELETE" or (request.method == "POST" and "delete" in request.path):
            return Response.error(403, "AccessDenied")
        return forward(address, request)

    proxy.rewrite = keeping
    with sites.archive(sites.s3_entry(place, proxy.url)), pytest.raises(PermissionDenied):
        erase_pending()
    proxy.close()
    assert Erasure.objects.get().slugs == ["going"]
    assert "project/going" in Erasure.objects.get().error
    for day in (DAY, NEXT):
        exporter().erase_from_day(day)
    erase_pending()
    assert everything_of(place, going) == []


def test_a_ledger_without_runs_forgets_no_day(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    Run.objects.all().delete()
    Project.objects.get(slug="going").delete()
    assert erase_pending() == [going]
    assert everything_of(place, going) == []


def test_days_and_copies_of_the_library_go_too(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    exporter().export_daily_pageviews(DAY, per_organization={"first": ["going"], "second": ["going", "staying"]})
    Run.objects.all().delete()
    Project.objects.get(slug="going").delete()
    erase_pending()
    assert everything_of(place, going) == []
    assert Erasure.objects.get().finished_at is not None


def test_copies_without_a_day_go(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    key = f"{place.location}/analytics/pageviews/{DAY:%Y/%m/%d}/pageviews_{DAY}.parquet"
    place.s3.client().delete_object(Bucket=place.bucket, Key=key)
    Project.objects.get(slug="going").delete()
    assert erase_pending() == [going]
    assert everything_of(place, going) == []
    assert Run.objects.filter(kind="erase").exclude(state="done").count() == 0


def test_what_cannot_be_read_keeps_an_erasure_open_and_says_which_file(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    bad = f"analytics/pageviews/project/odd/{DAY:%Y/%m/%d}/pageviews_{DAY}.parquet"
    place.write(bad, b"no file of ours")
    Project.objects.get(slug="going").delete()
    with pytest.raises(CorruptFile, match=saying(bad, str(going))):
        erase_pending()
    # All others are rid of it.
    assert everything_of_readable(place, going, bad) == []
    assert bad in Erasure.objects.get().error
    assert Erasure.objects.get().finished_at is None
    code, _, err = sites.run("parquet_analytics", "erase")
    assert (code, bad in err) == (3, True)
    place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{bad}")
    code, out, _ = sites.run("parquet_analytics", "erase", "--json")
    assert code == 0
    assert json.loads(out) == {
        "schema": 1, "project_id": going, "slug": "going", "finished": True, "error": None, "note": None,
    }  # fmt: skip


def everything_of_readable(place: Any, project: int, bad: str) -> list[str]:
    keys = [key for key in place.keys() if key.endswith(".parquet") and key != bad]  # noqa: SIM118
    return [key for key in keys if project in stored(place, key=key)]


# An export that is under way


def test_copies_that_an_export_writes_after_the_erasure_go_with_it(site: str, place: Any) -> None:  # noqa: F811
    """The export asked for the list before the project was on it, the erasure looked before the copies were there."""
    going = number("going")
    PageView.objects.create(project_id=going, path="/late", view_count=1, date=DAY)
    proxy = S3Proxy(place.s3.endpoint_url)
    erased: list[list[str]] = []
    with sites.organizations(alone=["going"], both=["going", "staying"]):
        project = f"project/going/{DAY:%Y/%m/%d}"

        def between(address: str, request: Any) -> Response:
            if request.method == "PUT" and project in request.path and not erased:
                erased.append([])
                exporter().erase_project(going)
                exporter().erase_from_day(DAY, slugs=["going"], per_organization={"alone": [], "both": ["staying"]})
                # The proxy's thread has one of its own.
                connection.close()
            return forward(address, request)

        proxy.rewrite = between
        with sites.archive(sites.s3_entry(place, proxy.url)):
            export_day(DAY, per_project=True, per_organization=True)
        proxy.close()
        assert erased
        assert copies(place, project) == []
        staying = number("staying")
        assert organizations_copies(place) == {"both": [staying]}
        assert going not in stored(place)


def test_an_export_that_began_before_keeps_an_erasure_open(site: str, place: Any) -> None:  # noqa: F811
    """Should it be killed before it looks at the list again, nobody would look for what it wrote."""
    going = number("going")
    with Ledger(Run.Kind.EXPORT, TODAY, exporter().location) as ledger:
        Project.objects.get(slug="going").delete()
        with pytest.raises(DayIsTaken, match=saying(str(TODAY), "under way")) as caught:
            erase_pending()
        assert caught.value.retryable
        assert Erasure.objects.get().finished_at is None
        assert everything_of(place, going) == []
        # Killed, with a file that has the rows.
        runs().filter(pk=ledger.run.pk).update(lease_until=site_days.now() - LEASE)
        assert erase_pending() == [going]
        ledger.run.state = Run.State.FAILED


# The list and the ledger


def test_a_list_that_is_gone_is_made_again_and_nobody_sees_the_rows_meanwhile(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    Project.objects.get(slug="going").delete()
    erase_pending()
    exporter().erase_project(-77)
    Erasure.objects.update(recorded_at=site_days.now() - datetime.timedelta(days=9))
    # A restored file has the rows again, and the list is gone.
    delete_list(place)
    restored = Project.objects.create(pk=going, slug="going", name="going")
    PageView.objects.create(project=restored, path="/0", view_count=7, date=DAY)
    exporter().export_daily_pageviews(DAY)
    PageView.objects.filter(project=restored).delete()
    Project.objects.filter(pk=going)._raw_delete("default")
    assert going in stored(place)
    assert views("going", ParquetAnalyticsQuerier(max_age=0)) == [7]
    assert views("going", PageViewsQuerier(max_age=0)) == []
    assert PageViewsQuerier(max_age=0).sql("SELECT sum(view_count) n FROM pageviews", since=DAY, until=DAY)[
        "n"
    ].to_pylist() == [190]
    assert [state for state, text in doctor() if f"lacks {going}" in text] == ["failed"]
    tasks.export_pageviews_to_parquet()
    assert listed(place) == [going]
    assert everything_of(place, going) == []
    assert doctor() == [("ok", "no deleted project waits to be taken out of the archive ")]


def test_the_doctor_says_what_only_the_list_has(site: str, place: Any) -> None:  # noqa: F811
    exporter().erase_project(12_345)
    [(state, text)] = doctor()
    assert (state, "12345" in text, "ledger knows nothing" in text) == ("warning", True, True)


def test_what_only_the_list_has_is_entered_into_the_ledger_and_taken_out(site: str, place: Any) -> None:  # noqa: F811
    """As after the ledger's table was emptied, or restored to a time before: the store may be down tomorrow."""
    going = number("going")
    Project.objects.get(slug="going").delete()
    exporter().erase_project(going)
    Erasure.objects.all().delete()
    assert going in stored(place)
    code, out, _ = sites.run("parquet_analytics", "erase")
    assert (code, f"project {going}" in out) == (0, True)
    assert everything_of(place, going) == []
    assert hidden_projects() == [going]
    assert [state for state, _ in doctor()] == ["ok"]


def test_what_only_the_list_has_and_lives_is_hidden_and_stays_in_files(site: str, place: Any) -> None:  # noqa: F811
    """Somebody may want it back: nothing goes that no database has."""
    going = number("going")
    exporter().erase_project(going)
    assert erase_pending() == []
    assert hidden_projects() == [going]
    assert going in stored(place)
    assert [(state, "unerase --project" in text) for state, text in doctor()] == [("failed", True)]
    assert sites.run("parquet_analytics", "unerase", "--project", str(going))[0] == 0
    assert views("going", PageViewsQuerier(max_age=0)) == [190, 190]


def test_one_that_was_taken_back_only_in_the_ledger_is_told(site: str, place: Any) -> None:  # noqa: F811
    exporter().erase_project(12_345)
    Erasure.objects.create(project_id=12_345, withdrawn_at=site_days.now())
    assert erase_pending() == []
    assert [(state, "unerase --project 12345" in text) for state, text in doctor()] == [("failed", True)]
    assert sites.run("parquet_analytics", "unerase", "--project", "12345")[0] == 0
    assert [state for state, _ in doctor()] == ["ok"]


def test_an_erasure_is_hidden_while_it_grows_old(site: str, place: Any) -> None:  # noqa: F811
    """What is asked for anew and what is remembered for a minute leave no gap."""
    Erasure.objects.create(project_id=77, recorded_at=site_days.now() - datetime.timedelta(minutes=59))
    assert hidden_projects() == [77]
    Erasure.objects.update(recorded_at=site_days.now() - datetime.timedelta(minutes=61))
    assert hidden_projects() == [77]


def test_with_the_store_down_nothing_erased_is_shown(site: str, place: Any) -> None:  # noqa: F811
    """However long ago: a restored database has the rows again."""
    going = number("going")
    Project.objects.get(slug="going").delete()
    erase_pending()
    Erasure.objects.update(recorded_at=site_days.now() - datetime.timedelta(days=90))
    assert hidden_projects() == [going]
    back = Project.objects.create(pk=going, slug="going", name="going")
    PageView.objects.create(project=back, path="/0", view_count=7, date=TODAY)
    sites.few(TODAY, project="staying")
    entry = sites.s3_entry(place)
    down = entry | {"OPTIONS": entry["OPTIONS"] | {"endpoint_url": "http://127.0.0.1:1"}}
    for storage in (down, entry):
        with sites.archive(storage):
            querier = PageViewsQuerier(max_age=0)
            given: dict[str, Any] = {"project_id": going}
            assert querier.daily_totals("going", TODAY, TODAY, status=None).num_rows == 0
            assert querier.query_pageviews(None, TODAY, TODAY, **given).num_rows == 0
            assert querier.sql("SELECT sum(view_count) n FROM pageviews", since=TODAY)["n"].to_pylist() == [190]
            assert querier.daily_totals("staying", TODAY, TODAY, status=None)["count"].to_pylist() == [190]


# An id that lives again


def test_an_erased_id_that_lives_is_told_and_can_be_taken_back(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    Project.objects.get(slug="going").delete()
    erase_pending()
    back = Project.objects.create(pk=going, slug="again", name="again")
    PageView.objects.create(project=back, path="/0", view_count=7, date=DAY)
    [(state, text)] = doctor()
    assert state == "failed"
    assert all(part in text for part in (f"project {going} (again)", "unerase --project", "neither shown nor exported"))
    code, out, _ = sites.run("parquet_analytics", "unerase", "--project", str(going))
    assert (code, "--recheck" in out, "are gone" in out) == (0, True, True)
    assert (listed(place), hidden_projects()) == ([], [])
    assert export("--date", str(DAY))[0] == 0
    assert views("again", PageViewsQuerier(max_age=0)) == [7]
    # The night does not put it back on the list.
    tasks.export_pageviews_to_parquet()
    assert listed(place) == []
    assert Erasure.objects.get().withdrawn_at is not None
    assert [state for state, _ in doctor()] == ["ok"]
    code, _, err = sites.run("parquet_analytics", "unerase", "--project", "4711", "--json")
    assert (code, "4711" in err) == (1, True)
    # Deleted again, it is erased again.
    Project.objects.get(slug="again").delete()
    assert hidden_projects() == [going]
    assert erase_pending() == [going]
    assert everything_of(place, going) == []
    assert Erasure.objects.get().slugs == ["again", "going"]


def test_an_erasure_that_waits_can_be_taken_back_too(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    Project.objects.get(slug="going").delete()
    assert erasure.unerase([going]) == [going]
    assert erase_pending() == []
    assert going in stored(place)
    assert views("going", PageViewsQuerier(max_age=0)) == [190, 190]


# Whose they are


@pytest.mark.parametrize("with_list", [False, True])
def test_another_site_at_the_same_place_erases_nothing(
    site: str,  # noqa: F811
    place: Any,
    postgres: Postgres,
    django_template: str,
    with_list: bool,
) -> None:
    going = number("going")
    if with_list:
        exporter().erase_project(-1)
    before = {key: place.read(key) for key in place.keys()}  # noqa: SIM118
    url = postgres.create_database(django_template)
    with sites.databases(default=url):
        Project.objects.create(pk=going, slug="others", name="others")
        sites.few(DAY, project="others")
        assert export("--date", str(DAY))[0] == 1
        Project.objects.get(slug="others").delete()
        for _ in range(2):
            with pytest.raises(ErasureRefused, match=saying("nothing was erased", "--accept-moved-database")):
                erase_pending()
        assert export("--date", str(NEXT))[0] == 1
        assert "belongs to" in Erasure.objects.get().error
        code, _, err = sites.run("parquet_analytics", "erase")
        assert (code, "belongs to" in err) == (1, True)
        assert ("failed", True) in [(state, "Correct the bucket" in text) for state, text in doctor()]
    assert {key: place.read(key) for key in place.keys()} == before  # noqa: SIM118
    assert views("going", PageViewsQuerier(max_age=0)) == [190, 190]
    # Of a move that was meant, the same command says so.
    with sites.databases(default=url):
        assert sites.run("parquet_analytics", "erase", "--accept-moved-database")[0] == 0
        assert Erasure.objects.get(project_id=going).finished_at is not None
    postgres.drop_database(url)
    assert everything_of(place, going) == []


# Ids and fields


def test_an_id_that_no_file_can_hold_blocks_nothing(site: str, place: Any) -> None:  # noqa: F811
    going = number("going")
    for odd in (2**31, 2**40, -(2**31) - 1):
        Erasure.objects.create(project_id=odd, slug="odd")
    Project.objects.get(slug="going").delete()
    assert views("staying", PageViewsQuerier(max_age=0)) == [190, 190]
    assert hidden_projects() == [going]
    assert erase_pending() == [going]
    assert everything_of(place, going) == []
    odd_ones = Erasure.objects.filter(slug="odd")
    assert all(each.finished_at is not None and "32 bits" in (each.note or "") for each in odd_ones)
    assert [state for state, _ in doctor()] == ["ok"]


@pytest.mark.parametrize("lookup", ["project", "project_id", "project__pk", "project__id"])
def test_deletions_are_noticed_however_the_project_is_named(site_database: str, place: Any, lookup: str) -> None:
    fields = {"project_id": lookup}
    with sites.archive(sites.s3_entry(place), FIELDS=fields), override_settings():
        erasure.connect()
        sites.few(DAY, project="going")
        sites.few(DAY, project="staying")
        going = number("going")
        export_day(DAY, per_project=True)
        Project.objects.get(slug="going").delete()
        assert [(each.project_id, each.slug) for each in Erasure.objects.all()] == [(going, "going")]
        assert erase_pending() == [going]
    assert everything_of(place, going) == []


def test_a_failed_look_leaves_the_erasure_open(site: str, place: Any) -> None:  # noqa: F811
    """Without the right to list, nobody can say that nothing is left."""
    proxy = S3Proxy(place.s3.endpoint_url)

    def denying(address: str, request: Any) -> Response:
        return Response.error(403, "AccessDenied") if "list-type" in request.path else forward(address, request)

    proxy.rewrite = denying
    with sites.archive(sites.s3_entry(place, proxy.url)):
        Project.objects.get(slug="going").delete()
        with pytest.raises(ParquetAnalyticsError, match="s3:ListBucket"):
            erase_pending()
        assert "s3:ListBucket" in Erasure.objects.get().error
        assert views("going") == []
    proxy.close()
    assert connection.vendor == "postgresql"
    erase_pending()

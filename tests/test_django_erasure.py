"""Deleted projects: hidden at once, taken out of files and copies, and never back, whatever comes from where."""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from django.apps import apps
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import tasks
from parquet_analytics.django.erasure import connect, erase_pending, hidden_projects, sweep
from parquet_analytics.django.models import Erasure
from parquet_analytics.django.operations.status import status
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import exporter
from parquet_analytics.django.runs.ledger import runs
from parquet_analytics.exceptions import ConfigurationError, CorruptFile, DayIsTaken, PermissionDenied, StoreError

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY, NEXT, export
from tests.torture.proxies import Response, S3Proxy, forward

LIST = "analytics/pageviews/_erased/projects.json"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The erasures that were sent to workers, of which there are none."""
    found: list[Any] = []
    monkeypatch.setattr(tasks.erase_deleted_projects, "apply_async", lambda **options: found.append(options))
    return found


@pytest.fixture
def site(site_database: str, place: Any, sent: list[Any]) -> Iterator[str]:
    """Two days of two projects, exported with copies; the second day's rows are gone from the table."""
    sites.few(DAY, project="going")
    sites.few(DAY, project="staying")
    sites.few(NEXT, project="going")
    sites.few(NEXT, project="staying")
    with sites.archive(sites.s3_entry(place), QUEUE="reports"):
        assert export("--since", str(DAY), "--until", str(NEXT), "--per-project")[0] == 0
        assert export("--date", str(NEXT), "--delete-after-export")[0] == 0
        yield site_database


def stored(place: Any, day: datetime.date = DAY, key: str | None = None) -> list[Any]:
    """The projects' ids in a file, by an independent reader."""
    import pyarrow as pa

    key = key or f"analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet"
    body = place.s3.client().get_object(Bucket=place.bucket, Key=f"{place.location}/{key}")["Body"].read()
    return sorted(set(pq.read_table(pa.BufferReader(body))["project_id"].to_pylist()))


def views(slug: str, querier: Any = None) -> list[int]:
    querier = querier or PageViewsQuerier()
    return querier.daily_totals(slug, DAY, NEXT, status=None)["count"].to_pylist()


def test_a_deleted_project_is_hidden_at_once_and_then_taken_out(site: str, place: Any, sent: list[Any]) -> None:
    going, staying = (Project.objects.get(slug=slug).pk for slug in ("going", "staying"))
    before = views("staying")
    assert views("going") == before == [190, 190]
    Project.objects.get(slug="going").delete()
    assert [(options["queue"], options["retry"]) for options in sent] == [("reports", False)]
    # Nothing in the store has changed yet, and nobody sees the rows any more.
    assert stored(place) == stored(place, NEXT) == [going, staying]
    assert views("going") == []
    assert PageViewsQuerier().daily_totals(None, DAY, NEXT, project_id=going).num_rows == 0
    assert PageViewsQuerier().query_pageviews("going", DAY, NEXT).num_rows == 0
    assert sum(batch.num_rows for batch in PageViewsQuerier().iter_pageviews("going", DAY, NEXT)) == 0
    counted = PageViewsQuerier().sql("SELECT count(*) n FROM pageviews", since=DAY, until=NEXT)
    assert counted["n"].to_pylist() == [40]
    assert views("staying") == before

    assert erase_pending() == [going]
    assert stored(place) == stored(place, NEXT) == [staying]
    keys = place.keys()
    assert [key for key in keys if "/project/going/" in key] == []
    assert len([key for key in keys if "/project/staying/" in key]) == 2
    assert views("staying") == views("staying", ParquetAnalyticsQuerier()) == before
    assert {run.outcome for run in runs().filter(kind="erase")} == {"merged"}
    erasure = Erasure.objects.get()
    assert (erasure.project_id, erasure.slug, erasure.error) == (going, "going", "")
    assert erasure.recorded_at is not None
    assert erasure.finished_at is not None
    # Verified files, of the same snapshot of the same database: exporting again finds nothing to do.
    assert exporter().verify(DAY)["total_records"] == 20
    assert json.loads(export("--date", str(DAY), "--json")[1])["outcome"] == "unchanged"
    assert erase_pending() == []


def test_a_project_that_is_not_deleted_after_all_is_not_erased(site: str, sent: list[Any]) -> None:
    with transaction.atomic():
        Project.objects.get(slug="going").delete()
        transaction.set_rollback(True)
    assert (sent, hidden_projects(), views("going")) == ([], [], [190, 190])


def test_a_broker_that_is_away_is_one_line_and_keeps_nobody_waiting(
    site_database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from celery import Celery, current_app

    sites.few(DAY, project="going")
    before = current_app._get_current_object()
    app = Celery("away", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.set_current()
    try:
        begun = time.monotonic()
        with sites.archive(tmp_path):
            Project.objects.get(slug="going").delete()
        assert time.monotonic() - begun < 5
    finally:
        before.set_current()
    [record] = caplog.records
    assert record.message.startswith("no worker could be told of a deleted project; the next export does what it would")
    assert record.exc_info is None
    assert Erasure.objects.get().recorded_at is None


def test_several_projects_are_deleted_by_a_queryset(site: str, place: Any) -> None:
    Project.objects.filter(slug__in=["going", "staying"]).delete()
    assert len(erase_pending()) == 2
    assert stored(place) == stored(place, NEXT) == []
    # The day is empty now, and not missing.
    q = PageViewsQuerier(max_age=0)
    q.daily_totals("staying", DAY, NEXT)
    assert q.coverage is not None
    assert q.coverage.empty == (DAY, NEXT)


def test_other_readers_know_within_the_age_that_they_accept(site: str) -> None:
    going = Project.objects.get(slug="going").pk
    library = ParquetAnalyticsQuerier(max_age=0)
    assert views("going", library) == [190, 190]
    exporter().erase_project(going, "going")
    assert views("going", library) == []
    assert library.query_pageviews("going", DAY, NEXT).num_rows == 0
    assert exporter().erased_projects() == [going]
    assert exporter().erase_project(going) is False


def test_nothing_brings_the_rows_back(site: str, site_database: str, place: Any) -> None:
    """Not a restored database, not a merge of the stored file, not a restored day, not a replacement."""
    going, staying = (Project.objects.get(slug=slug).pk for slug in ("going", "staying"))
    Project.objects.get(slug="going").delete()
    exporter().erase_project(going)
    # The file of the first day still has the rows, and a merge leaves them out.
    assert stored(place) == [going, staying]
    exporter().export_daily_pageviews(DAY)
    assert stored(place) == [staying]
    # The database was restored from a backup: the project is back, and its rows.
    Project.objects.create(pk=going, slug="going", name="going")
    PageView.objects.bulk_create(
        PageView(project_id=going, path=f"/back/{number}", view_count=1, date=day)
        for day in (DAY, NEXT)
        for number in range(3)
    )
    exporter().export_daily_pageviews(DAY)
    assert stored(place) == [staying]
    found = exporter().verify(DAY, against="database")
    assert (found["missing"], found["total_records"]) == (0, 20)
    exporter().export_daily_pageviews(DAY, discard_stored=True)
    assert stored(place) == [staying]
    assert views("going") == []
    PageView.objects.filter(date=NEXT).delete()
    assert stored(place, NEXT) == [going, staying]
    code, out, _ = sites.run("parquet_analytics", "restore", "--date", str(NEXT), "--json")
    assert code == 0
    assert json.loads(out)["restored"] == 20
    assert set(PageView.objects.filter(date=NEXT).values_list("project_id", flat=True)) == {staying}


def test_a_new_owner_of_the_slug_sees_only_what_is_theirs(site: str, place: Any) -> None:
    Project.objects.get(slug="going").delete()
    erase_pending()
    sites.few(TODAY, rows=4, project="going")
    assert PageViewsQuerier().daily_totals("going", DAY, TODAY)["count"].to_pylist() == [6]
    sites.few(DAY, rows=3, project="going")
    assert export("--date", str(DAY))[0] == 0
    assert views("going") == [3]
    assert len(stored(place)) == 2


def test_a_store_that_is_down_hides_nothing_and_the_night_makes_up_for_it(
    site: str, place: Any, sent: list[Any]
) -> None:
    going = Project.objects.get(slug="going").pk
    entry = sites.s3_entry(place)
    down = entry | {"OPTIONS": entry["OPTIONS"] | {"endpoint_url": "http://127.0.0.1:1"}}
    with sites.archive(down):
        Project.objects.get(slug="going").delete()
        with pytest.raises(StoreError):
            erase_pending()
    assert Erasure.objects.get().recorded_at is None
    assert hidden_projects() == [going]
    assert views("going") == []
    tasks.export_pageviews_to_parquet()
    assert Erasure.objects.get().finished_at is not None
    assert going not in stored(place)


def test_eight_erasures_at_once_are_all_recorded(place: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    who = ParquetAnalyticsExporter(place.url, storage_options=place.options())
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: who.erase_project(number, f"slug-{number}"), range(8)))
    assert who.erased_projects() == list(range(8))
    body = place.s3.client().get_object(Bucket=place.bucket, Key=f"{place.location}/{LIST}")["Body"].read()
    told = json.loads(body)
    assert told["format"] == 1
    assert [project["slug"] for project in told["projects"]] == [f"slug-{number}" for number in range(8)]


def test_a_hundred_thousand_projects_are_a_small_list_and_too_many_are_refused_before_any_reader_is_stuck() -> None:
    who = ParquetAnalyticsExporter("memory://many-erased")
    assert len(who.erase_projects({number: f"project-{number}" for number in range(100_000)})) == 100_000
    assert who.erase_projects({5: "project-5", 100_000: None}) == [100_000]
    assert who.erased_projects() == list(range(100_001))
    with pytest.raises(ConfigurationError, match="is full: no reader takes more than its 100001 projects"):
        who.erase_projects(dict.fromkeys(range(1_000_000)))
    assert len(who.erased_projects()) == 100_001


def test_only_the_latest_erased_projects_keep_their_slugs(place: Any) -> None:
    who = ParquetAnalyticsExporter(place.url, storage_options=place.options())
    who.erase_projects({number: f"early-{number}" for number in range(3_000)})
    time.sleep(1.1)  # times are whole seconds
    who.erase_projects({number: f"late-{number}" for number in range(3_000, 13_000)})
    body = place.s3.client().get_object(Bucket=place.bucket, Key=f"{place.location}/{LIST}")["Body"].read()
    told = json.loads(body)["projects"]
    assert [project["project_id"] for project in told] == list(range(13_000))
    assert [number for number, project in enumerate(told) if "slug" in project] == list(range(3_000, 13_000))
    assert told[0] == {"project_id": 0}


@pytest.mark.parametrize("given", [{"project_id": True}, {}])
def test_years_of_erased_projects_do_not_lengthen_a_question(site: str, given: dict[str, Any]) -> None:
    staying = Project.objects.get(slug="staying").pk
    exporter().erase_projects(dict.fromkeys(range(1000, 4000)))
    sites.few(TODAY, project="staying")
    if given:
        given = {"project_id": staying}
    querier = PageViewsQuerier(max_age=0)
    for ask in (querier.daily_totals, querier.top_pages, querier.query_pageviews):
        with CaptureQueriesContext(connections["default"]) as queries:
            assert ask("staying", DAY, TODAY, **given, **({} if ask == querier.query_pageviews else {"status": None}))
        assert max(len(each["sql"]) for each in queries) < 2_500
    # A question about all projects leaves all of them out.
    PageView.objects.filter(date=TODAY).update(project_id=Project.objects.create(pk=2_000, slug="x").pk)
    assert querier.sql("SELECT count(*) AS n FROM pageviews", since=TODAY)["n"].to_pylist() == [0]


def test_a_slug_or_an_organization_that_no_key_can_have_keeps_no_erasure_up(site: str, place: Any) -> None:
    sites.few(DAY, project="odd")
    Project.objects.filter(slug="odd").update(slug="it's; odd/")
    with sites.organizations(**{"an 'odd' one/": ["going"]}):
        Project.objects.get(slug="it's; odd/").delete()
        Project.objects.get(slug="going").delete()
        assert len(erase_pending()) == 2
    assert stored(place) == [Project.objects.get(slug="staying").pk]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"),
        (b"{}", "no format"),
        (b'{"format": 2, "projects": []}', "format 2, and this version reads 1; upgrade"),
        (b'{"format": 1}', "no list of projects"),
        (b'{"format": 1, "projects": [{}]}', "a project has no id"),
        (b'{"format": 1, "projects": [{"project_id": 99999999999}]}', "a project has no id"),
    ],
)
def test_a_damaged_list_is_an_error_and_not_an_empty_list(site: str, place: Any, body: bytes, message: str) -> None:
    place.s3.client().put_object(Bucket=place.bucket, Key=f"{place.location}/{LIST}", Body=body)
    with pytest.raises(CorruptFile, match=message) as caught:
        views("staying", ParquetAnalyticsQuerier(max_age=0))
    assert caught.value.key == LIST
    assert export("--date", str(DAY))[0] == 3
    with pytest.raises(CorruptFile):
        exporter().erase_project(1)


def test_a_site_without_a_ledger_can_delete_its_projects(site: str, site_database: str) -> None:
    with psycopg.connect(site_database) as database:
        database.execute("DROP TABLE parquet_analytics_erasure")
    with transaction.atomic():
        Project.objects.get(slug="going").delete()
    assert not Project.objects.filter(slug="going").exists()


def copies(place: Any, of: str) -> list[str]:
    keys: list[str] = place.keys()
    return [key for key in keys if f"/{of}/" in key]


def test_copies_go_although_an_export_took_the_rows_out_of_the_day_before(site: str, place: Any) -> None:
    """So it is after a crash between the two, too."""
    going = Project.objects.get(slug="going").pk
    Project.objects.get(slug="going").delete()
    exporter().erase_project(going)
    exporter().export_daily_pageviews(DAY)
    exporter().erase_from_day(NEXT)
    assert going not in stored(place) + stored(place, NEXT)
    assert len(copies(place, "project/going")) == 2
    assert exporter().days_with_erased_copies([DAY, NEXT, TODAY], ["going", "staying"]) == [DAY, NEXT]
    erase_pending()
    assert copies(place, "project/going") == []
    assert len(copies(place, "project/staying")) == 2


def test_an_erasure_that_is_broken_off_is_finished_by_the_next(site: str, place: Any) -> None:
    """Wherever it is broken off: the day's file is the last to lose the rows."""
    going, staying = (Project.objects.get(slug=slug).pk for slug in ("going", "staying"))
    Project.objects.get(slug="going").delete()
    exporter().erase_project(going)
    proxy = S3Proxy(place.s3.endpoint_url)

    def refusing(address: str, request: Any) -> Response:
        return Response.error(403, "AccessDenied") if request.method == "PUT" else forward(address, request)

    proxy.rewrite = refusing
    with sites.archive(sites.s3_entry(place, proxy.url)), pytest.raises(PermissionDenied):
        erase_pending()
    proxy.close()
    assert stored(place) == stored(place, NEXT) == [going, staying]
    assert copies(place, "project/going") == []
    assert Erasure.objects.get().finished_at is None
    assert erase_pending() == [going]
    assert stored(place) == stored(place, NEXT) == [staying]


def test_copies_of_organizations_lose_the_rows_and_others_stay_as_they_are(site: str, place: Any) -> None:
    sites.few(DAY, project="last")
    organizations = {
        "alone": ["going"],
        "both": ["going", "staying"],
        "around": ["last", "first"],
        "other": ["staying"],
    }
    # The ids of `around` lie on both sides of the erased one.
    sites.few(DAY, project="first")
    going, staying, last = (Project.objects.get(slug=slug).pk for slug in ("going", "staying", "last"))
    PageView.objects.filter(project__slug="first").update(project_id=Project.objects.create(pk=-5, slug="early").pk)
    organizations["around"].append("early")
    exporter().export_daily_pageviews(DAY, per_organization=organizations)
    assert stored(place, key=copies(place, "org/around")[0]) == [-5, last]
    assert len(copies(place, "org")) == 4
    Project.objects.get(slug="going").delete()
    exporter().erase_project(going)
    exporter().erase_from_day(
        DAY, slugs=["going"], per_organization={"alone": [], "both": ["staying"], "around": [], "other": []}
    )
    assert [stored(place, key=key) for key in copies(place, "org")] == [[-5, last], [staying], [staying]]


@pytest.fixture
def organizations(site: str) -> Iterator[None]:
    with sites.organizations(alone=["going"], both=["going", "staying"], other=["staying"], none=[]):
        assert export("--date", str(DAY), "--per-organization")[0] == 0
        yield


def organizations_copies(place: Any) -> dict[str, list[Any]]:
    return {key.split("/org/")[1].split("/")[0]: stored(place, key=key) for key in copies(place, "org")}


def test_copies_of_the_sites_organizations_lose_the_rows(organizations: None, place: Any) -> None:
    """Written by a flag once, without the setting. No copy comes into being that was not there."""
    going, staying = (Project.objects.get(slug=slug).pk for slug in ("going", "staying"))
    assert organizations_copies(place) == {"alone": [going], "both": [going, staying], "other": [staying]}
    Project.objects.get(slug="going").delete()
    assert Erasure.objects.get().organizations == ["alone", "both"]
    erase_pending()
    assert organizations_copies(place) == {"both": [staying], "other": [staying]}
    assert all(f"/{DAY:%Y/%m/%d}/" in key for key in copies(place, "org"))


def test_copies_of_organizations_whose_day_lost_the_rows_before(organizations: None, place: Any) -> None:
    """To an export that came between, which left them out."""
    from tests.organizations.models import Organization

    going, staying = (Project.objects.get(slug=slug).pk for slug in ("going", "staying"))
    Project.objects.get(slug="going").delete()
    Organization.objects.get(slug="alone").delete()
    exporter().erase_project(going)
    exporter().export_daily_pageviews(DAY)
    assert stored(place) == [staying]
    assert organizations_copies(place) == {"alone": [going], "both": [going, staying], "other": [staying]}
    erase_pending()
    assert organizations_copies(place) == {"both": [staying], "other": [staying]}


@pytest.mark.parametrize("many", [False, True])
def test_copies_are_looked_for_only_where_there_are_some(
    site_database: str, place: Any, sent: list[Any], monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """Not one request for each of a site's organizations on each day of its archive; and where copies are very many,
    none for those of other projects."""
    if many:
        monkeypatch.setattr(sweep, "_MOST_COPIES", 0)
    asked: list[str] = []

    def listening(address: str, request: Any) -> Response:
        asked.append(request.path.partition("/analytics/pageviews/")[2])
        return forward(address, request)

    for day in (DAY, NEXT):
        sites.few(day, project="going")
        sites.few(day, project="staying")
    proxy = S3Proxy(place.s3.endpoint_url)
    with sites.archive(sites.s3_entry(place, proxy.url)), sites.organizations(first=["going"], second=["staying"]):
        assert export("--date", str(DAY), "--per-project")[0] == 0
        assert export("--date", str(NEXT))[0] == 0
        proxy.rewrite = listening
        Project.objects.get(slug="going").delete()
        erase_pending()
    proxy.close()
    folders = {path.partition("/")[0] for path in asked}
    assert "2026" in folders
    assert "org" not in folders
    copies_asked = {path.split("/")[1] for path in asked if path.startswith("project/")}
    assert copies_asked == ({"going"} if many else {"going", "staying"})
    assert (Erasure.objects.get().note is not None) is many
    assert stored(place) == stored(place, NEXT) == [Project.objects.get(slug="staying").pk]


def test_a_copy_of_the_new_owner_of_the_slug_stays(site: str, place: Any) -> None:
    Project.objects.get(slug="going").delete()
    exporter().erase_project(Erasure.objects.get().project_id)
    sites.few(TODAY - datetime.timedelta(days=1), rows=4, project="going")
    assert export("--date", str(TODAY - datetime.timedelta(days=1)), "--per-project")[0] == 0
    erase_pending()
    assert len(copies(place, "project/going")) == 1


def test_rows_that_the_table_still_has_are_not_shown(site: str) -> None:
    """Erased by the library, or back with a restored database of which the ledger is a part."""
    sites.few(TODAY, project="going")
    sites.few(TODAY, project="staying")
    exporter().erase_project(Project.objects.get(slug="going").pk)
    querier = PageViewsQuerier(max_age=0)
    assert querier.daily_totals("going", DAY, TODAY, status=None).num_rows == 0
    assert querier.top_pages("going", DAY, TODAY, status=None).num_rows == 0
    assert querier.query_pageviews("going", DAY, TODAY).num_rows == 0
    assert querier.sql("SELECT count(*) n FROM pageviews", since=TODAY)["n"].to_pylist() == [20]
    assert querier.daily_totals("staying", TODAY, status=None)["count"].to_pylist() == [190]


def test_a_project_that_is_deleted_as_a_proxy_is_erased(site: str) -> None:
    class Renamed(Project):
        class Meta:
            proxy = True
            app_label = "projects"

    connect()  # as when the app is ready, with all models known
    try:
        going = Project.objects.get(slug="going").pk
        Renamed.objects.get(slug="going").delete()
        assert hidden_projects() == [going]
    finally:
        del apps.all_models["projects"]["renamed"]
        apps.clear_cache()


@pytest.mark.full
def test_a_querier_that_believes_files_for_long_believes_the_list_for_a_minute(site: str, place: Any) -> None:
    """Else a project would be shown again once it is not hidden by the ledger any more."""
    going = Project.objects.get(slug="going").pk
    querier = PageViewsQuerier(max_age=100_000)
    assert views("going", querier) == [190, 190]
    code = (
        "import json, sys; from parquet_analytics import ParquetAnalyticsExporter as Exporter\n"
        "url, options, source, project = sys.argv[1:]\n"
        "Exporter(url, storage_options=json.loads(options), source=source).erase_project(int(project))"
    )
    # In another process, since this one knows at once what it wrote.
    command = [sys.executable, "-c", code, place.url, json.dumps(place.options()), site, str(going)]
    subprocess.run(command, check=True)
    assert views("going", querier) == [190, 190]
    time.sleep(61)
    assert views("going", querier) == []


def test_the_status_is_that_of_the_files_that_are_left(site: str, place: Any) -> None:
    """And a day of which a project's rows went has no late ones."""
    before = {day.day: day for day in status(DAY, NEXT).days}
    with sites.archive(sites.s3_entry(place), LOOKBACK_DAYS=365):
        Project.objects.get(slug="going").delete()
        erase_pending()
        after = {day.day: day for day in status(DAY, NEXT).days}
    assert [after[day].state for day in (DAY, NEXT)] == ["verified", "deleted"]
    for day in (DAY, NEXT):
        assert (before[day].rows, after[day].rows) == (40, 20)
        assert before[day].bytes != after[day].bytes
        assert exporter().verify(day)["bytes"] == after[day].bytes


def test_erasures_at_once_do_not_spoil_each_other(site: str, place: Any) -> None:
    """Each may meet days that another has. A task that does is tried again."""
    from concurrent.futures import ThreadPoolExecutor

    def erase(_: int) -> None:
        try:
            with contextlib.suppress(DayIsTaken):
                erase_pending()
        finally:
            connections.close_all()

    staying = Project.objects.get(slug="staying").pk
    Project.objects.get(slug="going").delete()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(erase, range(4)))
    assert stored(place) == stored(place, NEXT) == [staying]
    erase_pending()
    erasure = Erasure.objects.get()
    assert erasure.finished_at is not None
    assert erasure.error == ""

"""A day that is brought back: exactly the rows of its file, in the table that they are from, and a day like any other
afterwards; or nothing."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.db.models.signals import post_init, pre_save
from parquet_analytics import ParquetAnalyticsExporter, _native
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django import restore
from parquet_analytics.django.models import Run
from parquet_analytics.django.restore import restore_day
from parquet_analytics.django.runs import delete_day, export_day, exporter, ledger
from parquet_analytics.django.table.insertion import Table
from parquet_analytics.exceptions import DayIsTaken, InvalidInput, StoreError

from tests import sites
from tests.archives import KEY, Place, execute, rows_of, saying
from tests.services import Postgres
from tests.sites import DAY, NEXT
from tests.test_merge import metadata

LISTED = "analytics/pageviews/_deleted/days.json"
ROWS = (
    "SELECT id, path, full_path, view_count, date, status, project_id, version_id FROM analytics_pageview ORDER BY id"
)


@pytest.fixture
def site(site_database: str, place: Place) -> Iterator[str]:
    with sites.archive(sites.s3_entry(place)):
        yield site_database


def listed(place: Place) -> list[str]:
    """The days of which the store knows that rows were deleted."""
    return sorted(json.loads(place.read(LISTED))["days"])


def view(path: str, count: int) -> None:
    project = Project.objects.get(slug="docs")
    PageView.objects.create(project=project, path=path, view_count=count, date=DAY, status=200)


def gone(*, summed: bool = False) -> None:
    """A day of 20 rows that is exported and deleted; with two rows of one page."""
    sites.few(DAY)
    export_day(DAY)
    delete_day(DAY)
    if summed:
        view("/3", 100)
        export_day(DAY)
        delete_day(DAY)


@pytest.mark.parametrize("summed", [False, True])
def test_a_restored_day_is_a_day_like_any_other(site: str, place: Place, summed: bool) -> None:
    gone(summed=summed)
    before = metadata(place)
    assert (before["remaining"], listed(place)) == ("", [str(DAY)])
    result = restore_day(DAY)
    assert (result["restored"], result["summed"], result["unsettled"]) == (20, int(summed), None)
    after = metadata(place)
    assert "remaining" not in after
    assert listed(place) == []
    for name in ("position", "source", "snapshot_time"):
        assert after[name] == before[name]
    run = Run.objects.latest("id")
    assert (run.etag, run.sha256) == (exporter().verify(DAY)["etag"], exporter().verify(DAY)["sha256"])
    # It can be changed, exported and deleted as any other.
    PageView.objects.filter(path="/4").update(view_count=1_000)
    _, exported = export_day(DAY)
    assert (exported["changed"], exported["kept"], exported["left"]) == (1, 0, 0)
    assert delete_day(DAY)[1]["deleted"] == 20
    assert (metadata(place)["remaining"], listed(place)) == ("", [str(DAY)])
    assert exporter().verify(DAY)["total_views"] == 190 - 4 + 1_000 + 100 * summed


def test_rows_that_were_skipped_are_not_said_to_be_back(site: str, place: Place) -> None:
    sites.few(DAY, project="ghost", rows=3)
    gone()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM projects_project WHERE slug = 'ghost'")
    result = restore_day(DAY)
    assert (result["restored"], result["skipped"]) == (20, 3)
    assert listed(place) == [str(DAY)]
    present = [row[0] for row in rows_of(site, ROWS)]
    assert metadata(place)["remaining"] == " ".join(map(str, present))
    assert exporter().verify(DAY)["total_records"] == 23


# Beside others.


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("moment", ["reading", "inserting", "right before the commit"])
def test_a_file_that_was_written_meanwhile_is_not_restored_from(
    site: str, place: Place, monkeypatch: pytest.MonkeyPatch, summed: bool, moment: str
) -> None:
    gone(summed=summed)
    where, name = {
        "reading": (restore, "_gone"),
        "inserting": (Table, "insert"),
        "right before the commit": (_native, "prepare_restoration"),
    }[moment]
    real: Callable[..., Any] = getattr(where, name)
    done: list[int] = []

    def between(*arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(1)
            # In a connection of its own: the library's.
            late = ParquetAnalyticsExporter(place.url, source=site, storage_options=place.options())
            execute(
                site,
                "INSERT INTO analytics_pageview (path, view_count, date, status, project_id)"
                " SELECT '/late', 1000, '2026-07-01', 200, id FROM projects_project",
            )
            late.export_daily_pageviews(DAY)
            late.delete_exported_pageviews(DAY)
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, between)
    with pytest.raises(DayIsTaken, match=saying("2026-07-01", "written anew", "restore it again")):
        restore_day(DAY)
    assert PageView.objects.count() == 0
    assert exporter().verify(DAY)["total_views"] == 190 + 100 * summed + 1_000
    assert restore_day(DAY)["views"] == 190 + 100 * summed + 1_000


def test_a_lease_that_was_lost_restores_nothing(site: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gone()
    before = place.read(KEY)
    compare = Table.compare

    def lost(*arguments: Any) -> None:
        compare(*arguments)
        # As whoever takes it over does, in a connection of its own.
        execute(site, "UPDATE parquet_analytics_run SET lease = NULL WHERE state = 'running'")

    monkeypatch.setattr(Table, "compare", lost)
    with pytest.raises(DayIsTaken, match="taken this day over"):
        restore_day(DAY)
    assert PageView.objects.count() == 0
    assert place.read(KEY) == before


@pytest.mark.parametrize("name", ["read_for_restoration", "prepare_restoration", "finish_restoration"])
def test_the_lease_is_renewed_while_files_are_read_and_written(
    site: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gone(summed=True)
    renewed: list[str] = []
    inside: list[str] = []
    real, renew = getattr(_native, name), ledger.Ledger.renew

    def noted(self: Any, **options: Any) -> None:
        renewed.extend(inside)
        renew(self, **options)

    def native(*arguments: Any, **options: Any) -> Any:
        inside.append(name)
        try:
            return real(*arguments, **options)
        finally:
            inside.clear()

    monkeypatch.setattr(ledger.Ledger, "renew", noted)
    monkeypatch.setattr(_native, name, native)
    restore_day(DAY)
    assert set(renewed) == {name}


@pytest.mark.parametrize("outcome", ["committed", "not committed"])
def test_a_crash_around_the_commit_neither_loses_nor_doubles_a_row(
    site: str, place: Place, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    gone(summed=True)

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    if outcome == "committed":
        monkeypatch.setattr(_native, "finish_restoration", killed)
    else:
        real = _native.prepare_restoration
        monkeypatch.setattr(_native, "prepare_restoration", lambda *given, **options: killed(real(*given, **options)))
    with pytest.raises(Killed):
        restore_day(DAY)
    monkeypatch.undo()
    # Not known which rows the table has; and if the file gets lost, that is noticed.
    assert (metadata(place)["remaining"], listed(place)) == ("unknown", [str(DAY)])
    assert exporter().verify(DAY)["total_views"] == 290
    if outcome == "committed":
        assert PageView.objects.count() == 20
        _, exported = export_day(DAY)
        assert (exported["kept"], exported["left"]) == (0, 0)
        assert listed(place) == []
    else:
        assert PageView.objects.count() == 0
        assert restore_day(DAY)["views"] == 290
    assert "remaining" not in metadata(place)
    assert exporter().verify(DAY, against="database")["total_views"] == 290


def test_a_transaction_of_the_callers_may_still_be_taken_back(site: str, place: Place) -> None:
    gone(summed=True)
    for taken_back in (True, False):
        with transaction.atomic():
            assert "the caller has yet to commit" in restore_day(DAY, accept_moved_database=True)["unsettled"]
            transaction.set_rollback(taken_back)
        assert (metadata(place)["remaining"], listed(place)) == ("unknown", [str(DAY)])
        assert exporter().verify(DAY)["total_views"] == 290
    export_day(DAY)
    assert ("remaining" in metadata(place), listed(place)) == (False, [])


def test_a_store_that_fails_after_the_commit_leaves_the_rows_and_says_what_to_do(
    site: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone()

    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("the store is away", retryable=True)

    monkeypatch.setattr(_native, "finish_restoration", fails)
    code, out, err = sites.run("parquet_analytics", "restore", "--date", str(DAY))
    assert (code, PageView.objects.count()) == (0, 20)
    assert "20 rows" in out
    assert "export the day again" in err
    export_day(DAY)
    assert "remaining" not in metadata(place)


# The table.


def test_a_day_is_not_restored_to_another_table(postgres: Postgres, django_template: str, place: Place) -> None:
    urls = {alias: postgres.create_database(django_template) for alias in ("default", "other")}
    with sites.databases(**urls), sites.archive(sites.s3_entry(place)):
        gone()
        before = place.read(KEY)
        with sites.archive(sites.s3_entry(place), WRITE_DATABASE="other"):
            Project.objects.using("other").create(pk=Project.objects.get().pk, slug="docs", name="Other docs")
            for dry_run in (True, False):
                with pytest.raises(
                    InvalidInput, match=saying("2026-07-01", "another database", "accept_moved_database")
                ):
                    restore_day(DAY, dry_run=dry_run)
            code, _, err = sites.run("parquet_analytics", "restore", "--date", str(DAY))
            assert code == 1
            assert "--accept-moved-database" in err
            assert PageView.objects.using("other").count() == 0
            assert place.read(KEY) == before
            options = ["--date", str(DAY), "--accept-moved-database"]
            assert sites.run("parquet_analytics", "restore", *options)[0] == 0
            assert PageView.objects.using("other").count() == 20
    for url in urls.values():
        postgres.drop_database(url)


def test_a_table_that_does_not_say_which_it_is_gets_only_days_that_do_not_either(
    site: str, place: Place, tmp_path: Any
) -> None:
    from parquet_analytics.demo import site as demo

    gone()
    project = Project.objects.get()
    with sites.databases(default=demo.sqlite(tmp_path / "site.sqlite3")):
        from django.core.management import call_command

        call_command("migrate", verbosity=0, run_syncdb=True)
        Project.objects.create(pk=project.pk, slug="docs", name="docs")
        with pytest.raises(InvalidInput, match=saying("exported from postgresql://", "accept_moved_database")):
            restore_day(DAY)
        assert PageView.objects.count() == 0
        assert restore_day(DAY, accept_moved_database=True)["restored"] == 20
        PageView.objects.all().delete()
        sites.few(NEXT)
        export_day(NEXT)
        PageView.objects.all().delete()
        assert restore_day(NEXT)["restored"] == 20


# What a site does to its rows.


class Backwards(models.CharField):
    """Holds texts from back to front."""

    def from_db_value(self, value: str | None, *_: Any) -> str | None:
        return None if value is None else value[::-1]

    def get_prep_value(self, value: str | None) -> str | None:
        return None if value is None else value[::-1]


class Shouting(models.CharField):
    def pre_save(self, instance: Any, add: bool) -> str:
        return getattr(instance, self.attname).upper()


class Few(models.Manager):
    def get_queryset(self) -> Any:
        return super().get_queryset().filter(count__lt=5)


class Hooked(models.Model):
    project = models.ForeignKey(Project, on_delete=models.DO_NOTHING, related_name="+")
    path = Shouting(max_length=100)
    full_path = Backwards(max_length=100, null=True)
    count = models.IntegerField()
    date = models.DateField(auto_now_add=True)
    seen = models.DateField(auto_now=True)
    status = models.IntegerField(default=200)
    referrer = models.CharField(max_length=100, default="unknown")

    objects = Few()

    class Meta:
        app_label = "analytics"

    def __str__(self) -> str:
        return self.path


HOOKED: dict[str, Any] = {
    "MODEL": "analytics.Hooked",
    "FIELDS": {"view_count": "count", "version_id": None, "version_slug": None},
    "DELETE_COLUMNS": ["seen", "referrer"],
}


@pytest.fixture
def hooked(site_database: str, place: Place) -> Iterator[str]:
    with connection.schema_editor() as editor:
        editor.create_model(Hooked)
    Project.objects.create(slug="docs", name="docs")
    execute(
        site_database,
        "INSERT INTO analytics_hooked (project_id, path, full_path, count, date, seen, status, referrer)"
        " SELECT p.id, '/' || n, reverse('/en/' || n), n, '2026-07-01', '2026-07-01', 404, 'somebody'"
        " FROM projects_project p, generate_series(1, 9) n",
    )
    with sites.archive(sites.s3_entry(place), **HOOKED):
        yield site_database


def test_the_models_hooks_have_no_say_in_what_comes_back(hooked: str) -> None:
    sql = "SELECT id, path, full_path, count, date, status FROM analytics_hooked ORDER BY id"
    before = rows_of(hooked, sql)
    export_day(DAY)
    execute(hooked, "DELETE FROM analytics_hooked")

    def meddle(instance: Any, **_: Any) -> None:
        instance.count = 0

    for signal in (post_init, pre_save):
        signal.connect(meddle, sender=Hooked)
    try:
        result = restore_day(DAY)
    finally:
        for signal in (post_init, pre_save):
            signal.disconnect(meddle, sender=Hooked)
    assert rows_of(hooked, sql) == before
    assert (result["restored"], result["columns_lost"]) == (9, ["seen", "referrer"])
    today = datetime.datetime.now(datetime.UTC).date()
    lost = rows_of(
        hooked, "SELECT DISTINCT referrer, seen >= %s FROM analytics_hooked", [today - datetime.timedelta(1)]
    )
    assert lost == [("unknown", True)]


def test_columns_that_come_back_as_defaults_are_named(hooked: str) -> None:
    export_day(DAY)
    execute(hooked, "DELETE FROM analytics_hooked")
    for options in (["--dry-run"], []):
        code, _, err = sites.run("parquet_analytics", "restore", "--date", str(DAY), *options)
        assert code == 0
        assert "no file holds seen, referrer" in err
    execute(hooked, "DELETE FROM analytics_hooked")
    code, out, _ = sites.run("parquet_analytics", "restore", "--date", str(DAY), "--json")
    assert json.loads(out)["columns_lost"] == ["seen", "referrer"]


TRIGGER = """
    CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %s; RETURN new; END $$;
    CREATE TRIGGER meddle BEFORE INSERT ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION meddle()
"""


@pytest.mark.parametrize(
    ("meddling", "parts"),
    [
        ("new.date := current_date", ["0 rows with 0 views", "not there on this day"]),
        (
            "new.view_count := new.view_count + 1",
            ["20 rows with 210 views", "view_count of the row with id", "1, not 0"],
        ),
        ("new.path := upper(new.path) || 'x'", ["20 rows with 190 views", "path of the row"]),
        ("new.id := new.id + 1000", ["20 rows with 190 views", "that was not to be there"]),
        ("IF new.view_count = 7 THEN RETURN NULL; END IF", ["19 rows with 183 views", "not there"]),
        ("new.full_path := '/made/up'", ["full_path"]),
    ],
)
def test_a_database_that_makes_something_else_of_the_rows_gets_none(
    site: str, place: Place, meddling: str, parts: list[str]
) -> None:
    gone()
    before = place.read(KEY)
    execute(site, TRIGGER % meddling)
    with pytest.raises(
        InvalidInput, match=saying("2026-07-01", "20 rows with 190 views", "Nothing was restored", *parts)
    ):
        restore_day(DAY)
    assert PageView.objects.count() == 0
    assert (place.read(KEY), listed(place)) == (before, [str(DAY)])


def test_rows_that_a_trigger_adds_are_no_rows_of_the_day(site: str) -> None:
    gone()
    more = "IF new.view_count < 1000 THEN INSERT INTO analytics_pageview (path, view_count, date, status, project_id)"
    more += " VALUES (new.path || '?', 1000, new.date, 200, new.project_id); END IF"
    execute(site, TRIGGER % more)
    with pytest.raises(InvalidInput, match=saying("40 rows with 20190 views", "not to be there")):
        restore_day(DAY)
    assert PageView.objects.count() == 0


def test_ids_and_columns_that_the_database_makes_itself_come_back(site: str) -> None:
    sites.few(DAY)
    execute(
        site,
        "ALTER TABLE analytics_pageview ALTER id SET GENERATED ALWAYS",
        "ALTER TABLE analytics_pageview DROP full_path,"
        " ADD full_path varchar(4096) GENERATED ALWAYS AS ('/en' || path) STORED",
    )
    before = rows_of(site, ROWS)
    export_day(DAY)
    assert delete_day(DAY)[1]["deleted"] == 20
    assert restore_day(DAY)["columns_lost"] == []
    assert rows_of(site, ROWS) == before


def test_a_table_that_refuses_the_rows_is_said_to(site: str, place: Place) -> None:
    gone()
    before = place.read(KEY)
    execute(site, "ALTER TABLE analytics_pageview ADD CONSTRAINT few CHECK (view_count < 10)")
    with pytest.raises(InvalidInput, match=saying("2026-07-01", "does not take the rows back", "few")):
        restore_day(DAY)
    assert (PageView.objects.count(), place.read(KEY)) == (0, before)

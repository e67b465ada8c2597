"""Models and tables that are set up in unusual ways: the table and the file of a day give the same answers, or a check
says what cannot be."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection, connections, models
from django.test.utils import CaptureQueriesContext
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django.querier import PageViewsQuerier, live
from parquet_analytics.django.runs import due_days, export_day, exporter, first_day
from parquet_analytics.django.source import ModelSource
from parquet_analytics.django.table.mapping import configured
from parquet_analytics.exceptions import ConfigurationError

from tests import sites
from tests.clock import TODAY
from tests.sites import DAY, export

YESTERDAY = TODAY - datetime.timedelta(days=1)


class Hiding(models.Manager):
    def get_queryset(self) -> Any:
        return super().get_queryset().exclude(path__startswith="/hidden")


class ShyPageView(models.Model):
    """A model whose base manager hides rows; the table is that of the page views."""

    project = models.ForeignKey(Project, on_delete=models.DO_NOTHING, related_name="+")
    version = models.ForeignKey("builds.Version", null=True, on_delete=models.DO_NOTHING, related_name="+")
    path = models.CharField(max_length=4096)
    full_path = models.CharField(max_length=4096, null=True)  # noqa: DJ001
    view_count = models.PositiveIntegerField(default=0)
    date = models.DateField()
    status = models.PositiveIntegerField(default=200)

    objects = Hiding()

    class Meta:
        app_label = "analytics"
        db_table = "analytics_pageview"
        managed = False
        base_manager_name = "objects"
        default_manager_name = "objects"

    def __str__(self) -> str:
        return self.path


class PairedPageView(models.Model):
    """A model whose primary key is a pair; the table is that of the page views."""

    pk = models.CompositePrimaryKey("id", "date")
    id = models.BigIntegerField(unique=True)
    project = models.ForeignKey(Project, on_delete=models.DO_NOTHING, related_name="+")
    version = models.ForeignKey("builds.Version", null=True, on_delete=models.DO_NOTHING, related_name="+")
    path = models.CharField(max_length=4096)
    full_path = models.CharField(max_length=4096, null=True)  # noqa: DJ001
    view_count = models.PositiveIntegerField(default=0)
    date = models.DateField()
    status = models.PositiveIntegerField(default=200)

    class Meta:
        app_label = "analytics"
        db_table = "analytics_pageview"
        managed = False

    def __str__(self) -> str:
        return self.path


@pytest.fixture
def site_database(either_database: str) -> str:
    return either_database


@pytest.fixture(autouse=True)
def folder(site_database: str, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "archive"
    folder.mkdir()
    live._told.clear()
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True):
        yield folder


def rows(day: datetime.date, *paths: str, project: str = "docs", **values: Any) -> None:
    owner, _ = Project.objects.get_or_create(slug=project, defaults={"name": project})
    PageView.objects.bulk_create(PageView(project=owner, path=path, view_count=1, date=day, **values) for path in paths)


def execute(*statements: str) -> None:
    with connections["default"].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


QUESTIONS: dict[str, Callable[[PageViewsQuerier], Any]] = {
    "top_pages": lambda q: q.top_pages("docs", YESTERDAY, YESTERDAY, status=None).to_pylist(),
    "per_version": lambda q: q.top_pages("docs", YESTERDAY, YESTERDAY, per_version=True).to_pylist(),
    "daily_totals": lambda q: q.daily_totals("docs", YESTERDAY, YESTERDAY, status=None).to_pylist(),
    "by_id": lambda q: q.daily_totals(None, YESTERDAY, YESTERDAY, project_id=number(), status=None).to_pylist(),
    "not_found": lambda q: q.daily_totals("docs", YESTERDAY, YESTERDAY, status=404).to_pylist(),
    "rows": lambda q: q.query_pageviews("docs", YESTERDAY, YESTERDAY).to_pylist(),
    "columns": lambda q: q.query_pageviews("docs", YESTERDAY, YESTERDAY, columns=["path"]).to_pylist(),
    "sql": lambda q: q.sql(
        "SELECT project_slug, path, sum(view_count) AS n FROM pageviews GROUP BY ALL ORDER BY ALL",
        since=YESTERDAY,
        until=YESTERDAY,
    ).to_pylist(),
    "everything": lambda q: q.sql(
        "SELECT count(*) AS n, sum(view_count) AS v FROM pageviews", since=YESTERDAY, until=YESTERDAY
    ).to_pylist(),
}


def number() -> int:
    return int(Project.objects.filter(slug="docs").order_by("id")[0].pk)


def answers() -> dict[str, Any]:
    q = PageViewsQuerier(max_age=0)
    return {name: ask(q) for name, ask in QUESTIONS.items()}


def same_from_table_and_file(**options: Any) -> dict[str, Any]:
    from_table = answers()
    export_day(YESTERDAY, **options)
    q = PageViewsQuerier(max_age=0)
    q.daily_totals("docs", YESTERDAY, YESTERDAY)
    assert q.coverage is not None
    assert q.coverage.complete == (YESTERDAY,)
    from_file = answers()
    for name, answer in from_table.items():
        assert answer == from_file[name], name
    return from_file


def test_rows_that_a_base_manager_hides_count_everywhere(folder: Path) -> None:
    rows(YESTERDAY, "/shown", "/hidden/1", "/hidden/2")
    assert ShyPageView._base_manager.count() == 1
    with sites.archive(folder, ALLOW_LOCAL_DELETE=True, MODEL="analytics.ShyPageView"):
        found = same_from_table_and_file()
        assert found["daily_totals"][0]["count"] == 3
        assert due_days(YESTERDAY, YESTERDAY, exporter().location) == []
        rows(YESTERDAY, "/hidden/late")
        assert [due.late for due in due_days(YESTERDAY, YESTERDAY, exporter().location)] == [True]
        assert sum(batch.num_rows for batch in ModelSource(ShyPageView)(YESTERDAY)) == 4
        # A manager that somebody passes says which rows.
        assert sum(batch.num_rows for batch in ModelSource(ShyPageView.objects)(YESTERDAY)) == 1
        rows(DAY, "/hidden/old")
        assert first_day(configured()) == DAY
        _, out, _ = export("--date", str(DAY), "--dry-run")
        assert "1 rows" in out


def call_equal_what_is_not(vendor: str, table: str, column: str) -> None:
    """The column's collation does not tell upper from lower case."""
    if vendor == "postgresql":
        try:
            execute("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        except Exception as error:  # noqa: BLE001 - whatever a server without ICU says
            pytest.skip(str(error))
        execute(f'ALTER TABLE {table} ALTER {column} TYPE varchar(4000) COLLATE "loose"')
        return
    kind = '"path" varchar(4096)'
    execute(
        "PRAGMA writable_schema = 1",
        f"UPDATE sqlite_master SET sql = replace(sql, '{kind}', '{kind} COLLATE NOCASE') WHERE name = '{table}'",
        "PRAGMA writable_schema = RESET",
    )
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT path) FROM analytics_pageview")
        assert cursor.fetchone() == (2,)


def test_paths_that_a_collation_calls_equal_are_told_apart(site_database: str) -> None:
    execute(*constraints())
    rows(YESTERDAY, "/Index", "/index", "/INDEX", "/other")
    call_equal_what_is_not(site_database, "analytics_pageview", "path")
    found = same_from_table_and_file()
    assert sorted(page["path"] for page in found["top_pages"]) == ["/INDEX", "/Index", "/index", "/other"]


@pytest.mark.parametrize("either_database", ["postgresql"], indirect=True)
def test_slugs_that_a_collation_calls_equal_are_told_apart(site_database: str) -> None:
    Project.objects.create(slug="docs", name="x")
    execute(*constraints("projects_project"))
    call_equal_what_is_not(site_database, "projects_project", "slug")
    Project.objects.create(slug="x", name="y")
    execute("UPDATE projects_project SET slug = 'DOCS' WHERE slug = 'x'")
    other = Project.objects.get(name="y")
    for path in ("/a", "/b"):
        PageView.objects.create(project=Project.objects.get(name="x"), path=path, view_count=1, date=YESTERDAY)
    PageView.objects.create(project=other, path="/theirs", view_count=7, date=YESTERDAY)
    found = same_from_table_and_file()
    assert found["daily_totals"][0]["count"] == 2
    assert [row["project_slug"] for row in found["sql"]] == ["DOCS", "docs", "docs"]


@pytest.mark.parametrize("either_database", ["postgresql"], indirect=True)
def test_a_type_that_ignores_case_is_no_other_answer(site_database: str) -> None:
    execute("CREATE EXTENSION IF NOT EXISTS citext", *constraints())
    execute("ALTER TABLE analytics_pageview ALTER path TYPE citext")
    rows(YESTERDAY, "/Index", "/index")
    assert [page["path"] for page in answers()["top_pages"]] == ["/Index", "/index"]


def constraints(table: str = "analytics_pageview") -> list[str]:
    """Statements that let a table take anything."""
    if connection.vendor == "sqlite":
        return []
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('c', 'u')", [table]
        )
        names = [name for (name,) in cursor.fetchall()]
        cursor.execute(
            "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = %s::regclass AND NOT indisprimary", [table]
        )
        indexes = [name for (name,) in cursor.fetchall()]
    kept = [f'ALTER TABLE {table} DROP CONSTRAINT "{name}" CASCADE' for name in names]
    return [*kept, *(f"DROP INDEX IF EXISTS {name}" for name in indexes)]


BAD = [
    ("view_count", "NULL"),
    ("view_count", "-5"),
    ("view_count", "3000000000"),
    ("status", "NULL"),
    ("status", "40000"),
    ("status", "-1"),
    ("path", "NULL"),
    ("project_id", "NULL"),
]


@pytest.mark.parametrize(("column", "value"), BAD)
def test_a_row_that_no_file_can_hold_is_not_counted_and_told_of_once(
    site_database: str, column: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows(YESTERDAY, "/good", "/better")
    rows(YESTERDAY, "/bad")
    bad = PageView.objects.get(path="/bad")
    let_anything_in(site_database, column)
    execute(f"UPDATE analytics_pageview SET {column} = {value} WHERE id = {bad.pk}")
    with caplog.at_level(logging.WARNING, "parquet_analytics"):
        answers()
        answers()
    told = [record for record in caplog.records if "no file can hold" in record.message]
    if column != "project_id":  # no answer is about a row of no project, but that about all
        assert [record.levelname for record in told] == ["WARNING"]
        assert f"id {bad.pk} " in told[0].message
    code, _, err = export("--date", str(YESTERDAY))
    assert code == 1, err
    if site_database == "sqlite" and column == "project_id":
        return
    same_from_table_and_file(on_bad_row="leave")


def let_anything_in(vendor: str, column: str) -> None:
    if vendor == "postgresql":
        execute(*constraints())
        execute(f"ALTER TABLE analytics_pageview ALTER {column} DROP NOT NULL")
        if column != "path":
            execute(f"ALTER TABLE analytics_pageview ALTER {column} TYPE bigint")
        return
    execute(
        "PRAGMA ignore_check_constraints = 1",
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'analytics_pageview'",
        "PRAGMA writable_schema = RESET",
    )


def test_a_composite_primary_key_is_refused_by_name(folder: Path) -> None:
    given: dict[str, Any] = {"ALLOW_LOCAL_DELETE": True, "MODEL": "analytics.PairedPageView"}
    with sites.archive(folder, **given):
        [message] = [message for message in run_checks(tags=["parquet_analytics"]) if message.is_serious()]
        assert message.id == "parquet_analytics.E011"
        assert "composite primary key" in message.msg
        with pytest.raises(ConfigurationError, match="PairedPageView has a composite primary key"):
            export_day(YESTERDAY)
    rows(YESTERDAY, "/a", "/b")
    with sites.archive(folder, **given, FIELDS={"id": "id"}):
        assert [message for message in run_checks(tags=["parquet_analytics"]) if message.is_serious()] == []
        same_from_table_and_file()
        assert due_days(YESTERDAY, YESTERDAY, exporter().location) == []


@pytest.mark.parametrize("either_database", ["postgresql"], indirect=True)
def test_a_covering_index_is_still_enough(site_database: str) -> None:
    """Bad values are looked for, and texts told apart by their bytes, without a column that the index lacks."""
    sites.insert(TODAY)
    execute(
        *constraints(),
        "CREATE INDEX covering ON analytics_pageview (project_id, date, status) INCLUDE (path, view_count)",
        "VACUUM ANALYZE analytics_pageview",
    )
    with CaptureQueriesContext(connections["default"]) as asked:
        for project_id in (None, 1):
            slug = None if project_id else sites.SAMPLE.special_projects()["largest"]
            PageViewsQuerier().top_pages(slug, TODAY, TODAY, project_id=project_id)
    sums = [query["sql"] for query in asked if "SUM(" in query["sql"]]
    assert len(sums) == 2
    for sql in sums:
        with connections["default"].cursor() as cursor:
            for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):
                cursor.execute(f"SET enable_{way} = off")
            cursor.execute(f"EXPLAIN {sql}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Index Only Scan using covering on analytics_pageview" in plan, plan

"""A Django model or queryset as a source: real Django on a real SQLite file, through the exporter."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.db import connection, models
from django.db.backends.signals import connection_created
from django.test import override_settings
from parquet_analytics import ParquetAnalyticsExporter, SampleData
from parquet_analytics.demo import site
from parquet_analytics.demo.analytics.models import PageView
from parquet_analytics.demo.projects.models import Project
from parquet_analytics.django.source import ModelSource, configured_source
from parquet_analytics.exceptions import BadRow, ConfigurationError, SourceError

DAY = datetime.date(2026, 7, 1)
SAMPLE = SampleData(rows_per_day=1_000, projects=12, growth=0.0, weekly_rhythm=False)


class Hit(models.Model):
    """A page-view table of another site: other names, fewer columns."""

    number = models.BigAutoField(primary_key=True)
    site = models.ForeignKey(Project, on_delete=models.DO_NOTHING)
    url = models.CharField(max_length=200)
    hits = models.IntegerField()
    on = models.DateField()
    at = models.DateTimeField(null=True)

    class Meta:
        app_label = "analytics"
        ordering = ["-hits"]

    def __str__(self) -> str:
        return self.url


HIT_FIELDS = {
    "project_id": "site",
    "project_slug": "site__slug",
    "path": "url",
    "view_count": "hits",
    "date": "on",
    "version_id": None,
    "version_slug": None,
    "full_path": None,
    "status": None,
}


@pytest.fixture(scope="module")
def tables() -> None:
    site.create_tables()


@pytest.fixture
def rows(tables: None) -> Iterator[int]:
    yield site.insert(SAMPLE, [DAY, DAY + datetime.timedelta(days=1)])
    for model in (Hit, PageView, Project):
        model.objects.all().delete()


def written(folder: Path, exporter: ParquetAnalyticsExporter) -> pa.Table:
    return pq.ParquetFile(folder / exporter.get_parquet_path(DAY)).read()


def test_every_row_of_the_day_is_exported_as_the_database_has_it(rows: int, tmp_path: Path) -> None:
    assert rows == 2_000
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=PageView)
    assert exporter.export_daily_pageviews(DAY)["total_records"] == 1_000
    ours = written(tmp_path, exporter).sort_by("id").to_pylist()
    theirs = PageView.objects.filter(date=DAY).order_by("id").select_related("project", "version")
    assert [tuple(row.values()) for row in ours] == [
        (
            row.pk,
            row.project_id,
            row.project.slug,
            row.version_id,
            row.version and row.version.slug,
            row.path,
            row.full_path,
            row.view_count,
            row.date,
            row.status,
        )
        for row in theirs
    ]


def test_a_queryset_says_which_rows(rows: int, tmp_path: Path) -> None:
    slug = SAMPLE.special_projects()["largest"]
    chosen = PageView.objects.filter(project__slug=slug).order_by("path")
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=chosen)
    total = exporter.export_daily_pageviews(DAY)["total_records"]
    assert 0 < total == chosen.filter(date=DAY).count() < 1_000
    assert set(written(tmp_path, exporter)["project_slug"].to_pylist()) == {slug}


def test_rows_come_in_chunks(rows: int) -> None:
    batches = list(ModelSource(PageView, chunk_size=300)(DAY))
    assert [batch.num_rows for batch in batches] == [300, 300, 300, 100]


def test_a_day_without_rows_is_an_empty_stream_with_its_columns(rows: int) -> None:
    table = ModelSource(PageView.objects)(datetime.date(2020, 1, 1)).read_all()
    assert table.num_rows == 0
    assert table.schema.names[0] == "id"
    assert len(table.schema) == 10


def test_a_model_with_other_names_is_mapped(rows: int, tmp_path: Path) -> None:
    project = Project.objects.get(slug=SAMPLE.special_projects()["tiny"])
    Hit.objects.bulk_create(Hit(site=project, url=f"/{number}", hits=number, on=DAY) for number in range(5))
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=ModelSource(Hit, fields=HIT_FIELDS))
    exporter.export_daily_pageviews(DAY)
    table = written(tmp_path, exporter)
    assert table["path"].to_pylist() == ["/0", "/1", "/2", "/3", "/4"]
    assert table["view_count"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(table["project_slug"].to_pylist()) == {"tiny-notes"}
    assert set(table["status"].to_pylist()) == {200}
    assert table["version_id"].null_count == table["full_path"].null_count == 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"path": "nowhere"}, r"Hit has no field 'nowhere'.*fields\['path'\]"),
        ({"project_slug": "site__nowhere"}, "Project has no field 'nowhere'"),
        ({"project_slug": "url__slug"}, "follows 'slug' from no relation"),
        ({"full_path": "nowhere"}, "or None for a model without it"),
        ({"path": None}, "page views have to have it"),
        ({"date": "url"}, "CharField; date has to be a DateField"),
        ({"pathh": "url"}, "fields names pathh"),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_read(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        ModelSource(Hit, fields=HIT_FIELDS | fields)


def test_what_cannot_be_narrowed_to_a_day_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="sliced"):
        ModelSource(PageView.objects.all()[:10])
    with pytest.raises(ConfigurationError, match="combined"):
        ModelSource(PageView.objects.all().union(PageView.objects.all()))
    with pytest.raises(ConfigurationError, match="a str is no source"):
        ModelSource("analytics.PageView")


def test_a_value_that_does_not_fit_is_named_and_nothing_is_written(rows: int, tmp_path: Path) -> None:
    bad = PageView.objects.filter(date=DAY).order_by("id")[500]
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri(), source=PageView)
    PageView.objects.filter(pk=bad.pk).update(view_count=3_000_000_000)
    with pytest.raises(BadRow, match="3000000000") as caught:
        exporter.export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (bad.pk, "view_count")

    # SQLite stores text in a column of integers.
    with connection.cursor() as cursor:
        cursor.execute("UPDATE analytics_pageview SET view_count = 'many' WHERE id = %s", [bad.pk])
    with pytest.raises(SourceError, match=rf"id {bad.pk} cannot be exported, column view_count: 'many'"):
        exporter.export_daily_pageviews(DAY)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_connection_of_an_exports_thread_is_closed(rows: int, tmp_path: Path) -> None:
    opened = []

    def remember(connection: Any, **_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            opened.append(connection)

    connection_created.connect(remember)
    try:
        ParquetAnalyticsExporter(tmp_path.as_uri(), source=PageView).export_daily_pageviews(DAY)
    finally:
        connection_created.disconnect(remember)
    assert [found.connection for found in opened] == [None]


def test_the_callers_own_connection_stays_open(rows: int) -> None:
    assert PageView.objects.exists()
    assert ModelSource(PageView)(DAY).read_all().num_rows == 1_000
    assert connection.connection is not None


def test_without_a_source_djangos_settings_name_the_model(rows: int, tmp_path: Path) -> None:
    exporter = ParquetAnalyticsExporter(tmp_path.as_uri())
    assert exporter.export_daily_pageviews(DAY)["total_records"] == 1_000
    with override_settings(PARQUET_ANALYTICS={"MODEL": "analytics.Hit", "FIELDS": HIT_FIELDS}):
        assert repr(configured_source()) == "ModelSource(analytics.Hit, using='default')"
    with (
        override_settings(PARQUET_ANALYTICS={"MODEL": "analytics.Nope"}),
        pytest.raises(ConfigurationError, match=r"analytics\.Nope.*PARQUET_ANALYTICS\['MODEL'\]"),
    ):
        exporter.export_daily_pageviews(DAY)

"""Copies of a day for single projects and organizations: each is the day, filtered."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from parquet_analytics import SampleData
from parquet_analytics.exceptions import InvalidInput, ParquetAnalyticsError

from tests.archives import DAY, KEY, Place, execute, rows_of, saying, views
from tests.services import S3

BELOW = "2026/07/01/pageviews_2026-07-01.parquet"


def table(place: Place, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(place.read(key))).replace_schema_metadata()


def of_projects(day: pa.Table, slugs: Any) -> pa.Table:
    return day.filter(pc.is_in(day["project_slug"], pa.array(list(slugs), pa.string())))


@pytest.fixture
def sample() -> SampleData:
    return SampleData(rows_per_day=3_000, projects=40, weekly_rhythm=False, growth=0)


@pytest.fixture
def loaded(sample: SampleData, database: str) -> str:
    sample.load_postgres(database, DAY, DAY)
    return database


def test_each_project_has_its_rows_of_the_day(place: Place, loaded: str) -> None:
    result = place.exporter(loaded).export_daily_pageviews(DAY, per_project=True)
    day = table(place, KEY)
    slugs = sorted(set(day["project_slug"].to_pylist()))
    copies = {slug: f"analytics/pageviews/project/{slug}/{BELOW}" for slug in slugs}
    assert sorted(place.keys()) == sorted([KEY, *copies.values()])
    for slug, key in copies.items():
        assert table(place, key).equals(of_projects(day, [slug])), slug
    assert len(slugs) > 30
    assert (result["project_files"], result["organization_files"]) == (len(slugs), 0)
    # Counts, not names: there may be twenty thousand of them.
    assert result["files"] == {KEY: 3_000}
    assert not any(slug in str(result) for slug in slugs)


def test_each_organization_of_the_database_has_its_projects_rows(place: Place, loaded: str) -> None:
    result = place.exporter(loaded).export_daily_pageviews(DAY, per_organization=True)
    members: dict[str, list[str]] = {}
    for organization, project in rows_of(
        loaded,
        "SELECT o.slug, p.slug FROM organizations_organization o JOIN organizations_organization_projects m "
        "ON m.organization_id = o.id JOIN projects_project p ON p.id = m.project_id",
    ):
        members.setdefault(organization, []).append(project)
    day = table(place, KEY)
    expected = {slug: rows for slug, projects in members.items() if (rows := of_projects(day, projects)).num_rows}
    copies = {slug: f"analytics/pageviews/org/{slug}/{BELOW}" for slug in expected}
    assert sorted(place.keys()) == sorted([KEY, *copies.values()])
    for slug, key in copies.items():
        assert table(place, key).equals(expected[slug]), slug
    assert (result["project_files"], result["organization_files"]) == (0, len(copies))
    assert copies


def test_a_mapping_says_who_belongs_to_an_organization(place: Place, sample: SampleData) -> None:
    special = sample.special_projects()
    given = {
        "both": [special["largest"], special["tiny"]],
        "again": (special["tiny"], special["tiny"]),
        "nobody": [],
        "strangers": ["not-in-the-data"],
    }
    exporter = place.exporter(sample.day, prefix="some/where")
    result = exporter.export_daily_pageviews(DAY, per_project=True, per_organization=given)
    day = table(place, f"some/where/{BELOW}")
    for organization in ("both", "again"):
        key = exporter.get_parquet_path(DAY, organization=organization)
        assert key == f"some/where/org/{organization}/{BELOW}"
        assert table(place, key).equals(of_projects(day, given[organization]))
    assert table(place, exporter.get_parquet_path(DAY, project=special["tiny"])).num_rows == 1
    assert result["organization_files"] == 2
    assert result["project_files"] == len(set(day["project_slug"].to_pylist()))
    assert len(place.keys()) == 1 + result["organization_files"] + result["project_files"]


def test_copies_belong_to_the_run_of_their_day(place: Place) -> None:
    result = place.exporter(views()).export_daily_pageviews(DAY, per_project=True, per_organization={"o": ["docs"]})
    for key in place.keys():  # noqa: SIM118
        metadata = pq.read_metadata(io.BytesIO(place.read(key))).metadata
        assert metadata[b"parquet_analytics.run_id"].decode() == result["run_id"]
        assert metadata[b"parquet_analytics.rows"] == b"3"
    assert len(place.keys()) == 3


def test_no_question_needs_a_copy_and_none_is_counted_twice(place: Place) -> None:
    place.exporter(views()).export_daily_pageviews(DAY, per_project=True, per_organization={"o": ["docs"]})
    querier = place.querier()
    assert querier.top_pages("docs", DAY, DAY, status=None)["count"].to_pylist() == [10, 4, 1]
    assert querier.sql("SELECT count(*) AS n FROM pageviews", since=DAY, until=DAY).to_pylist() == [{"n": 3}]


@pytest.mark.parametrize("slug", ["../x", "a/b", "..", "a\\b", 'a"b', "a%2Fb", "a\nb", " a"])
def test_a_hostile_project_fails_by_name_and_nothing_at_all_is_written(slug: str, s3: S3, bucket: str) -> None:
    place = Place(s3, bucket, "")
    source = views(project_slug=["docs", "docs", slug])
    with pytest.raises(ParquetAnalyticsError, match=saying("slug", repr(slug)[1:-1].replace('"', '\\"'))) as caught:
        place.exporter(source).export_daily_pageviews(DAY, per_project=True)
    assert isinstance(caught.value, InvalidInput)
    assert caught.value.day == DAY
    assert place.keys() == []


def test_a_hostile_project_in_the_database_fails_by_name_too(place: Place, loaded: str) -> None:
    execute(
        loaded, "UPDATE projects_project SET slug = '../x' WHERE id = (SELECT min(project_id) FROM analytics_pageview)"
    )
    with pytest.raises(InvalidInput, match=saying("../x", "slash")):
        place.exporter(loaded).export_daily_pageviews(DAY, per_project=True)
    assert place.keys() == []


@pytest.mark.parametrize("slug", ["../x", "a/b", "", "o\0"])
def test_a_hostile_organization_fails_by_name_and_nothing_at_all_is_written(slug: str, s3: S3, bucket: str) -> None:
    place = Place(s3, bucket, "")
    with pytest.raises(InvalidInput, match="slug"):
        place.exporter(views()).export_daily_pageviews(DAY, per_organization={slug: ["docs"]})
    assert place.keys() == []


def test_a_hostile_slug_is_only_data_where_no_key_is_made_of_it(place: Place) -> None:
    place.exporter(views(project_slug=["docs", "docs", "../x"])).export_daily_pageviews(DAY)
    table = place.querier().sql("SELECT project_slug FROM pageviews WHERE status = 404", since=DAY, until=DAY)
    assert table["project_slug"].to_pylist() == ["../x"]


def test_members_have_to_be_a_list_and_tables_a_databases(place: Place) -> None:
    with pytest.raises(InvalidInput, match=saying("acme", "list")):
        place.exporter(views()).export_daily_pageviews(DAY, per_organization={"acme": "docs"})
    with pytest.raises(InvalidInput, match="PostgreSQL"):
        place.exporter(views()).export_daily_pageviews(DAY, per_organization=True)
    assert place.keys() == []

"""Looking for rows of erased projects: in all days, and in the copies, by what is stored."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest
from parquet_analytics import ParquetAnalyticsExporter

from tests.archives import DAY, Place, views
from tests.test_row_identity import damaged_pages

DAYS = [DAY + datetime.timedelta(days=number) for number in range(3)]
LIVING, GONE, RENAMED = 5, 6, 7


def key_of(day: datetime.date, folder: str = "") -> str:
    return f"analytics/pageviews/{folder}{day:%Y/%m/%d}/pageviews_{day}.parquet"


def rows(day: datetime.date) -> pa.Table:
    """Of three projects, of which the one that will be erased has an id between the others'."""
    return views(
        project_id=pa.array([LIVING, GONE, RENAMED], pa.int32()),
        project_slug=pa.array(["living", "gone", "renamed"]),
        version_id=None,
        version_slug=None,
        date=pa.array([day] * 3),
    )


@pytest.fixture
def exporter(place: Place) -> ParquetAnalyticsExporter:
    """Three days, the second without the project that is erased."""

    def source(day: datetime.date) -> pa.Table:
        return rows(day) if day != DAYS[1] else rows(day).filter(pa.array([True, False, True]))

    exporter = place.exporter(source)
    for day in DAYS:
        exporter.export_daily_pageviews(day, per_project=True)
    assert exporter.erase_project(GONE) is True
    return exporter


def found(exporter: ParquetAnalyticsExporter, **options: Any) -> dict[str, dict[int, list[str]]]:
    return {file["key"]: file["projects"] for file in exporter.erased_rows(**options)["files"]}


def test_only_files_with_rows_of_erased_projects_are_found_and_only_those_projects_named(
    exporter: ParquetAnalyticsExporter,
) -> None:
    gone = {GONE: ["gone"]}
    assert found(exporter) == {
        key_of(DAYS[0]): gone,
        key_of(DAYS[2]): gone,
        key_of(DAYS[0], "project/gone/"): gone,
        key_of(DAYS[2], "project/gone/"): gone,
    }


def test_a_day_whose_pages_are_damaged_is_named_and_hides_no_other(
    exporter: ParquetAnalyticsExporter, place: Place
) -> None:
    """Its footer is whole, so that it is noticed only where rows are read."""
    place.write(key_of(DAYS[0]), damaged_pages(place.read(key_of(DAYS[0]))))
    look = exporter.erased_rows()
    assert list(look["unreadable"]) == [key_of(DAYS[0])]
    assert str(DAYS[0]) in look["unreadable"][key_of(DAYS[0])]
    assert key_of(DAYS[2]) in [file["key"] for file in look["files"]]


def test_of_too_many_copies_those_of_slugs_that_nobody_has_are_looked_at_and_those_that_are_named(
    exporter: ParquetAnalyticsExporter, place: Place
) -> None:
    for slug in ("living", "renamed"):
        # As when the erased project had these slugs before.
        place.write(key_of(DAYS[0], f"project/{slug}/"), place.read(key_of(DAYS[0], "project/gone/")))
    bounded = {"living": ["living", "renamed"], "most_copies": 1}
    assert exporter.erased_rows(**bounded)["every_copy"] is False
    of_gone = {key_of(day, "project/gone/") for day in (DAYS[0], DAYS[2])}
    days = {key_of(DAYS[0]), key_of(DAYS[2])}
    assert set(found(exporter, **bounded)) == days | of_gone
    assert set(found(exporter, **bounded, slugs=["renamed"])) == days | of_gone | {key_of(DAYS[0], "project/renamed/")}
    every = exporter.erased_rows(living=["living", "renamed"])
    assert every["every_copy"] is True
    assert key_of(DAYS[0], "project/living/") in [file["key"] for file in every["files"]]

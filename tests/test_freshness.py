"""An answer is of what is stored while it is made; what a process remembers saves a round trip, and nothing else."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest
from parquet_analytics import ParquetAnalyticsQuerier

from tests.archives import DAY, KEY, Place, views

BEFORE = DAY - datetime.timedelta(days=1)
ERASED = "analytics/pageviews/_erased/projects.json"


def rows(day: datetime.date, projects: list[str], count: int = 10) -> pa.Table:
    """Three rows, of a project each."""
    ids = [100 + ord(slug[0]) for slug in projects]
    return views(
        date=pa.array([day] * 3),
        project_slug=pa.array(projects),
        project_id=pa.array(ids, pa.int32()),
        version_id=None,
        version_slug=None,
        view_count=pa.array([count] * 3, pa.int32()),
        status=pa.array([200] * 3, pa.int16()),
    )


def stored(place: Place, table: pa.Table, key: str = KEY) -> bytes:
    """What an exporter elsewhere stores: this process does not know that it was written."""
    other = Place(place.s3, place.bucket, f"{place.location}-elsewhere")
    [day] = set(table["date"].to_pylist())
    other.exporter(table).export_daily_pageviews(day, replace=True, discard_stored=True)
    return other.read(key)


def key_of(day: datetime.date) -> str:
    return f"analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet"


@pytest.fixture
def querier(place: Place) -> ParquetAnalyticsQuerier:
    """One that has asked about two days before: of `docs` both have rows."""
    place.write(KEY, stored(place, rows(DAY, ["api", "docs", "zoo"])))
    place.write(key_of(BEFORE), stored(place, rows(BEFORE, ["api", "docs", "zoo"]), key_of(BEFORE)))
    querier = place.querier(max_age=0)
    assert totals(querier) == {BEFORE: 10, DAY: 10}
    return querier


def totals(querier: ParquetAnalyticsQuerier, slug: str = "docs", **days: Any) -> dict[datetime.date, int]:
    table = querier.daily_totals(slug, **({"since": BEFORE, "until": DAY} | days))
    return dict(zip(table["date"].to_pylist(), table["count"].to_pylist(), strict=True))


def test_what_is_remembered_takes_one_round_trip(querier: ParquetAnalyticsQuerier) -> None:
    assert totals(querier, "zoo") == {BEFORE: 10, DAY: 10}
    stats = querier.stats or {}
    # One for the list of erased projects, one for the manifest, and one for each day.
    assert (stats["waves"], stats["requests"], stats["footer_requests"], stats["data_requests"]) == (1, 4, 0, 2)


def test_an_answer_that_was_given_is_given_again_when_nothing_has_changed(querier: ParquetAnalyticsQuerier) -> None:
    assert totals(querier) == {BEFORE: 10, DAY: 10}
    stats = querier.stats or {}
    # Whether both days and the list of erased projects are what they were.
    assert (stats["waves"], stats["requests"], stats["footer_requests"], stats["data_requests"]) == (1, 3, 2, 0)
    assert (stats["bytes"], stats["answers_remembered"]) == (0, 1)


def test_a_day_that_was_replaced_is_read_anew(querier: ParquetAnalyticsQuerier, place: Place) -> None:
    place.write(KEY, stored(place, rows(DAY, ["api", "docs", "zoo"], count=11)))
    assert totals(querier) == {BEFORE: 10, DAY: 11}
    # The version that was remembered is refused, and what there is comes whole with its footer.
    assert (querier.stats or {})["waves"] == 2
    assert totals(querier) == {BEFORE: 10, DAY: 11}
    assert (querier.stats or {})["waves"] == 1


@pytest.mark.parametrize("slug", ["aaa", "nobody"])
def test_a_day_of_which_nothing_had_to_be_read_is_asked_about(
    querier: ParquetAnalyticsQuerier, place: Place, slug: str
) -> None:
    """Whether the page index says that a project cannot be there, or the rows do."""
    assert totals(querier, slug) == {}
    place.write(KEY, stored(place, rows(DAY, ["api", "docs", slug], count=3)))
    assert totals(querier, slug) == {DAY: 3}
    assert totals(querier, slug) == {DAY: 3}
    assert (querier.stats or {})["waves"] == 1


def test_a_day_that_is_counted_without_reading_is_asked_about(querier: ParquetAnalyticsQuerier, place: Place) -> None:
    count = "SELECT count(*) AS rows FROM pageviews"
    span = {"since": BEFORE, "until": DAY}
    assert querier.sql(count, **span)["rows"].to_pylist() == [6]
    place.write(KEY, stored(place, rows(DAY, ["api", "docs", "zoo"]).slice(0, 2)))
    assert querier.sql(count, **span)["rows"].to_pylist() == [5]


def test_days_come_and_go(querier: ParquetAnalyticsQuerier, place: Place) -> None:
    after = DAY + datetime.timedelta(days=1)
    assert totals(querier, until=after) == {BEFORE: 10, DAY: 10}
    assert querier.coverage is not None
    assert querier.coverage.missing == (after,)
    place.write(key_of(after), stored(place, rows(after, ["docs", "docs", "zoo"]), key_of(after)))
    assert totals(querier, until=after) == {BEFORE: 10, DAY: 10, after: 20}
    assert querier.coverage.missing == ()
    place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{KEY}")
    assert totals(querier, until=after) == {BEFORE: 10, after: 20}
    assert querier.coverage.missing == (DAY,)


def test_a_day_that_is_gone_is_missing_also_where_nothing_had_to_be_read_of_it(
    querier: ParquetAnalyticsQuerier, place: Place
) -> None:
    assert totals(querier, "nobody") == {}
    place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{KEY}")
    assert totals(querier, "nobody") == {}
    assert querier.coverage is not None
    assert querier.coverage.missing == (DAY,)


def test_rows_that_nobody_has_read_yet_are_covered_as_they_are_stored(
    querier: ParquetAnalyticsQuerier, place: Place
) -> None:
    place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{key_of(BEFORE)}")
    table = querier.sql("SELECT path FROM pageviews LIMIT 1", since=BEFORE, until=DAY)
    assert table.num_rows == 1
    assert querier.coverage is not None
    assert querier.coverage.missing == (BEFORE,)


def test_a_project_that_was_erased_elsewhere_is_hidden_at_once(querier: ParquetAnalyticsQuerier, place: Place) -> None:
    other = Place(place.s3, place.bucket, f"{place.location}-other")
    exporter = other.exporter(rows(DAY, ["docs"] * 3))
    assert exporter.erase_project(100 + ord("d"), "docs") is True
    place.write(ERASED, other.read(ERASED))
    assert totals(querier) == {}
    assert querier.query_pageviews("docs", BEFORE, DAY).num_rows == 0
    assert querier.query_pageviews("zoo", BEFORE, DAY).num_rows == 2
    assert exporter.unerase_projects([100 + ord("d")]) == [100 + ord("d")]
    place.write(ERASED, other.read(ERASED))
    assert totals(querier) == {BEFORE: 10, DAY: 10}


def test_within_its_age_only_what_needs_no_data_is_believed(querier: ParquetAnalyticsQuerier, place: Place) -> None:
    believing = place.querier(max_age=3600)
    after = DAY + datetime.timedelta(days=1)
    assert totals(believing, until=after) == {BEFORE: 10, DAY: 10}
    place.write(key_of(after), stored(place, rows(after, ["docs", "docs", "zoo"]), key_of(after)))
    place.write(KEY, stored(place, rows(DAY, ["api", "docs", "zoo"], count=11)))
    assert totals(believing, since=DAY, until=after) == {DAY: 11}
    assert totals(querier, until=after) == {BEFORE: 10, DAY: 11, after: 20}

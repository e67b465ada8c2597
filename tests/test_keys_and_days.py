"""An object under another day's key is refused by key and day, by whoever reads it."""

from __future__ import annotations

import datetime
import io

import pyarrow.parquet as pq
import pytest
from parquet_analytics.exceptions import CorruptFile

from tests.archives import DAY, KEY, Place, saying, views

NEXT = DAY + datetime.timedelta(days=1)
NEXT_KEY = KEY.replace("07/01", "07/02").replace("07-01", "07-02")


@pytest.mark.parametrize("known", [False, True])
def test_a_copy_under_another_days_key_is_no_answer(place: Place, known: bool) -> None:
    exporter = place.exporter(views())
    exporter.export_daily_pageviews(DAY)
    querier = place.querier(max_age=0 if known else None)
    if known:
        place.exporter(views(date=[NEXT] * 3)).export_daily_pageviews(NEXT)
        assert querier.daily_totals("docs", DAY, NEXT).num_rows == 2
    place.write(NEXT_KEY, place.read(KEY))
    for ask in (
        lambda: querier.daily_totals("docs", DAY, NEXT),
        lambda: querier.query_pageviews("docs", NEXT, NEXT),
        lambda: querier.explain("docs", DAY, NEXT),
        lambda: querier.sql("SELECT count(*) FROM pageviews", since=NEXT, until=NEXT),
        lambda: exporter.verify(NEXT),
    ):
        with pytest.raises(CorruptFile, match=saying(NEXT_KEY, "2026-07-02", "2026-07-01")) as caught:
            ask()
        assert caught.value.key == NEXT_KEY
    assert querier.daily_totals("docs", DAY, DAY)["count"].to_pylist() == [14]


def test_what_the_rows_dates_are_counts_too(place: Place) -> None:
    place.exporter(views()).export_daily_pageviews(DAY)
    body = place.read(KEY)
    table = pq.read_table(io.BytesIO(body))
    about = {
        **(table.schema.metadata or {}),
        **pq.read_metadata(io.BytesIO(body)).metadata,
        b"parquet_analytics.day": b"2026-07-02",
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), sink)
    place.write(NEXT_KEY, sink.getvalue())
    with pytest.raises(CorruptFile, match=saying(NEXT_KEY, "rows of 2026-07-01")):
        place.querier().daily_totals("docs", NEXT, NEXT)


def test_a_projects_copy_of_the_same_day_is_that_day(place: Place) -> None:
    place.exporter(views()).export_daily_pageviews(DAY, per_project=True)
    place.write(KEY, place.read("analytics/pageviews/project/docs/2026/07/01/pageviews_2026-07-01.parquet"))
    assert place.querier().daily_totals("docs", DAY, DAY)["count"].to_pylist() == [14]

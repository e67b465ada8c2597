"""A file of one day under another day's key, copied there by hand or by a tool: no question is answered from it."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_analytics.exceptions import CorruptFile

from tests.archives import DAY, KEY, Place, execute, saying, views
from tests.test_export import ADD

NEXT = DAY + datetime.timedelta(days=1)
NEXT_KEY = KEY.replace("07/01", "07/02").replace("2026-07-01", "2026-07-02")
COPY = KEY.replace("pageviews/2026", "pageviews/project/docs/2026")

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "rows": lambda querier: querier.query_pageviews("docs", DAY, NEXT),
    "top pages": lambda querier: querier.top_pages("docs", DAY, NEXT),
    "daily totals": lambda querier: querier.daily_totals("docs", DAY, NEXT),
    "sql": lambda querier: querier.sql("SELECT count(*) FROM pageviews", since=DAY, until=NEXT),
    "a plan": lambda querier: querier.explain(since=DAY, until=NEXT),
}


def both_days(place: Place) -> None:
    exporter = place.exporter(lambda day: views(date=pa.array([day] * 3)))
    for day in (DAY, NEXT):
        exporter.export_daily_pageviews(day)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_file_of_another_day_is_refused_by_key_and_day(place: Place, name: str) -> None:
    both_days(place)
    querier = place.querier(max_age=0)
    QUESTIONS[name](querier)
    place.write(KEY, place.read(NEXT_KEY))
    with pytest.raises(CorruptFile, match=saying(KEY, "2026-07-02")) as caught:
        QUESTIONS[name](querier)
    assert (caught.value.key, caught.value.day, caught.value.retryable) == (KEY, DAY, False)
    with pytest.raises(CorruptFile, match=saying(KEY, "2026-07-02")):
        place.querier().top_pages("docs", DAY, DAY)
    # The days whose files are in their place are answered.
    assert querier.query_pageviews("docs", NEXT, NEXT).num_rows == 3


def rewritten(body: bytes, **options: Any) -> bytes:
    """The file of the next day, which says of itself that it is of the first one."""
    table = pq.read_table(io.BytesIO(body))
    said = pq.read_metadata(io.BytesIO(body)).metadata or {}
    about = {name: value for name, value in said.items() if name.startswith(b"parquet_analytics.")}
    about[b"parquet_analytics.day"] = str(DAY).encode()
    target = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), target, **options)
    return target.getvalue()


@pytest.mark.parametrize("name", QUESTIONS)
def test_rows_of_another_day_in_a_file_that_says_the_right_day_are_refused(place: Place, name: str) -> None:
    both_days(place)
    place.write(KEY, rewritten(place.read(NEXT_KEY)))
    with pytest.raises(CorruptFile, match=saying(KEY, "2026-07-02")) as caught:
        QUESTIONS[name](place.querier())
    assert (caught.value.key, caught.value.day) == (KEY, DAY)


def test_rows_of_another_day_are_never_handed_out_even_when_no_statistics_tell(place: Place) -> None:
    both_days(place)
    place.write(KEY, rewritten(place.read(NEXT_KEY), write_statistics=False))
    for name in ("rows", "daily totals"):
        with pytest.raises(CorruptFile, match=saying(KEY, "another day")):
            QUESTIONS[name](place.querier())


def test_a_copy_of_another_day_is_refused_and_one_of_the_same_day_is_fine(place: Place, database: str) -> None:
    execute(database, ADD)
    exporter = place.exporter(database)
    exporter.export_daily_pageviews(DAY, per_project=True)
    exporter.erase_project(4711, "docs")
    place.write(COPY, place.read(KEY))
    assert exporter.days_with_erased_copies([DAY], ["docs"]) == []
    place.exporter(lambda day: views(date=pa.array([day] * 3))).export_daily_pageviews(NEXT)
    place.write(COPY, place.read(NEXT_KEY))
    with pytest.raises(CorruptFile, match=saying(COPY, "2026-07-02")):
        exporter.days_with_erased_copies([DAY], ["docs"])

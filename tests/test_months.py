"""What is derived of months: the same answers as from the days, in fewer requests, whatever happens to either."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsQuerier, SampleData
from parquet_analytics.exceptions import CorruptFile, InvalidInput

from tests.archives import Place
from tests.services import S3
from tests.test_requests import CountingProxy

MANIFEST = "analytics/pageviews/_derived/manifest.json"
FIRST, LAST = datetime.date(2024, 1, 30), datetime.date(2024, 3, 2)
"""Thirty-three days with a leap day, and parts of two other months."""
MISSING = datetime.date(2024, 2, 11)
EMPTY = datetime.date(2024, 2, 12)
DAYS = [FIRST + datetime.timedelta(days=number) for number in range((LAST - FIRST).days + 1)]
SAMPLE = SampleData(rows_per_day=2_000, projects=30, weekly_rhythm=False, growth=0)


def key_of(day: datetime.date) -> str:
    return f"analytics/pageviews/{day:%Y/%m/%d}/pageviews_{day}.parquet"


def store(place: Place, days: list[datetime.date]) -> None:
    place.exporter(SAMPLE.day).export_daily_pageviews(days[0])
    for day in days[1:]:
        source: Any = SAMPLE.day if day != EMPTY else lambda _: pa.table(SAMPLE.day(FIRST)).slice(0, 0)
        place.exporter(source).export_daily_pageviews(day, allow_empty=True)


@pytest.fixture(scope="module")
def archive(s3: S3) -> Place:
    """Three months, compacted. Whoever changes something in it takes a copy."""
    place = Place(s3, s3.bucket, f"months-{uuid.uuid4()}")
    store(place, [day for day in DAYS if day != MISSING])
    done = place.exporter(None).compact()
    assert [(month["month"], month["outcome"], month["days"]) for month in done] == [
        ("2024-01", "created", 2),
        ("2024-02", "created", 28),
        ("2024-03", "created", 2),
    ]
    return place


@pytest.fixture
def own(archive: Place) -> Place:
    """A copy of the archive."""
    place = Place(archive.s3, archive.bucket, f"months-{uuid.uuid4()}")
    client = archive.s3.client()
    for key in [*archive.keys(), MANIFEST]:
        source = {"Bucket": archive.bucket, "Key": f"{archive.location}/{key}"}
        client.copy_object(Bucket=place.bucket, Key=f"{place.location}/{key}", CopySource=source)
    return place


def manifest(place: Place) -> dict[str, Any]:
    return json.loads(place.read(MANIFEST))


def rows_of(place: Place) -> pa.Table:
    """All rows that the days hold, as pyarrow reads them."""
    stored = place.keys()
    keys = [key for key in stored if "_derived" not in key and key.endswith(".parquet")]
    return pa.concat_tables(pq.read_table(pa.BufferReader(place.read(key))) for key in keys)


def expected(rows: pa.Table, sql: str) -> list[tuple[Any, ...]]:
    connection = duckdb.connect()
    connection.register("rows", rows)
    return connection.execute(sql).fetchall()


def listed(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*table.to_pydict().values(), strict=True))


def test_each_boundary_of_days_is_answered_as_by_another_reader(archive: Place) -> None:
    rows = rows_of(archive)
    slugs = SAMPLE.projects()["slug"].to_pylist()
    querier = archive.querier()
    spans = [
        (FIRST, LAST),
        (DAYS[1], DAYS[2]),
        (DAYS[2], datetime.date(2024, 2, 29)),
        (datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)),
        (datetime.date(2024, 2, 29), datetime.date(2024, 2, 29)),
        (MISSING, EMPTY),
        (MISSING, MISSING),
        (datetime.date(2024, 2, 10), datetime.date(2024, 2, 13)),
        (FIRST - datetime.timedelta(days=40), FIRST),
        (LAST, LAST + datetime.timedelta(days=3)),
    ]
    for number, (since, until) in enumerate(spans):
        for slug, status in ((slugs[0], 200), (slugs[number % len(slugs)], None), (slugs[-1], 404)):
            of = f"FROM rows WHERE project_slug = '{slug}' AND date BETWEEN '{since}' AND '{until}'"
            of += "" if status is None else f" AND status = {status}"
            for by in ("path", "full_path"):
                order = (
                    f"ORDER BY 2 DESC, encode({by}) NULLS FIRST"
                    if by == "full_path"
                    else "ORDER BY 2 DESC, encode(path)"
                )
                wanted = expected(rows, f"SELECT {by}, sum(view_count)::BIGINT {of} GROUP BY 1 {order}")
                asked = querier.top_pages(slug, since, until, status=status, limit=10_000, by=by)
                assert listed(asked) == wanted, (since, until, slug, status, by)
            wanted = expected(rows, f"SELECT path, sum(view_count)::BIGINT, version_slug {of} GROUP BY 1, 3")
            asked = querier.top_pages(slug, since, until, status=status, limit=10_000, per_version=True)
            assert sorted(listed(asked), key=str) == sorted(wanted, key=str)
            wanted = expected(rows, f"SELECT date, sum(view_count)::BIGINT {of} GROUP BY 1 ORDER BY 1")
            assert listed(querier.daily_totals(slug, since, until, status=status)) == wanted
        days = ParquetAnalyticsQuerier(archive.url, storage_options=archive.options(), months=False)
        assert (
            days.daily_totals(slugs[0], since, until).num_rows == querier.daily_totals(slugs[0], since, until).num_rows
        )
        assert days.coverage == querier.coverage
        assert (days.stats or {})["days_derived"] == 0


def test_a_project_is_found_by_id_and_its_versions_by_theirs(archive: Place) -> None:
    rows = rows_of(archive)
    querier = archive.querier()
    [project] = set(
        rows.filter(pc.equal(rows["project_slug"], SAMPLE.projects()["slug"][3].as_py()))["project_id"].to_pylist()
    )
    of = f"FROM rows WHERE project_id = {project} AND status = 200"
    wanted = expected(rows, f"SELECT date, sum(view_count)::BIGINT {of} GROUP BY 1 ORDER BY 1")
    assert listed(querier.daily_totals(None, FIRST, LAST, project_id=project, status=200)) == wanted
    assert (querier.stats or {})["days_derived"] == len(DAYS)
    [(version,)] = expected(rows, f"SELECT version_id {of} ORDER BY 1 NULLS FIRST LIMIT 1")
    of += f" AND version_id IS NOT DISTINCT FROM {version or 'NULL'}"
    wanted = expected(rows, f"SELECT path, sum(view_count)::BIGINT {of} GROUP BY 1")
    asked = querier.top_pages(None, FIRST, LAST, project_id=project, versions=[version], limit=10_000)
    assert sorted(listed(asked)) == sorted(wanted)


@pytest.fixture
def proxy(s3: S3) -> Iterator[CountingProxy]:
    proxy = CountingProxy(s3.endpoint_url)
    yield proxy
    proxy.close()


CHILD = """
import json, sys
from parquet_analytics import ParquetAnalyticsQuerier
given = json.loads(sys.argv[1])
querier = ParquetAnalyticsQuerier(given["url"], storage_options=given["options"])
said = []
for name, arguments in given["asks"]:
    getattr(querier, name)(**arguments)
    said.append(querier.stats)
print(json.dumps(said))
"""


def in_another_process(place: Place, proxy: CountingProxy, *asks: tuple[str, dict[str, Any]]) -> list[dict[str, int]]:
    options = place.options() | {"endpoint_url": proxy.endpoint_url}
    given = json.dumps({"url": place.url, "options": options, "asks": asks})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", CHILD, given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("rank", [0, 10, 29])
@pytest.mark.parametrize("name", ["top_pages", "daily_totals"])
def test_months_take_few_requests_in_one_wave_or_two(
    archive: Place, proxy: CountingProxy, name: str, rank: int
) -> None:
    asks = {"project": SAMPLE.projects()["slug"][rank].as_py(), "since": str(FIRST), "until": str(LAST)}
    cold, warm = in_another_process(archive, proxy, (name, asks), (name, asks | {"until": str(DAYS[-2])}))
    # The manifest, the list of erased projects, and of each month its index: then one piece of each.
    assert (cold["waves"], cold["requests"], cold["data_requests"], cold["index_requests"]) == (2, 8, 3, 3)
    # In one wave: a piece of each month, and whether manifest and list are still what they were.
    assert (warm["waves"], warm["requests"], warm["data_requests"]) == (1, 5, 3)
    assert (warm["manifest_requests"], warm["erasure_requests"]) == (1, 1)
    assert warm["days_derived"] == warm["objects"] == len(DAYS) - 1
    assert len(proxy.requests) == cold["requests"] + warm["requests"]
    assert proxy.received - 8_000 < cold["bytes"] + warm["bytes"] <= proxy.received


def totals(querier: ParquetAnalyticsQuerier, slug: str) -> dict[datetime.date, int]:
    table = querier.daily_totals(slug, FIRST, LAST, status=None)
    return dict(zip(table["date"].to_pylist(), table["count"].to_pylist(), strict=True))


def derived(querier: ParquetAnalyticsQuerier, slug: str) -> int:
    """The days that months' files answer for, by a question that was not asked before."""
    querier.top_pages(slug, FIRST, LAST, status=None, limit=next(LIMITS))
    return (querier.stats or {})["days_derived"]


LIMITS = itertools.count(1)


def stored_anew(place: Place, day: datetime.date, slug: str, count: int) -> None:
    """Another row for a project, by an exporter in another process that this one does not hear of."""
    code = """
import json, sys, datetime
import pyarrow as pa
from parquet_analytics import ParquetAnalyticsExporter, SampleData
given = json.loads(sys.argv[1])
day = datetime.date.fromisoformat(given["day"])
sample = SampleData(rows_per_day=2_000, projects=30, weekly_rhythm=False, growth=0)
table = pa.table(sample.day(day))
row = table.filter(pa.compute.equal(table["project_slug"], given["slug"])).slice(0, 1)
row = row.set_column(0, "id", pa.array([given["id"]], pa.int64()))
row = row.set_column(7, "view_count", pa.array([given["count"]], pa.int32()))
row = row.cast(table.schema)
exporter = ParquetAnalyticsExporter(given["url"], source=row, storage_options=given["options"])
print(exporter.export_daily_pageviews(day)["outcome"])
"""
    given = {
        "url": place.url,
        "options": place.options(),
        "day": str(day),
        "slug": slug,
        "count": count,
        "id": 10**9 + count,
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", "import pyarrow.compute\n" + code, json.dumps(given)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "merged\n", done.stderr


def test_what_another_process_writes_is_seen_at_once_and_compacted_later(own: Place) -> None:
    slug = SAMPLE.projects()["slug"][2].as_py()
    querier = own.querier(max_age=0)
    before = totals(querier, slug)
    assert derived(querier, slug) == len(DAYS)
    day = datetime.date(2024, 2, 20)
    stored_anew(own, day, slug, 1_000)
    assert totals(querier, slug) == before | {day: before[day] + 1_000}
    assert derived(querier, slug) == len(DAYS) - 1
    assert list(manifest(own)["changed"]) == [str(day)]
    done = {month["month"]: (month["outcome"], month["days_read"]) for month in own.exporter(None).compact()}
    assert done == {"2024-01": ("unchanged", 0), "2024-02": ("updated", 1), "2024-03": ("unchanged", 0)}
    assert totals(querier, slug) == before | {day: before[day] + 1_000}
    assert derived(querier, slug) == len(DAYS)
    assert manifest(own)["changed"] == {}
    # Only the months that are asked for.
    stored_anew(own, FIRST, slug, 1_001)
    assert [month["month"] for month in own.exporter(None).compact(since=LAST)] == ["2024-03"]
    assert list(manifest(own)["changed"]) == [str(FIRST)]
    assert [month["month"] for month in own.exporter(None).compact(until="2024-01-01")] == ["2024-01"]
    assert manifest(own)["changed"] == {}


def test_an_erased_project_is_hidden_at_once_and_gone_from_the_files_later(own: Place) -> None:
    project = SAMPLE.projects().slice(4, 1).to_pylist()[0]
    slug, other = project["slug"], SAMPLE.projects()["slug"][5].as_py()
    querier = own.querier(max_age=0)
    before, of_other = totals(querier, slug), totals(querier, other)
    assert before
    exporter = own.exporter(None)
    exporter.erase_project(project["id"], slug)
    assert totals(querier, slug) == {}
    assert totals(querier, other) == of_other
    assert derived(querier, slug) == len(DAYS)
    assert {month["outcome"] for month in exporter.compact()} == {"updated"}
    series = [slot["series"]["key"] for slot in manifest(own)["slots"].values()]
    for key in series:
        table = pq.read_table(pa.BufferReader(own.read(f"analytics/pageviews/_derived/{key}")))
        assert slug not in table["project_slug"].to_pylist()
        assert other in table["project_slug"].to_pylist()
    assert totals(querier, slug) == {}
    # The days have its rows still.
    exporter.unerase_projects([project["id"]])
    assert totals(querier, slug) == before
    assert {month["outcome"] for month in exporter.compact()} == {"created"}
    assert totals(querier, slug) == before
    assert derived(querier, slug) == len(DAYS)


@pytest.mark.parametrize("kind", ["series", "index"])
@pytest.mark.parametrize("damage", ["other bytes", "cut", "gone"])
def test_a_damaged_file_makes_no_answer_wrong_and_is_made_anew(
    own: Place, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    slug = SAMPLE.projects()["slug"][1].as_py()
    right = totals(own.querier(months=False), slug)
    names = manifest(own)["slots"]["2024-02"]
    keys = [f"analytics/pageviews/_derived/{names[kind]['key']}"]
    # The copy that those find who know no manifest.
    keys += ["analytics/pageviews/_derived/series/2024-02.index"] * (kind == "index")
    for key in keys:
        body = own.read(key)
        own.s3.client().delete_object(Bucket=own.bucket, Key=f"{own.location}/{key}")
        if damage != "gone":
            own.write(key, body[: len(body) // 2] if damage == "cut" else bytes(len(body)))
    querier = own.querier(max_age=0)
    with caplog.at_level(logging.WARNING, "parquet_analytics"):
        assert totals(querier, slug) == right
    assert derived(querier, slug) < len(DAYS)
    outcomes = {month["month"]: month["outcome"] for month in own.exporter(None).compact()}
    assert outcomes == {"2024-01": "unchanged", "2024-02": "created", "2024-03": "unchanged"}
    assert totals(querier, slug) == right
    assert derived(querier, slug) == len(DAYS)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"format":1,"slots":[]}', b'{"format":1,"changed":{"x":1}}', b"\xff" * 99]
)
def test_a_manifest_that_is_none_is_begun_anew(own: Place, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    slug = SAMPLE.projects()["slug"][1].as_py()
    right = totals(own.querier(), slug)
    own.write(MANIFEST, body)
    querier = own.querier(max_age=0)
    with caplog.at_level(logging.WARNING, "parquet_analytics"):
        assert totals(querier, slug) == right
        assert "manifest.json" in caplog.text
    stored_anew(own, FIRST, slug, 1_002)
    assert totals(querier, slug) == right | {FIRST: right[FIRST] + 1_002}
    own.write(MANIFEST, body)
    assert {month["outcome"] for month in own.exporter(None).compact()} == {"created"}
    assert totals(querier, slug) == right | {FIRST: right[FIRST] + 1_002}
    assert derived(querier, slug) == len(DAYS)


def test_a_manifest_of_a_later_version_is_left_alone(own: Place) -> None:
    slug = SAMPLE.projects()["slug"][1].as_py()
    right = totals(own.querier(), slug)
    own.write(MANIFEST, b'{"format":2,"months":{}}')
    assert totals(own.querier(), slug) == right
    for act in (own.exporter(None).compact, lambda: own.exporter(SAMPLE.day).export_daily_pageviews(MISSING)):
        with pytest.raises(Exception, match="upgrade parquet-analytics"):
            act()
    assert own.read(MANIFEST) == b'{"format":2,"months":{}}'
    stored = own.keys()
    assert key_of(MISSING) not in stored


def test_files_that_nobody_names_go_after_a_day(own: Place) -> None:
    folder = "analytics/pageviews/_derived/series/"
    own.write(f"{folder}2024-02_20240303T000000Z_0123456789ab.parquet", b"left behind by a compaction that was killed")
    own.write(f"{folder}2024-02_20240303T000000Z_0123456789ab.index", b"the same")
    own.write(f"{folder}2024-02_29990303T000000Z_0123456789ab.parquet", b"of one that is at work")
    own.write(f"{folder}notes.txt", b"somebody else's")
    before = set(own.keys())
    own.exporter(None).compact()
    left_behind = {key for key in before if "20240303" in key}
    assert set(own.keys()) == before - left_behind
    assert len(left_behind) == 2


def test_impossible_spans_are_refused(archive: Place) -> None:
    with pytest.raises(InvalidInput, match="lies after"):
        archive.exporter(None).compact("2024-03-01", "2024-02-01")
    with pytest.raises(InvalidInput, match="is not a day"):
        archive.exporter(None).compact("yesterday")


def test_the_present_day_is_not_compacted(place: Place) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    place.exporter(SAMPLE.day).export_daily_pageviews(today, allow_open_day=True)
    assert place.exporter(None).compact() == []


def test_progress_is_told(own: Place) -> None:
    told: list[tuple[int, int]] = []
    own.exporter(None).compact(progress=lambda done, of: told.append((done, of)))
    assert told
    assert all(0 <= done <= of <= 3 for done, of in told)

    def stop(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.exporter(None).compact(progress=stop)


def test_a_question_that_is_asked_again_takes_one_wave_without_data(own: Place, proxy: CountingProxy) -> None:
    slug = SAMPLE.projects()["slug"][3].as_py()
    querier = ParquetAnalyticsQuerier(
        own.url, storage_options=own.options() | {"endpoint_url": proxy.endpoint_url}, max_age=0
    )
    before = totals(querier, slug)
    received, asked = proxy.received, len(proxy.requests)
    assert totals(querier, slug) == before
    stats = querier.stats or {}
    assert (stats["waves"], stats["requests"], stats["data_requests"], stats["answers_remembered"]) == (1, 2, 0, 1)
    assert (stats["days_derived"], stats["bytes"]) == (len(DAYS), 0)
    assert len(proxy.requests) - asked == 2
    assert proxy.received - received < 2_000
    # By one that believes what was so a moment ago, without any.
    believing = ParquetAnalyticsQuerier(own.url, storage_options=own.options() | {"endpoint_url": proxy.endpoint_url})
    for _ in range(3):
        assert totals(believing, slug) == before
    assert (believing.stats or {})["requests"] == (believing.stats or {})["waves"] == 0
    # Unless this process has written something.
    own.exporter(None).erase_project(SAMPLE.projects()["id"][3].as_py(), slug)
    assert totals(believing, slug) == {}
    own.exporter(None).unerase_projects([SAMPLE.projects()["id"][3].as_py()])
    assert totals(believing, slug) == before


def test_a_question_imports_no_pandas(archive: Place) -> None:
    """Which takes ten times as long as the question."""
    code = """
import json, sys
from parquet_analytics import ParquetAnalyticsQuerier
given = json.loads(sys.argv[1])
querier = ParquetAnalyticsQuerier(given["url"], storage_options=given["options"])
querier.top_pages(*given["question"])
querier.query_pageviews(*given["question"])
print("pandas" in sys.modules)
"""
    question = [SAMPLE.projects()["slug"][1].as_py(), str(FIRST), str(LAST)]
    given = {"url": archive.url, "options": archive.options(), "question": question}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "False\n", done.stderr


def test_a_day_that_nobody_can_read_keeps_no_other_month_back(own: Place) -> None:
    slug = SAMPLE.projects()["slug"][2].as_py()
    stored_anew(own, LAST, slug, 1_003)
    own.write(key_of(DAYS[0]), b"PAR1 nothing PAR1")
    with pytest.raises(CorruptFile, match=str(DAYS[0])):
        own.exporter(None).compact()
    changed = manifest(own)["changed"]
    assert str(LAST) not in changed
    # As questions say, too.
    with pytest.raises(CorruptFile, match=str(DAYS[0])):
        own.querier(months=False).daily_totals(slug, FIRST, LAST)


def test_an_erasure_is_told_of_every_file_that_may_hold_rows(own: Place) -> None:
    project = SAMPLE.projects().slice(6, 1).to_pylist()[0]
    exporter = own.exporter(None)
    assert exporter.erased_rows()["months"] == {}
    exporter.erase_project(project["id"], project["slug"])
    months = {"2024-01": [project["id"]], "2024-02": [project["id"]], "2024-03": [project["id"]]}
    assert exporter.erased_rows()["months"] == months
    folder = "analytics/pageviews/_derived/series/"
    hint = own.read(f"{folder}2024-02.index")
    [month] = [month for month in exporter.compact(existing=True) if month["month"] == "2024-02"]
    assert month["outcome"] == "updated"
    assert exporter.erased_rows()["months"] == {}
    # The copy of an index that another compaction wrote last, and what one left behind that was killed.
    own.write(f"{folder}2024-02.index", hint)
    assert exporter.erased_rows()["months"] == {"2024-02": [project["id"]]}
    exporter.compact(existing=True)
    assert exporter.erased_rows()["months"] == {}
    left = "2024-02_20240303T000000Z_0123456789ab.parquet"
    own.write(f"{folder}{left}", b"")
    own.write(f"{folder}2023-01.index", hint)
    assert exporter.erased_rows()["months"] == {left: [], "2023-01.index": []}
    exporter.compact(existing=True)
    assert exporter.erased_rows()["months"] == {}

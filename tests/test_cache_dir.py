"""What processes of a host remember together: a new one asks like one that has asked before, and nothing in the folder
makes an answer wrong."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parquet_analytics import SampleData

from tests.archives import Place
from tests.services import S3
from tests.test_requests import CountingProxy, cold

FIRST, LAST = datetime.date(2024, 1, 30), datetime.date(2024, 3, 1)
DAYS = [FIRST + datetime.timedelta(days=number) for number in range((LAST - FIRST).days + 1)]
SAMPLE = SampleData(rows_per_day=500, projects=12, weekly_rhythm=False, growth=0)
SLUG = SAMPLE.projects()["slug"][2].as_py()
SPAN = {"since": str(FIRST), "until": str(LAST)}


def archive(s3: S3, *, compacted: bool) -> Place:
    place = Place(s3, s3.bucket, f"cache-{uuid.uuid4()}")
    for day in DAYS:
        place.exporter(SAMPLE.day).export_daily_pageviews(day)
    if compacted:
        place.exporter(None).compact()
    return place


@pytest.fixture(scope="module")
def months(s3: S3) -> Place:
    return archive(s3, compacted=True)


@pytest.fixture(scope="module")
def days(s3: S3) -> Place:
    return archive(s3, compacted=False)


@pytest.fixture
def proxy(s3: S3) -> Iterator[CountingProxy]:
    proxy = CountingProxy(s3.endpoint_url)
    yield proxy
    proxy.close()


def ask(place: Place, proxy: CountingProxy, folder: Path | None, name: str = "daily_totals") -> dict[str, int]:
    arguments: dict[str, Any] = {"args": [SLUG], **SPAN}
    # What others will find is written beside the answer.
    settings: dict[str, Any] = {} if folder is None else {"cache_dir": str(folder), "linger": 0.3}
    [said] = cold(place, proxy, (name, arguments), **settings)
    return said


def test_a_new_process_asks_like_one_that_has_asked_before(
    months: Place, days: Place, proxy: CountingProxy, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "here"
    for place, first, again in ((months, (2, 8), (1, 5)), (days, (2, 70), (1, 34))):
        said = [ask(place, proxy, folder) for _ in range(2)]
        assert [answer["rows"] for answer in said] == [said[0]["rows"]] * 2
        assert (said[0]["waves"], said[1]["waves"]) == (first[0], again[0])
        assert said[0]["requests"] <= first[1]
        assert said[1]["requests"] <= again[1]
        assert (said[1]["footer_requests"], said[1]["index_requests"]) == (0, 0)
    # Another question, of another kind.
    assert ask(months, proxy, folder, "top_pages")["waves"] == 1
    assert ask(days, proxy, folder, "query_pageviews")["waves"] == 1
    assert ask(months, proxy, None)["waves"] == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_what_has_changed_since_is_answered_as_it_is(s3: S3, proxy: CountingProxy, tmp_path: Path) -> None:
    place = archive(s3, compacted=True)
    before = ask(place, proxy, tmp_path)
    day = DAYS[10]
    place.exporter(
        SampleData(rows_per_day=900, projects=12, seed=7, weekly_rhythm=False, growth=0).day
    ).export_daily_pageviews(day, replace=True, discard_stored=True)
    after = ask(place, proxy, tmp_path)
    assert (before["days_derived"], after["days_derived"]) == (len(DAYS), len(DAYS) - 1)
    place.exporter(None).erase_project(SAMPLE.projects()["id"][2].as_py(), SLUG)
    assert ask(place, proxy, tmp_path)["rows"] == 0
    place.exporter(None).compact()
    assert ask(place, proxy, tmp_path)["rows"] == 0


@pytest.mark.parametrize("damage", ["gone", "cut", "other bytes", "of another", "folder gone", "a file", "not ours"])
def test_nothing_in_the_folder_makes_an_answer_wrong(
    months: Place, proxy: CountingProxy, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "cache"
    right = ask(months, proxy, folder)["rows"]
    entries = sorted(folder.iterdir())
    assert len(entries) >= 4
    for number, path in enumerate(entries):
        body = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(body[: len(body) * number // len(entries)])
        elif damage == "other bytes":
            path.write_bytes(body[:-9] + bytes(9))
        elif damage == "of another":
            path.write_bytes(entries[number - 1].read_bytes())
        elif damage == "not ours" and os.geteuid() == 0:
            os.chown(path, 12_345, 12_345)
    if damage in {"folder gone", "a file"}:
        shutil.rmtree(folder)
    if damage == "a file":
        folder.write_bytes(b"")
    said = ask(months, proxy, folder)
    assert said["rows"] == right
    assert said["waves"] == 2 or damage == "of another" or (damage == "not ours" and os.geteuid() != 0)
    # And it is put right, where that can be.
    if damage != "a file":
        assert ask(months, proxy, folder)["waves"] == 1


def test_a_folder_is_kept_within_bounds(days: Place, months: Place, proxy: CountingProxy, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"args": [SLUG], **SPAN}

    def used() -> int:
        return sum(path.stat().st_size for path in tmp_path.iterdir())

    cold(days, proxy, ("daily_totals", arguments), cache_dir=str(tmp_path), linger=0.5)
    before = used()
    somebody = tmp_path / "somebody.else"
    somebody.write_bytes(bytes(1_000))
    # Whoever writes the first of his looks whether there is too much.
    cold(months, proxy, ("daily_totals", arguments), cache_dir=str(tmp_path / "apart"), linger=0.5)
    apart = sum(path.stat().st_size for path in (tmp_path / "apart").iterdir())
    shutil.rmtree(tmp_path / "apart")
    cold(months, proxy, ("daily_totals", arguments), cache_dir=str(tmp_path), cache_bytes=before // 4, linger=0.5)
    assert used() <= before // 4 + apart + 1_000 < before
    assert somebody.exists()

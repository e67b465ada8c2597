"""The list of erased projects is as strict as a day's file: what was written is read back, and what is not as it was
written is damage, since a list that is read as a shorter one shows erased projects again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from parquet_analytics import ParquetAnalyticsExporter
from parquet_analytics.exceptions import (
    CommitStateUnknown,
    ConfigurationError,
    CorruptFile,
    PermissionDenied,
    VerificationFailed,
)

from tests.archives import DAY, Place, saying, views
from tests.torture.proxies import Request, Response, S3Proxy, forward

LIST = "analytics/pageviews/_erased/projects.json"
ONE = '{"project_id": 1, "slug": "a", "erased_at": "2026-01-01T00:00:00Z"}'


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ('{"format": 1, "projects": [' + ONE + '], "projects": []}', ["projects", "twice"]),
        ('{"format": 1, "projects": [' + ONE + '], "\\u0070rojects": []}', ["projects", "twice"]),
        ('{"format": 2, "projects": [], "format": 1}', ["format", "twice"]),
        ('{"format": 1, "projects": [{"project_id": 1, "project_id": 2}]}', ["project_id", "twice"]),
        ('{"format": 1, "projects": [], "owners": [{"database": "a/1", "database": "b/1"}]}', ["database", "twice"]),
        ('{"format": 1, "projects": [{"project_id": 1, "x": {"y": 1, "y": 2}}]}', ["y", "twice"]),
        ('{"format": 1, "projects": [{"project_id": 5}, {"project_id": 5}]}', ["project_id", "5", "twice"]),
        ('{"format": 1, "projects": [{"project_id": 2147483648}]}', ["project_id", "32-bit"]),
        ('{"format": 1, "projects": [{"project_id": -2147483649}]}', ["project_id", "32-bit"]),
        ('{"format": 1, "projects": [{"project_id": 1.0}]}', ["project_id", "1.0"]),
        ('{"format": 1, "projects": [{"project_id": "1"}]}', ["project_id", '"1"']),
        ('{"format": 1, "projects": [{"project_id": true}]}', ["project_id", "true"]),
        ('{"format": 1, "projects": [{"project_id": null}]}', ["project_id", "null"]),
        ('{"format": 1, "projects": [1]}', ["projects", "list of objects"]),
        ('{"format": 1, "projects": [{"project_id": 1, "slug": 5}]}', ["slug", "text"]),
        ('{"format": 1, "projects": [{"project_id": 1, "erased_at": 5}]}', ["erased_at", "text"]),
        ('{"format": 1, "projects": {"1": {}}}', ["projects", "list"]),
        ('{"format": "1", "projects": []}', ["format", "number"]),
        ('{"format": true, "projects": []}', ["format", "number"]),
        ('{"format": 1, "projects": [], "owners": {}}', ["owners", "list"]),
        ('{"format": 1, "projects": [], "owners": ["a"]}', ["owners", "objects"]),
        ('{"format": 1, "projects": [], "owners": [{}]}', ["owners", "database"]),
        ('{"format": 1, "projects": [], "owners": [{"database": 5}]}', ["owners: database", "text"]),
        ('{"format": 1, "projects": [], "owners": [{"database": "a", "timeline": -1}]}', ["owners: timeline"]),
        ('{"format": 1, "projects": [], "owners": [{"database": "a", "relation": 1e20}]}', ["owners: relation"]),
        ('{"format": 1, "projects": []} {}', ["no JSON"]),
        ("[]", ["no JSON object"]),
        ("null", ["no JSON object"]),
    ],
)
def test_what_is_not_as_it_was_written_is_damage_by_name(place: Place, body: str, parts: list[str]) -> None:
    place.exporter(views()).export_daily_pageviews(DAY)
    place.write(LIST, body.encode())
    for ask in (
        lambda: place.querier(max_age=0).daily_totals("docs", DAY, DAY),
        lambda: place.exporter(views()).export_daily_pageviews(DAY),
        lambda: place.exporter(views()).erase_project(2),
        lambda: place.exporter(views()).unerase_projects([2]),
        lambda: place.exporter(views()).erased_rows(),
    ):
        with pytest.raises(CorruptFile, match=saying(LIST, *parts)):
            ask()
    assert place.read(LIST) == body.encode()


def test_what_later_versions_add_is_kept(place: Place) -> None:
    body = '{"format": 1, "projects": [{"project_id": 1, "why": ["asked"]}], "later": {"a": [null, 1.5]}}'
    place.write(LIST, body.encode())
    place.exporter(views()).erase_project(2)
    told = json.loads(place.read(LIST))
    assert told["later"] == {"a": [None, 1.5]}
    assert told["projects"][0] == {"project_id": 1, "why": ["asked"]}
    assert [each["project_id"] for each in told["projects"]] == [1, 2]


@pytest.fixture
def proxy(place: Place) -> Iterator[S3Proxy]:
    proxy = S3Proxy(place.s3.endpoint_url)
    yield proxy
    proxy.close()


def behind(place: Place, proxy: S3Proxy) -> ParquetAnalyticsExporter:
    options = place.options(endpoint_url=proxy.url, max_retries="1")
    return ParquetAnalyticsExporter(place.url, source=views(), storage_options=options)


def of_list(request: Request, method: str) -> bool:
    return request.method == method and request.path.split("?")[0].endswith("projects.json")


def test_a_write_that_the_store_only_says_it_did_is_noticed(place: Place, proxy: S3Proxy) -> None:
    place.exporter(views()).erase_project(1)
    before = place.read(LIST)

    def swallowing(address: str, request: Request) -> Response:
        if of_list(request, "PUT"):
            return Response(200, [("ETag", '"00000000000000000000000000000000"'), ("Content-Length", "0")], b"")
        return forward(address, request)

    proxy.rewrite = swallowing
    with pytest.raises(CommitStateUnknown, match=saying(LIST, "read back")) as caught:
        behind(place, proxy).erase_project(2)
    assert caught.value.key == LIST
    assert caught.value.run_id
    assert place.read(LIST) == before
    with pytest.raises(CommitStateUnknown, match=saying(LIST, "read back")):
        behind(place, proxy).unerase_projects([1])


def test_a_first_list_that_is_not_there_afterwards_is_noticed(place: Place, proxy: S3Proxy) -> None:
    def swallowing(address: str, request: Request) -> Response:
        if of_list(request, "PUT"):
            return Response(200, [("ETag", '"00000000000000000000000000000000"'), ("Content-Length", "0")], b"")
        return forward(address, request)

    proxy.rewrite = swallowing
    with pytest.raises(CommitStateUnknown, match=saying(LIST, "not there")):
        behind(place, proxy).erase_project(2)


@pytest.mark.parametrize("lost", ["nothing", "etag", "run_id"])
def test_other_bytes_than_were_written_are_no_list(place: Place, proxy: S3Proxy, lost: str) -> None:
    """The version says that it is the one that was written: by its ETag, or by its run."""
    written: list[Any] = []

    def changing(address: str, request: Request) -> Response:
        answer = forward(address, request)
        if of_list(request, "PUT"):
            written.append(request)
        if of_list(request, "GET") and written:
            answer.body = answer.body.replace(b'"project_id":2', b'"project_id":3')
            kept = [(name, value) for name, value in answer.headers if lost not in name.lower()]
            assert len(kept) < len(answer.headers) or lost == "nothing"
            if lost == "etag":
                kept.append(("ETag", '"00000000000000000000000000000000"'))
            answer.headers = kept
        return answer

    proxy.rewrite = changing
    with pytest.raises(VerificationFailed, match=saying(LIST, "other bytes")):
        behind(place, proxy).erase_project(2)


def test_a_list_that_cannot_be_read_back_is_unknown(place: Place, proxy: S3Proxy) -> None:
    written: list[Any] = []

    def denying(address: str, request: Request) -> Response:
        if of_list(request, "PUT"):
            written.append(request)
        if of_list(request, "GET") and written:
            return Response.error(403, "AccessDenied")
        return forward(address, request)

    proxy.rewrite = denying
    with pytest.raises(CommitStateUnknown, match=saying(LIST, "s3:GetObject")):
        behind(place, proxy).erase_project(2)
    assert place.exporter(views()).erased_projects() == [2]


def test_a_list_is_never_longer_than_readers_take(place: Place) -> None:
    """To the byte, so that no list is written that nobody can read."""

    def padded(length: int) -> None:
        place.write(LIST, json.dumps({"format": 1, "projects": [], "later": "x" * length}).encode())

    exporter = place.exporter(views())
    padded(0)
    exporter.erase_project(2)
    longest = 2**24 - len(place.read(LIST))
    padded(longest)
    assert exporter.erase_project(2) is True
    assert len(place.read(LIST)) == 2**24
    assert exporter.erased_projects() == [2]
    padded(longest + 1)
    before = place.read(LIST)
    with pytest.raises(ConfigurationError, match=saying(LIST, "is full", "no backup can bring back")):
        exporter.erase_project(2)
    assert place.read(LIST) == before


def test_what_the_list_has_already_is_not_written_again(place: Place, proxy: S3Proxy) -> None:
    asked: list[str] = []

    def noting(address: str, request: Request) -> Response:
        asked.append(request.method)
        return forward(address, request)

    proxy.rewrite = noting
    exporter = behind(place, proxy)
    assert exporter.unerase_projects([2]) == []
    assert set(asked) == {"GET"}
    assert exporter.erase_project(2) is True
    assert asked.count("PUT") == 1
    assert exporter.erase_project(2) is False
    assert exporter.unerase_projects([3]) == []
    assert asked.count("PUT") == 1


def test_who_may_not_list_hears_which_right_is_missing(place: Place, proxy: S3Proxy) -> None:
    def denying(address: str, request: Request) -> Response:
        if "list-type" in request.path:
            return Response.error(403, "AccessDenied")
        return forward(address, request)

    proxy.rewrite = denying
    with pytest.raises(PermissionDenied, match=saying("s3:ListBucket", place.bucket)):
        behind(place, proxy).erase_project(2)
    # No question lists.
    place.exporter(views()).export_daily_pageviews(DAY)
    querier = place.querier()
    assert querier.daily_totals("docs", DAY, DAY, status=None).num_rows == 1


@pytest.mark.parametrize("where", ["s3", "folder", "memory"])
def test_every_store_lists_what_it_has(place: Place, tmp_path: Any, where: str) -> None:
    url = {"s3": place.url, "folder": f"file://{tmp_path}/a b", "memory": "memory://listing"}[where]
    options = place.options() if where == "s3" else None
    for prefix in ("analytics/pageviews", "", "x y/ü"):
        exporter = ParquetAnalyticsExporter(url, source=views(), storage_options=options, prefix=prefix)
        assert exporter.stored_days() == []
        exporter.export_daily_pageviews(DAY, per_project=True, per_organization={"org": ["docs"], "ö o": ["docs"]})
        exporter.erase_project(7, "docs")
        found = exporter.erased_rows()
        assert exporter.stored_days() == [DAY]
        assert [(file["project"], file["organization"]) for file in found["files"]] == sorted(
            [(None, None), (None, "org"), (None, "ö o"), ("docs", None)],
            key=lambda of: exporter.get_parquet_path(DAY, organization=of[1], project=of[0]),
        )
        assert {json.dumps(file["projects"]) for file in found["files"]} == {'{"7": ["docs"]}'}
        assert (found["unreadable"], found["every_copy"]) == ({}, True)
        exporter.erase_from_day(DAY, slugs=["docs"], per_organization={"org": [], "ö o": []})
        assert exporter.erased_rows()["files"] == []

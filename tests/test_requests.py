"""What a question costs: requests and bytes, counted by a proxy between a process of its own and the S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from parquet_analytics import SampleData

from tests.archives import DAY, KEY, Place
from tests.services import S3

ROWS, ROW_GROUP = 2_000_000, 10_000

CHILD = """
import json, sys, time
from parquet_analytics import ParquetAnalyticsQuerier
given = json.loads(sys.argv[1])
querier = ParquetAnalyticsQuerier(given["url"], storage_options=given["options"], **given.get("settings", {}))
said = []
for name, arguments in given["asks"]:
    answer = getattr(querier, name)(*arguments.pop("args", []), **arguments)
    said.append({"rows": answer.num_rows, **querier.stats})
time.sleep(given["linger"])
print(json.dumps(said))
"""


class CountingProxy:
    """Hands bytes on as they are, and takes note of the requests and of the bytes that come back."""

    def __init__(self, endpoint_url: str) -> None:
        target = urlsplit(endpoint_url)
        self._target = (target.hostname, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[tuple[str, str]] = []
        self.received = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def days(self) -> list[tuple[str, str]]:
        """The requests that are for days: not for the list of erased projects, nor for what is derived."""
        others = "/_erased/", "/_derived/"
        return [(method, target) for method, target in self.requests if not any(each in target for each in others)]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            requests = threading.Thread(target=self._requests, args=(client, server), daemon=True)
            requests.start()
            self._answers(server, client)
            requests.join()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        # Requests to read have no body, so that each ends with an empty line.
        pending = b""
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                pending += data
                while (end := pending.find(b"\r\n\r\n")) >= 0:
                    head, pending = pending[:end].decode(), pending[end + 4 :]
                    method, target, _ = head.split("\r\n")[0].split(" ")
                    with self._lock:
                        self.requests.append((method, target))
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                with self._lock:
                    self.received += len(data)
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def proxy(s3: S3) -> Iterator[CountingProxy]:
    proxy = CountingProxy(s3.endpoint_url)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def sample() -> SampleData:
    return SampleData(rows_per_day=ROWS, projects=5_000, weekly_rhythm=False, growth=0)


@pytest.fixture(scope="module")
def huge(s3: S3, sample: SampleData) -> tuple[Place, int]:
    """A day in 200 row groups, and its bytes."""
    place = Place(s3, s3.bucket, f"huge-{uuid.uuid4()}")
    result = place.exporter(sample.day, row_group_rows=ROW_GROUP).export_daily_pageviews(DAY)
    assert result["total_records"] == ROWS
    return place, result["bytes"]


def cold(
    place: Place, proxy: CountingProxy, *asks: tuple[str, dict[str, Any]], linger: float = 0, **settings: Any
) -> list[dict[str, int]]:
    """Asks in a process that remembers nothing, and goes on for a while after its answers."""
    options = place.options() | {"endpoint_url": proxy.endpoint_url}
    given = json.dumps({"url": place.url, "options": options, "asks": asks, "settings": settings, "linger": linger})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", CHILD, given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SPAN = {"since": DAY.isoformat(), "until": DAY.isoformat()}


@pytest.mark.parametrize("rank", [60, 500, 4_000])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("top_pages", {"status": 200}),
        ("top_pages", {"status": None, "per_version": True}),
        ("daily_totals", {"status": None}),
        ("query_pageviews", {}),
    ],
)
def test_one_project_of_a_large_day_takes_two_requests_and_little_of_its_bytes(
    name: str, arguments: dict[str, Any], rank: int, huge: tuple[Place, int], sample: SampleData, proxy: CountingProxy
) -> None:
    place, size = huge
    slug = sample.projects()["slug"][rank].as_py()
    [said] = cold(place, proxy, (name, {"args": [slug], **SPAN, **arguments}))
    assert said["rows"] > 0
    assert said["row_groups"] == ROWS // ROW_GROUP == 200
    assert len(proxy.days) <= 2
    # Beside them, once a minute and process: for the list of erased projects, and for what may be derived of the month.
    kinds = ("erasure", "manifest", "index") if name != "query_pageviews" else ("erasure",)
    assert all(said[f"{kind}_requests"] == 1 for kind in kinds)
    assert len(proxy.requests) == len(proxy.days) + len(kinds)
    assert proxy.received < 0.03 * size
    # The querier's own account agrees.
    assert said["requests"] == len(proxy.requests)
    assert proxy.received - 4_000 < said["bytes"] <= proxy.received
    assert {method for method, _ in proxy.requests} == {"GET"}
    assert all(urlsplit(target).path.endswith(KEY) for _, target in proxy.days)


@pytest.mark.parametrize(("slug", "requests"), [("no-such-project", 2), ("zzz-beyond-all", 1), ("000-before-all", 1)])
def test_a_project_that_is_not_there_takes_the_footer_and_perhaps_a_look_at_where_it_would_be(
    slug: str, requests: int, huge: tuple[Place, int], proxy: CountingProxy
) -> None:
    place, size = huge
    [said] = cold(place, proxy, ("top_pages", {"args": [slug], **SPAN}))
    assert said["rows"] == 0
    assert len(proxy.days) <= requests
    assert proxy.received < 0.03 * size


def test_a_footer_is_read_once(huge: tuple[Place, int], sample: SampleData, proxy: CountingProxy) -> None:
    place, _ = huge
    slugs = sample.projects()["slug"].to_pylist()[100:103]
    said = cold(place, proxy, *(("top_pages", {"args": [slug], **SPAN}) for slug in slugs))
    assert [answer["footer_requests"] for answer in said] == [1, 0, 0]
    assert [answer["erasure_requests"] for answer in said] == [1, 0, 0]
    assert [answer["manifest_requests"] for answer in said] == [1, 0, 0]
    assert len(proxy.requests) == sum(answer["requests"] for answer in said) == 7


def test_nothing_is_listed_and_every_day_is_asked_for_once(
    huge: tuple[Place, int], sample: SampleData, proxy: CountingProxy
) -> None:
    place, _ = huge
    slug = sample.projects()["slug"][200].as_py()
    span = {"since": "2026-06-15", "until": "2026-07-10"}
    [said] = cold(place, proxy, ("top_pages", {"args": [slug], **span}))
    assert (said["objects"], said["present"], said["absent"]) == (26, 1, 25)
    assert {method for method, _ in proxy.requests} == {"GET"}
    # A listing names the bucket and asks by its query string.
    assert all(re.fullmatch(r"/.*pageviews_\d{4}-\d\d-\d\d\.parquet", target) for _, target in proxy.days)
    # Of many days only a small end is read at first; the footer of 200 row groups takes a second read.
    # One for the list of erased projects, one for the manifest, and one for each month that may have something derived.
    assert len(proxy.requests) == said["requests"] <= 26 + 2 + 1 + 1 + 2
    assert said["waves"] <= 4

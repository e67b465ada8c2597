"""A Django storage object decides everything: what its own client has settled counts, whatever the environment says,
which says what is left open by a URL alone."""

from __future__ import annotations

import datetime
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.credentials import RefreshableCredentials
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier
from parquet_analytics.exceptions import ConfigurationError, ParquetAnalyticsError
from parquet_analytics.storage import resolve
from storages.backends.s3 import S3Storage

from tests import sites
from tests.archives import DAY, KEY, Place, saying, views
from tests.torture.proxies import S3Proxy

KEYS = {"access_key": "AKIAEXAMPLE", "secret_key": "hunter2"}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class Elsewhere:
    """Another server: remembers the first line of what it is sent, and hangs up."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self.asked.append(client.recv(4096).split(b"\r\n")[0].decode())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    server = Elsewhere()
    yield server
    server.close()


def storage_of(place: Place, **options: Any) -> S3Storage:
    return S3Storage(**sites.s3_entry(place)["OPTIONS"] | options)


def exported(storage: Any) -> None:
    ParquetAnalyticsExporter(storage, source=lambda day: views()).export_daily_pageviews(DAY)


# What the environment could say, after the storage has made its client.
LATER: dict[str, Callable[[str], dict[str, str]]] = {
    "an endpoint": lambda url: {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"},
    "an endpoint of S3": lambda url: {"AWS_ENDPOINT_URL_S3": url, "AWS_ALLOW_HTTP": "true"},
    "a region": lambda url: {"AWS_REGION": "eu-central-9", "AWS_DEFAULT_REGION": "eu-central-9"},
    "keys": lambda url: {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_SESSION_TOKEN": "z"},
    "half a key": lambda url: {"AWS_ACCESS_KEY_ID": "x"},
    "a profile": lambda url: {"AWS_PROFILE": "nobody"},
    "a proxy": lambda url: {"HTTP_PROXY": url, "http_proxy": url, "HTTPS_PROXY": url, "https_proxy": url},
    "a proxy for all": lambda url: {"ALL_PROXY": url, "all_proxy": url},
    "certificates": lambda url: {"AWS_CA_BUNDLE": "/there/is/none", "REQUESTS_CA_BUNDLE": "/there/is/none"},
}


@pytest.mark.parametrize("name", LATER)
def test_files_go_where_the_storages_own_client_sends_them(
    place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    storage = storage_of(place)
    assert storage.connection is not None
    with monkeypatch.context() as later:
        for variable, value in LATER[name](elsewhere.url).items():
            later.setenv(variable, value)
        exported(storage)
        answer = ParquetAnalyticsQuerier(storage).query_pageviews("docs", DAY, DAY)
    assert answer.num_rows == 3
    assert KEY in place.keys()  # noqa: SIM118 - a method of ours
    assert elsewhere.asked == []


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("given", [None, "https://s3.eu-west-1.amazonaws.com"])
def test_a_storage_of_the_provider_itself_stays_there(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, variable: str, given: str | None
) -> None:
    proxy = Elsewhere()
    options = {"bucket_name": "archive", "region_name": "eu-west-1", "proxies": {"https": proxy.url}}
    if given is None:
        # Then the client itself does not look at the variable.
        monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    monkeypatch.setenv(variable, elsewhere.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    storage = S3Storage(**options, endpoint_url=given, **KEYS)
    assert storage.connection.meta.client.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    with pytest.raises(ParquetAnalyticsError):
        exported(storage)
    proxy.close()
    assert elsewhere.asked == []
    assert set(proxy.asked) == {"CONNECT archive.s3.eu-west-1.amazonaws.com:443 HTTP/1.1"}


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_the_client_took_from_the_environment_stays_the_storages(
    place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, place.s3.endpoint_url)
    storage = storage_of(place, endpoint_url=None)
    assert storage.connection.meta.client.meta.endpoint_url == place.s3.endpoint_url
    monkeypatch.setenv(variable, elsewhere.url)
    exported(storage)
    assert KEY in place.keys()  # noqa: SIM118
    assert elsewhere.asked == []


def test_a_proxy_of_the_environment_counts_as_the_client_has_found_it(
    place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", elsewhere.url)
    monkeypatch.setenv("http_proxy", elsewhere.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    around, through = storage_of(place), storage_of(place)
    assert around.connection is not None
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    exported(around)
    assert elsewhere.asked == []
    assert through.connection is not None
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name)
    with pytest.raises(ParquetAnalyticsError):
        exported(through)
    assert elsewhere.asked
    assert place.s3.endpoint_url in elsewhere.asked[0]


def test_two_storages_of_the_same_options_keep_apart_what_the_environment_told_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    proxy = S3Proxy(place.s3.endpoint_url)
    pass_on = proxy.rewrite
    proxy.rewrite = lambda address, request: (seen.append(request.path), pass_on(address, request))[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.s3.endpoint_url)
    first = storage_of(place, endpoint_url=None)
    exported(first)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    second = storage_of(place, endpoint_url=None)
    exported(second)
    assert seen
    seen.clear()
    exported(first)
    proxy.close()
    assert seen == []


def test_a_storage_without_keys_does_not_find_any_behind_its_clients_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_of(place, access_key=None, secret_key=None)
    assert resolve(storage).credentials is None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.s3.admin.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.s3.admin.secret_access_key)
    with pytest.raises(ConfigurationError, match=saying("no credentials", "access_key", "session_profile")):
        exported(storage)
    assert place.keys() == []


def test_the_rights_of_two_roles_are_never_taken_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Role(S3Storage):
        def _create_session(self) -> boto3.Session:
            session = boto3.Session()
            until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
            keys = {"access_key": "a", "secret_key": "b", "token": "c", "expiry_time": until.isoformat()}
            session._session._credentials = RefreshableCredentials.create_from_metadata(
                keys, lambda: keys, method="assume-role-with-web-identity"
            )
            return session

    names = set()
    for _ in range(2):
        found = resolve(Role(bucket_name="b")).credentials
        assert found is not None
        names.add(found.id)
    assert len(names) == 2


def test_of_a_url_the_environment_says_what_is_left_open(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.s3.endpoint_url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.s3.admin.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.s3.admin.secret_access_key)
    exported(place.url)
    assert KEY in place.keys()  # noqa: SIM118

"""`STORAGES[...]` as sites configure it: temporary credentials, subclasses that change themselves, encryption."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from parquet_analytics.django.querier import PageViewsQuerier
from parquet_analytics.django.runs import exporter
from parquet_analytics.exceptions import ConfigurationError
from storages.backends.s3 import S3Storage

from tests import sites
from tests.sites import DAY, export
from tests.torture.proxies import Request, Response, S3Proxy, forward

LIFETIME = 3

ISSUER = f"""
import datetime, json, sys, time
with open(sys.argv[1], "a") as log:
    print(time.time(), file=log)
until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={LIFETIME})
keys = json.loads(open(sys.argv[2]).read())
print(json.dumps({{"Version": 1, "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"), **keys}}))
"""


class Relocated(S3Storage):
    """A site's own class: what it is constructed with is not what counts."""

    def __init__(self, **settings: Any) -> None:
        real = settings.pop("real")
        super().__init__(**settings)
        self.bucket_name, self.location = real["bucket"], real["location"]


class Encrypting(S3Storage):
    def get_object_parameters(self, name: str) -> dict[str, Any]:
        return super().get_object_parameters(name) | {"ServerSideEncryption": "AES256"}


@pytest.fixture(autouse=True)
def _rows(site_database: str) -> None:
    sites.few(DAY)


def test_credentials_that_expire_every_few_seconds_are_refreshed_by_the_sites_own_session(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, log, keys = tmp_path / "issue.py", tmp_path / "issued", tmp_path / "keys.json"
    script.write_text(ISSUER)
    who = place.s3.admin
    keys.write_text(json.dumps({"AccessKeyId": who.access_key_id, "SecretAccessKey": who.secret_access_key}))
    config = tmp_path / "config"
    config.write_text(f"[profile nightly]\ncredential_process = {sys.executable} {script} {log} {keys}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    entry = sites.s3_entry(place, session_profile="nightly", access_key=None, secret_key=None)
    with sites.archive(entry):
        began = time.time()
        who_exports, querier = exporter(), PageViewsQuerier(max_age=0)
        rounds = 0
        while time.time() - began < 3 * LIFETIME:
            assert who_exports.export_daily_pageviews(DAY)["total_records"] == 20
            assert querier.daily_totals("docs", DAY, DAY)["count"].to_pylist() == [190]
            rounds += 1
            time.sleep(0.2)
        issued = [float(line) for line in log.read_text().splitlines()]
        assert rounds > 5
        assert len([moment for moment in issued if moment > began + 1]) >= 2
        # Keys that are taken away are not used beyond their time.
        keys.write_text(json.dumps({"AccessKeyId": "gone", "SecretAccessKey": "gone"}))
        time.sleep(LIFETIME + 1)
        code, _, err = export("--date", str(DAY))
        assert code == 1
        assert who.secret_access_key not in err


def test_what_a_subclass_makes_of_itself_is_what_counts(place: Any) -> None:
    entry = sites.s3_entry(place)
    real = {"bucket": place.bucket, "location": place.location}
    entry["BACKEND"] = "tests.test_django_storage.Relocated"
    entry["OPTIONS"] |= {"bucket_name": "another", "location": "elsewhere", "real": real}
    with sites.archive(entry):
        assert export("--date", str(DAY))[0] == 0
        assert exporter().location == f"s3://{place.bucket}/{place.location}/analytics/pageviews"
    keys = place.keys()
    assert [key for key in keys if key.endswith(".parquet")]


def test_encryption_that_a_mixin_asks_for_goes_with_every_write(place: Any) -> None:
    seen: list[dict[str, str]] = []

    def look(address: str, request: Request) -> Response:
        if request.method == "PUT":
            seen.append({name.lower(): value for name, value in request.headers})
        return forward(address, request)

    with contextlib.closing(S3Proxy(place.s3.endpoint_url)) as proxy:
        proxy.rewrite = look
        entry = sites.s3_entry(place, proxy.url) | {"BACKEND": "tests.test_django_storage.Encrypting"}
        with sites.archive(entry):
            export("--date", str(DAY), "--per-project")
    assert len(seen) >= 2
    assert {headers.get("x-amz-server-side-encryption") for headers in seen} == {"AES256"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"object_parameters": {"StorageClass": "GLACIER"}}, "StorageClass"),
        ({"object_parameters": {"Tagging": "x=y"}}, "Tagging"),
        ({"default_acl": "public-read"}, "public-read"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(place: Any, options: dict[str, Any], named: str) -> None:
    with sites.archive(sites.s3_entry(place, **options)):
        code, out, err = export("--date", str(DAY))
        assert (code, out) == (1, "")
        assert named in err
        with pytest.raises(ConfigurationError, match=named):
            PageViewsQuerier()


def test_a_missing_bucket_is_named(place: Any) -> None:
    entry = sites.s3_entry(place)
    entry["OPTIONS"]["bucket_name"] = "there-is-none"
    with sites.archive(entry):
        code, _, err = export("--date", str(DAY))
    assert code == 1
    assert "there-is-none" in err


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    with sites.archive({"BACKEND": "no_such_storages.S3Storage"}):
        code, _, err = export("--date", str(DAY))
    assert code == 1
    assert "pip install 'parquet-analytics[s3]'" in err

"""What a Django storage object means as a store: real Django, django-storages and boto3, and a real S3 server."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import boto3
import botocore
import pytest
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from django.conf import settings

if not settings.configured:
    settings.configure()

from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, InMemoryStorage, default_storage, storages
from django.test import override_settings
from parquet_analytics.exceptions import ConfigurationError
from parquet_analytics.storage import resolve
from storages.backends.s3 import S3Storage

KEYS = {"access_key": "AKIAEXAMPLE", "secret_key": "hunter2"}


class Archive(S3Storage):
    """As sites write it: the place is fixed in the class."""

    bucket_name = "archive"
    location = "some/where/"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") or name == "REQUESTS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> dict[str, str]:
    text = os.environ.get("PARQUET_ANALYTICS_TEST_S3")
    if not text:
        pytest.skip("no S3 server: PARQUET_ANALYTICS_TEST_S3 is not set")
    return json.loads(text)


def test_a_url_stays_as_it_is() -> None:
    assert resolve("s3://bucket/x") == ("s3://bucket/x", {}, None)


def test_aws_itself_needs_no_endpoint() -> None:
    for region in ("us-east-1", "eu-west-1", "ap-southeast-3", "us-gov-west-1", "cn-north-1"):
        url, options, credentials = resolve(Archive(region_name=region, **KEYS))
        assert url == "s3://archive/some/where"
        assert options == {"region": region, "access_key_id": "AKIAEXAMPLE", "secret_access_key": "hunter2"}
        assert credentials is None


def test_without_a_region_it_is_us_east_1() -> None:
    assert resolve(Archive(**KEYS)).options["region"] == "us-east-1"


def test_options_of_the_storage_are_carried_over() -> None:
    storage = S3Storage(
        bucket_name="b",
        region_name="eu-west-1",
        endpoint_url="https://s3.example.com:8443",
        addressing_style="virtual",
        security_token="token",
        verify="/etc/ca.pem",
        proxies={"https": "http://proxy:3128"},
        object_parameters={
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": "key-1",
            "BucketKeyEnabled": True,
            "CacheControl": "max-age=60",
        },
        **KEYS,
    )
    url, options, _ = resolve(storage)
    assert url == "s3://b"
    assert options == {
        "region": "eu-west-1",
        "endpoint_url": "https://s3.example.com:8443",
        "addressing_style": "virtual",
        "access_key_id": "AKIAEXAMPLE",
        "secret_access_key": "hunter2",
        "session_token": "token",
        "ca_bundle": "/etc/ca.pem",
        "proxy_url": "http://proxy:3128",
        "server_side_encryption": "aws:kms",
        "kms_key_id": "key-1",
        "bucket_key": "true",
    }


def test_http_counts_as_asked_for_when_the_storage_says_so() -> None:
    for storage in (Archive(endpoint_url="http://127.0.0.1:9000", **KEYS), Archive(use_ssl=False, **KEYS)):
        options = resolve(storage).options
        assert options["endpoint_url"].startswith("http://")
        assert options["allow_http"] == "true"
    assert "allow_http" not in resolve(Archive(endpoint_url="https://127.0.0.1:9000", **KEYS)).options


def test_certificates_are_checked_unless_the_storage_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "verify" not in resolve(Archive(**KEYS)).options
    assert resolve(Archive(verify=False, **KEYS)).options["verify"] == "false"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/bundle.pem")
    assert resolve(Archive(**KEYS)).options["ca_bundle"] == "/etc/bundle.pem"


def test_a_profile_gives_its_keys_and_region(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile nightly]\nregion = eu-north-1\n")
    (tmp_path / "credentials").write_text("[nightly]\naws_access_key_id = AKIAP\naws_secret_access_key = s\n")
    options = resolve(Archive(session_profile="nightly")).options
    assert options == {"region": "eu-north-1", "access_key_id": "AKIAP", "secret_access_key": "s"}


def test_an_unsigned_storage_is_anonymous_and_one_without_keys_has_none() -> None:
    unsigned = Archive(client_config=Config(signature_version=botocore.UNSIGNED))
    assert resolve(unsigned).options["anonymous"] == "true"
    assert resolve(Archive()) == ("s3://archive/some/where", {"region": "us-east-1"}, None)


def test_keys_that_expire_are_handed_over_as_a_callback() -> None:
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    asked = []

    def refresh() -> dict[str, str]:
        asked.append(1)
        return {"access_key": "AKIA2", "secret_key": "hunter3", "token": "t", "expiry_time": expiry.isoformat()}

    class Role(Archive):
        def _create_session(self) -> boto3.Session:
            session = boto3.Session()
            session._session._credentials = RefreshableCredentials.create_from_metadata(
                refresh(), refresh, method="assume-role"
            )
            return session

    storage = Role()
    _, options, credentials = resolve(storage)
    assert options == {"region": "us-east-1"}
    assert credentials is not None
    assert credentials() == {
        "access_key_id": "AKIA2",
        "secret_access_key": "hunter3",
        "session_token": "t",
        "expires": pytest.approx(expiry.timestamp()),
    }
    assert len(asked) == 1, "asked before the keys expired"
    again = resolve(storage).credentials
    other = resolve(Role()).credentials
    assert again is not None
    assert other is not None
    assert credentials.id == again.id != other.id
    assert "hunter" not in repr(credentials) + credentials.id


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"object_parameters": {"StorageClass": "GLACIER"}}, "StorageClass"),
        ({"object_parameters": {"Tagging": "a=b"}}, "Tagging"),
        ({"default_acl": "public-read"}, "default_acl"),
        ({"bucket_name": ""}, "bucket_name"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(settings: dict, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        resolve(S3Storage(**{"bucket_name": "b"} | KEYS | settings))


def test_a_folder_becomes_a_file_url(tmp_path: Path) -> None:
    assert resolve(FileSystemStorage(location=tmp_path / "a b%")).url == f"file://{tmp_path}/a%20b%25"
    assert resolve(FileSystemStorage(location="relative")).url == (Path.cwd() / "relative").as_uri()


def test_djangos_lazy_default_storage_is_looked_through(tmp_path: Path) -> None:
    with override_settings(MEDIA_ROOT=str(tmp_path)):
        assert resolve(default_storage).url == tmp_path.as_uri()


def test_without_a_storage_djangos_settings_name_it(tmp_path: Path) -> None:
    entry = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {"bucket_name": "from-options", "location": "x", **KEYS},
    }
    default = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(tmp_path)}}
    with override_settings(STORAGES={"default": default, "archive": entry}):
        assert resolve().url == tmp_path.as_uri()
        assert resolve(storages["archive"]).url == "s3://from-options/x"
        with override_settings(PARQUET_ANALYTICS={"STORAGE": "archive"}):
            assert resolve().url == "s3://from-options/x"
        with (
            override_settings(PARQUET_ANALYTICS={"STORAGE": "archiv"}),
            pytest.raises(ConfigurationError, match="archiv"),
        ):
            resolve()


@pytest.mark.parametrize("storage", [InMemoryStorage(), object(), 7, b"s3://b", S3Storage, Path("/tmp"), ["s3://b"]])
def test_anything_else_is_refused_with_what_is_supported(storage: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(storage)
    text = str(caught.value)
    kind = storage if isinstance(storage, type) else type(storage)
    assert "as_uri()" in text if isinstance(storage, Path) else (kind.__name__ in text and "s3://bucket/prefix" in text)
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_no_secret_is_in_what_is_printed() -> None:
    resolved = resolve(Archive(security_token="hunter4", **KEYS))
    assert "hunter" not in repr(resolved)
    assert "AKIAEXAMPLE" not in repr(resolved)


def test_importing_it_needs_neither_django_nor_boto3() -> None:
    code = (
        "import sys, importlib.util as u\n"
        "import parquet_analytics.storage\n"
        "print([m for m in ('django', 'boto3', 'botocore', 'storages') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.s3
def test_an_object_saved_by_the_storage_is_where_the_url_says(server: dict[str, str]) -> None:
    location = f"storage-{uuid.uuid4()}/below"
    storage = S3Storage(
        bucket_name=server["bucket"],
        location=location,
        endpoint_url=server["endpoint_url"],
        region_name=server["region"],
        access_key=server["access_key_id"],
        secret_key=server["secret_access_key"],
    )
    storage.save("day.parquet", ContentFile(b"content"))
    url, options, _ = resolve(storage)
    assert url == f"s3://{server['bucket']}/{location}"
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        region_name=options["region"],
        aws_access_key_id=options["access_key_id"],
        aws_secret_access_key=options["secret_access_key"],
    )
    stored = client.get_object(Bucket=server["bucket"], Key=f"{location}/day.parquet")
    assert stored["Body"].read() == b"content"

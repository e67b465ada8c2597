"""From what a caller calls a storage (a URL, a Django storage object, nothing) to a URL and options of a store.

Needs neither Django nor boto3 itself: a Django storage object is recognized by its class, and an S3 storage is asked
for its own client, so that profiles, roles and configuration files mean here what they mean there. What the client has
settled when it was made counts, whatever the environment says since.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
import weakref
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from parquet_analytics.exceptions import ConfigurationError

__all__ = ["Resolved", "SessionCredentials", "resolve"]

_SUPPORTED = (
    "a URL (s3://bucket/prefix, file:///folder, memory://name; experimental: gs://bucket/prefix, "
    "az://container/prefix), a django-storages S3Storage, a Django FileSystemStorage, or None for the storage in "
    "Django's settings"
)
# Parameters of uploads that other readers of the bucket might care about, but nobody who reads page views.
_WITHOUT_EFFECT = {"CacheControl", "ContentDisposition", "ContentLanguage", "ContentType", "Expires"}
_OWN_ENDPOINT = re.compile(r"https://s3([.-][a-z]{2}(-[a-z]+)+-\d+)?\.amazonaws\.com(\.cn)?/?")
# These give every caller in the process the same rights, so that they are known by their name and what they go by.
_PROCESS_WIDE = {"iam-role", "container-role", "env", "assume-role-with-web-identity"}
_RIGHTS = ("AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")

_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class Resolved(NamedTuple):
    """Where a store is. ``credentials`` are access keys that change over time; fixed ones are among the options."""

    url: str
    options: dict[str, str]
    credentials: SessionCredentials | None = None

    def __repr__(self) -> str:
        return f"Resolved({self.url!r}, options={sorted(self.options)}, credentials={self.credentials!r})"


class SessionCredentials:
    """Access keys of a boto3 session that refreshes them. Calling it gives those of now, and may send a request."""

    def __init__(self, credentials: Any, identity: str) -> None:
        self._credentials = credentials
        self.id = identity
        """Equal for the same rights; holds no secret."""

    def __call__(self) -> dict[str, Any]:
        """``access_key_id``, ``secret_access_key``, ``session_token`` (or None), ``expires`` (Unix time, or None)."""
        frozen = self._credentials.get_frozen_credentials()
        # Botocore keeps the time of expiry to itself.
        expires = getattr(self._credentials, "_expiry_time", None)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "session_token": frozen.token or None,
            "expires": expires.timestamp() if expires is not None else None,
        }

    def __repr__(self) -> str:
        return f"SessionCredentials({self.id!r})"


def resolve(storage: Any = None) -> Resolved:
    """The URL and options of a storage: a URL, a Django storage object, or None for the one in Django's settings.

    Sends nothing to the store. Asking an S3 storage for its client may look for a role's keys, as its first use does.

    :raises ConfigurationError: for anything else, and for settings of a storage that cannot be honoured.
    """
    if storage is None:
        storage = _default_storage()
    if isinstance(storage, str):
        return Resolved(storage, {})
    if isinstance(storage, PurePath):
        raise ConfigurationError("a storage is not a path; pass the folder's URL, which is path.absolute().as_uri()")
    storage = _unwrapped(storage)
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(storage).__mro__}
    if names & {"storages.S3Storage", "storages.S3Boto3Storage"}:
        return _s3(storage)
    if "django.FileSystemStorage" in names:
        return Resolved(Path(storage.location).absolute().as_uri(), {})
    kind = storage if isinstance(storage, type) else type(storage)
    hint = "; pass an instance of this class" if kind is storage else ""
    raise ConfigurationError(
        f"{kind.__module__}.{kind.__qualname__} is not supported as a storage{hint}; supported are {_SUPPORTED}"
    )


def _unwrapped(storage: Any) -> Any:
    """The object behind Django's lazy ``default_storage``."""
    while any(
        kind.__name__ == "LazyObject" and kind.__module__.startswith("django.") for kind in type(storage).__mro__
    ):
        _ = storage.__class__  # Django makes the object behind it when an attribute is first asked for.
        storage = storage._wrapped
    return storage


def _default_storage() -> Any:
    try:
        from django.conf import settings
    except ImportError:
        raise ConfigurationError(f"no storage was given, and Django is not installed; pass {_SUPPORTED}") from None
    if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        raise ConfigurationError(f"no storage was given, and Django has no settings here; pass {_SUPPORTED}")
    from parquet_analytics.django.storage import configured_storage

    return configured_storage()


def _s3(storage: Any) -> Resolved:
    name = type(storage).__qualname__
    bucket = getattr(storage, "bucket_name", None)
    if not bucket:
        raise ConfigurationError(f"{name} has no bucket_name; set it in STORAGES OPTIONS or as AWS_STORAGE_BUCKET_NAME")
    client = storage.connection.meta.client
    location = str(storage.location or "").strip("/")
    options = _endpoint(client) | _transport(client) | _uploads(storage, name)
    keys, credentials = _credentials(storage, client)
    return Resolved(f"s3://{bucket}/{location}".rstrip("/"), options | keys, credentials)


def _endpoint(client: Any) -> dict[str, str]:
    region = client.meta.region_name
    options = {"region": region if region and region != "aws-global" else "us-east-1"}
    endpoint = client.meta.endpoint_url
    if endpoint and not _OWN_ENDPOINT.fullmatch(endpoint):
        options["endpoint_url"] = endpoint
        if endpoint.startswith("http://"):
            # Asked for in the storage's own settings, by endpoint_url or use_ssl.
            options["allow_http"] = "true"
    style = (client.meta.config.s3 or {}).get("addressing_style")
    if style in {"path", "virtual"}:
        options["addressing_style"] = style
    return options


def _transport(client: Any) -> dict[str, str]:
    """The client's certificates and proxy: the storage's, or those that it took from the environment for itself."""
    options = {}
    session = client._endpoint.http_session
    if session._verify is False:
        options["verify"] = "false"
    elif isinstance(session._verify, (str, os.PathLike)):
        options["ca_bundle"] = os.fspath(session._verify)
    proxy = session._proxy_config.proxy_url_for(client.meta.endpoint_url)
    if proxy:
        options["proxy_url"] = proxy
    return options


def _uploads(storage: Any, name: str) -> dict[str, str]:
    """What the storage wants of uploads: honoured, without meaning here, or refused."""
    acl = getattr(storage, "default_acl", None)
    if acl not in {None, "", "private"}:
        raise ConfigurationError(
            f"{name} has default_acl {acl!r}, and page views are written without an ACL; "
            "give them a storage of their own"
        )
    parameters = dict(storage.get_object_parameters("pageviews.parquet"))
    options = {}
    for parameter, option in (
        ("ServerSideEncryption", "server_side_encryption"),
        ("SSEKMSKeyId", "kms_key_id"),
        ("BucketKeyEnabled", "bucket_key"),
    ):
        value = parameters.pop(parameter, None)
        if value is not None:
            options[option] = _text(value)
    if parameters.get("StorageClass") == "STANDARD":
        del parameters["StorageClass"]
    if parameters.get("ACL") == "private":
        del parameters["ACL"]
    refused = sorted(parameters.keys() - _WITHOUT_EFFECT)
    if refused:
        raise ConfigurationError(
            f"{name} has object_parameters that are not supported: {', '.join(refused)}; give page views a storage of "
            "their own, with ServerSideEncryption, SSEKMSKeyId and BucketKeyEnabled where needed"
        )
    return options


def _credentials(storage: Any, client: Any) -> tuple[dict[str, str], SessionCredentials | None]:
    signature = client.meta.config.signature_version
    if signature is not None and not isinstance(signature, str):
        return {"anonymous": "true"}, None  # botocore.UNSIGNED
    credentials = client._request_signer._credentials
    if credentials is None:
        return {}, None  # A request is an error that says how to give some.
    if hasattr(credentials, "refresh_needed"):
        return {}, SessionCredentials(credentials, _identity(storage, credentials))
    frozen = credentials.get_frozen_credentials()
    keys = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key}
    if frozen.token:
        keys["session_token"] = frozen.token
    return keys, None


def _identity(storage: Any, credentials: Any) -> str:
    method = str(getattr(credentials, "method", None) or "session")
    whose = str(uuid.uuid4())  # Whose rights these are cannot be told from outside, so they are this object's.
    made = getattr(type(storage), "_create_session", None)
    by_itself = str(getattr(made, "__module__", "")).startswith("storages.")
    if method in _PROCESS_WIDE and by_itself and not getattr(storage, "session_profile", None):
        about = "\0".join(os.environ.get(name, "") for name in _RIGHTS)
        whose = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:16]
    return _names.setdefault(storage, f"{method}-{whose}")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

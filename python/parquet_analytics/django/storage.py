"""The storage that Django's settings name: ``STORAGES[PARQUET_ANALYTICS["STORAGE"]]``."""

from __future__ import annotations

from typing import Any

from parquet_analytics.django.conf import settings
from parquet_analytics.exceptions import ConfigurationError

__all__ = ["configured_storage"]


def configured_storage() -> Any:
    """The storage object, made as the site's settings, subclasses and mixins make it.

    :raises ConfigurationError: when STORAGES has no such alias, or its class or what that needs is missing.
    """
    from django.core.exceptions import ImproperlyConfigured
    from django.core.files.storage import InvalidStorageError, storages

    alias = settings.STORAGE
    try:
        return storages[alias]
    except (InvalidStorageError, ImproperlyConfigured, ImportError) as error:
        hint = ""
        if "No module named" in str(error) or "boto3" in str(error):
            hint = "; S3 needs django-storages and boto3: pip install 'parquet-analytics[s3]'"
        raise ConfigurationError(f"Django's STORAGES has no usable storage {alias!r}: {error}{hint}") from error

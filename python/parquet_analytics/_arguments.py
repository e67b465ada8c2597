"""Turns what callers pass into what the native module takes, or says what is wrong with it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parquet_analytics import _native
from parquet_analytics.exceptions import ConfigurationError, InvalidInput
from parquet_analytics.storage import resolve

Date = datetime.date | str
"""A calendar day in UTC: a ``date``, or text as ``YYYY-MM-DD``."""


# The native module's, which it enforces too: a hundred years. A mistyped year should not cost a million dates on the
# way there, and as many requests.
_MOST_DAYS = 36_600


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def day_text(value: Date, name: str) -> str:
    """The day as ``YYYY-MM-DD``."""
    if isinstance(value, datetime.datetime) or not isinstance(value, (datetime.date, str)):
        raise InvalidInput(f"{name} is {value!r:.80}; pass a datetime.date or text such as '2026-07-01'")
    return _native.check_day(value if isinstance(value, str) else value.isoformat())


def span(since: Date | None, until: Date | None) -> tuple[str, str]:
    """First and last day of a question: by default 30 days ago until today."""
    last = day_text(today() if until is None else until, "until")
    first = day_text(today() - datetime.timedelta(days=30) if since is None else since, "since")
    if first > last:
        raise InvalidInput(f"since ({first}) lies after until ({last})")
    number = (datetime.date.fromisoformat(last) - datetime.date.fromisoformat(first)).days + 1
    if number > _MOST_DAYS:
        raise InvalidInput(
            f"{first} to {last} are {number} days, and each may take a request to the store; is the year right? A "
            f"question may span {_MOST_DAYS} days"
        )
    return first, last


def count(value: object, name: str) -> int:
    """A number that may not be negative."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"{name} is {value!r:.80}; pass a whole number")
    if not 0 <= value < 2**63:
        raise InvalidInput(f"{name} is {value}; it has to be between 0 and {2**63 - 1}")
    return value


def status_code(value: object, name: str = "status") -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 32767:
        raise InvalidInput(f"{name} is {value!r:.80}; pass an HTTP status such as 200 or 404, or None for all")
    return value


def project(slug: object, project_id: object, *, required: bool = True) -> tuple[str | None, int | None]:
    """The project that a question is about, by slug, id or both."""
    if slug is not None and not isinstance(slug, str):
        raise InvalidInput(f"the project is {slug!r:.80}; pass its slug as text")
    if slug is not None:
        _native.check_slug(slug)
    if project_id is not None and (
        isinstance(project_id, bool) or not isinstance(project_id, int) or not -(2**31) <= project_id < 2**31
    ):
        raise InvalidInput(f"project_id is {project_id!r:.80}; pass a 32-bit whole number")
    if required and slug is None and project_id is None:
        raise InvalidInput("name the project by slug, project_id or both")
    return slug, project_id


def projects(values: Iterable[str] | None) -> list[str] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise InvalidInput(f"projects is {values!r:.80}; pass a list of slugs")
    slugs = list(values)
    for slug in slugs:
        if not isinstance(slug, str):
            raise InvalidInput(f"projects holds {slug!r:.80}; pass slugs as text")
        _native.check_slug(slug)
    return slugs


def versions(values: Iterable[int | None] | None) -> tuple[int | None, ...] | None:
    """Versions by id; ``None`` among them stands for pages outside of versions."""
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidInput(f"versions is {values!r:.80}; pass a list of version ids")
    numbers = tuple(values)
    for number in numbers:
        if number is not None and (
            isinstance(number, bool) or not isinstance(number, int) or not -(2**31) <= number < 2**31
        ):
            raise InvalidInput(f"versions holds {number!r:.80}; pass ids as 32-bit whole numbers, or None")
    return numbers


def open_store(storage: Any, options: Mapping[str, str] | None) -> _native.Store:
    """The store behind a URL with options, or behind a Django storage object, which decides everything: for a URL the
    environment says what is left open."""
    if options is not None and not isinstance(storage, str):
        raise ConfigurationError("storage_options belong to a URL; a storage object brings its own settings")
    url, settings, credentials = resolve(storage)
    environment = isinstance(storage, str)
    return _native.Store(url, {**settings, **(options or {})}, credentials, environment=environment)


_SOURCES = (
    "a PostgreSQL URL, an object with __arrow_c_stream__ (pyarrow, polars, DuckDB, pandas 3), a callable that takes "
    "the day and returns one, or a Django model or queryset"
)


def source_of(source: Any, day: str | None = None) -> Callable[[datetime.date], Any] | _native.PostgresSource:
    """A PostgreSQL source, or a callable that gives an Arrow stream for a day. ``day`` is the one that will be asked
    for, where that is known: what only the calling thread can see is read here."""
    if isinstance(source, _native.PostgresSource):
        return source
    if isinstance(source, str):
        if not source.strip():
            # To libpq this is the local server; here it is a variable that nobody set.
            raise ConfigurationError("the source is empty text; pass a PostgreSQL URL or key/value string")
        return _native.PostgresSource(source)
    if source is None or hasattr(source, "_meta") or (hasattr(source, "query") and hasattr(source, "model")):
        return _of_django(source, None if day is None else datetime.date.fromisoformat(day))
    if hasattr(source, "__arrow_c_stream__"):
        return lambda _day: source
    if callable(source):
        if hasattr(source, "alias") and hasattr(source, "mapping"):
            return _of_django(source, None if day is None else datetime.date.fromisoformat(day))
        return source
    raise ConfigurationError(f"an object of type {type(source).__name__} is no source of page views; pass {_SOURCES}")


def _of_django(source: Any, day: datetime.date | None) -> Callable[[datetime.date], Any] | _native.PostgresSource:
    try:
        from parquet_analytics.django.source import ModelSource, configured_source, source_for_caller
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != "django":
            raise
        raise ConfigurationError(
            "no source was given, and Django is not installed (pip install 'parquet-analytics[django]'); "
            f"pass {_SOURCES}"
        ) from None
    if source is None:
        return configured_source(day)
    return source_for_caller(source if isinstance(source, ModelSource) else ModelSource(source), day)


def settings_prefix(storage: Any) -> str:
    """The prefix where none was given: Django's PREFIX for Django's storage, else the default."""
    if storage is None:
        from parquet_analytics.django.conf import settings

        return str(settings.PREFIX)
    return "analytics/pageviews"

"""The settings: one dict ``PARQUET_ANALYTICS``, read anew at each access, so that ``override_settings`` works.

``settings.HOT_DAYS`` and so on are checked values; one that cannot be used is a :class:`ConfigurationError` here, and
an error of ``manage.py check`` before (``problems``).
"""

from __future__ import annotations

import difflib
import os
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.conf import settings as django_settings

from parquet_analytics.exceptions import ConfigurationError

__all__ = ["KEYS", "NAME", "Key", "Problem", "settings"]

NAME = "PARQUET_ANALYTICS"


class Problem(NamedTuple):
    key: str | None
    message: str
    hint: str


@dataclass(frozen=True)
class Key:
    """A key of the dict: its default, what it may hold, and an older setting that is its default when there is one."""

    default: Any
    accepts: Callable[[Any], bool]
    expected: str
    fallback: str | None = None


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _optional_text(value: Any) -> bool:
    return value is None or _text(value)


def _optional_path(value: Any) -> bool:
    return _optional_text(value) or isinstance(value, os.PathLike)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _at_least(least: float, kinds: type | tuple[type, ...] = int) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        number: Any = value
        return bool(least <= number < 1_000_000)

    return fits


def _optional_number(value: Any) -> bool:
    return value is None or (_at_least(0, (int, float))(value) and value > 0)


def _fields(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(column, str) and _optional_text(lookup) for column, lookup in value.items()
    )


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(map(_text, value))


def _zone(value: Any) -> bool:
    if not _text(value):
        return False
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


_ALIAS = "the alias of a database in DATABASES, or None for what the routers say"

KEYS: Mapping[str, Key] = {
    "MODEL": Key("analytics.PageView", _text, "the page views' model as 'app_label.Model'"),
    "FIELDS": Key({}, _fields, "a dict from column to lookup (or None for an optional column that the model lacks)"),
    "STORAGE": Key("default", _text, "an alias in STORAGES"),
    "PREFIX": Key("analytics/pageviews", lambda value: isinstance(value, str), "a folder below the storage's location"),
    "READ_DATABASE": Key(None, _optional_text, _ALIAS),
    "WRITE_DATABASE": Key(None, _optional_text, _ALIAS),
    "DATABASE_ID": Key(
        None,
        _optional_text,
        "a name for the database cluster where it does not say which it is, or None",
    ),
    "DAY_TIME_ZONE": Key("UTC", _zone, "the name of the time zone whose days the model's DateField holds"),
    "HOT_DAYS": Key(90, _at_least(1), "days, at least 1", "RTD_ANALYTICS_DEFAULT_RETENTION_DAYS"),
    "LOOKBACK_DAYS": Key(7, _at_least(1), "days, at least 1"),
    "GRACE_MINUTES": Key(15, _at_least(0, (int, float)), "minutes, at least 0"),
    "QUEUE": Key(None, _optional_text, "the name of a Celery queue, or None for the site's default"),
    "PER_PROJECT": Key(False, _flag, "True or False", "RTD_PARQUET_EXPORT_PER_PROJECT"),
    "PER_ORGANIZATION": Key(False, _flag, "True or False"),
    "COMPACT": Key(True, _flag, "True or False"),
    "CACHE_DIR": Key(None, _optional_path, "a folder of this host, or None"),
    "ALLOW_LOCAL_DELETE": Key(False, _flag, "True or False"),
    "DELETE_CASCADES": Key(False, _flag, "True or False"),
    "DELETE_COLUMNS": Key((), _names, "a list of columns of the page views' table that no file holds"),
    "DELETE_ROWS_PER_SECOND": Key(None, _optional_number, "rows a second, more than 0, or None for no limit"),
    "DELETE_MAX_REPLICA_LAG": Key(None, _optional_number, "seconds, more than 0, or None not to look"),
    "SHADOW": Key(False, _flag, "True or False"),
}


class Settings:
    """The keys of ``PARQUET_ANALYTICS`` as attributes, with their defaults."""

    def __getattr__(self, name: str) -> Any:
        if name not in KEYS:
            raise AttributeError(f"{NAME} has no key {name!r}")
        value = self._value(name)
        if not KEYS[name].accepts(value):
            raise ConfigurationError(_unfit(name, value))
        return value

    def given(self, name: str) -> bool:
        """Whether the site says something about a key, here or by its older name."""
        fallback = KEYS[name].fallback
        return name in _given() or (fallback is not None and hasattr(django_settings, fallback))

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the dict as such: keys and values, not what they refer to."""
        given = getattr(django_settings, NAME, {})
        if not isinstance(given, Mapping):
            yield Problem(None, f"{NAME} is a {type(given).__name__}.", "Make it a dict.")
            return
        for name in given:
            if name not in KEYS:
                close = difflib.get_close_matches(str(name).upper(), KEYS, n=1)
                known = f"Did you mean {close[0]!r}?" if close else f"The keys are {', '.join(KEYS)}."
                yield Problem(str(name), f"{NAME} has a key {name!r}, which means nothing.", known)
        for name, key in KEYS.items():
            value = self._value(name)
            if not key.accepts(value):
                yield Problem(name, _unfit(name, value) + ".", f"It has to be {key.expected}.")

    def _value(self, name: str) -> Any:
        key, given = KEYS[name], _given()
        if name in given:
            return given[name]
        if key.fallback is not None:
            return getattr(django_settings, key.fallback, key.default)
        return key.default


def _given() -> Mapping[str, Any]:
    given = getattr(django_settings, NAME, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"the setting {NAME} is a {type(given).__name__}; make it a dict")
    return given


def _unfit(name: str, value: Any) -> str:
    key = KEYS[name]
    where = f"{NAME}[{name!r}]"
    if name not in _given() and key.fallback is not None and hasattr(django_settings, key.fallback):
        where = key.fallback
    return f"{where} is {value!r:.80}; it has to be {key.expected}"


settings = Settings()

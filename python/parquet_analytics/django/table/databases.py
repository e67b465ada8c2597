"""The databases that page views are in: which of the site's they are, and how Django's own connection to PostgreSQL
becomes a connection string, so that custom backends, token logins and service files mean here what they mean there.
Never logged: it holds the password."""

from __future__ import annotations

from typing import Any

from parquet_analytics.django.conf import settings
from parquet_analytics.django.table.mapping import PageViewMapping
from parquet_analytics.exceptions import ConfigurationError

__all__ = ["connection_string", "read_alias", "write_alias"]

# What Django or its driver take for themselves, or what only tells the driver how to wait on an idle connection.
_OF_THE_DRIVER = frozenset(
    {
        "autocommit",
        "client_encoding",
        "connection_factory",
        "context",
        "cursor_factory",
        "isolation_level",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "prepare_threshold",
        "row_factory",
        "server_side_binding",
        "tcp_user_timeout",
    }
)

# Resolved by libpq itself when it connects.
_OF_LIBPQ = ("service", "passfile")

_RESOLVED = ("host", "hostaddr", "port", "dbname", "user")


def read_alias(mapping: PageViewMapping) -> str:
    """The database that page views are read from: READ_DATABASE, or what the routers say."""
    return _alias("READ_DATABASE", mapping)


def write_alias(mapping: PageViewMapping) -> str:
    """The database that page views are deleted from and restored to: WRITE_DATABASE, or what the routers say."""
    return _alias("WRITE_DATABASE", mapping)


def _alias(key: str, mapping: PageViewMapping) -> str:
    from django.db import connections, router

    given = getattr(settings, key)
    if given is None:
        choose = router.db_for_read if key == "READ_DATABASE" else router.db_for_write
        return str(choose(mapping.model))
    if given not in connections:
        raise ConfigurationError(
            f"PARQUET_ANALYTICS[{key!r}] is {given!r}, and DATABASES has {', '.join(map(repr, connections))}"
        )
    return str(given)


def connection_string(alias: str) -> str:
    """Where and how Django connects to a database, as ``name='value'`` pairs.

    Asks Django for its parameters now, so a token is a fresh one. With ``service`` or ``passfile`` it connects, and
    takes what libpq made of them.

    :raises ConfigurationError: for an option that has no meaning in text.
    """
    from django.db import connections

    connection = connections[alias]
    parameters = {
        name: value for name, value in connection.get_connection_params().items() if name not in _OF_THE_DRIVER
    }
    if {name for name in _OF_LIBPQ if parameters.pop(name, None)}:
        connection.ensure_connection()
        parameters |= _resolved(connection.connection)
    pairs = []
    for name, value in parameters.items():
        if value is None or value == "":
            continue
        if not isinstance(value, (str, int)):
            raise ConfigurationError(
                f"DATABASES[{alias!r}]['OPTIONS'][{name!r}] is a {type(value).__name__}, which cannot be part of a "
                "connection string; leave it out"
            )
        pairs.append(f"{name}={_quoted(str(value))}")
    return " ".join(pairs)


def _resolved(driver: Any) -> dict[str, Any]:
    """Where psycopg (2 or 3) is connected to, and with which password."""
    info = driver.info
    given = info.get_parameters() if hasattr(info, "get_parameters") else info.dsn_parameters
    found = {name: given.get(name) for name in (*_RESOLVED, "sslmode", "sslrootcert", "sslcert", "sslkey")}
    return {name: value for name, value in found.items() if value} | {"password": info.password}


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

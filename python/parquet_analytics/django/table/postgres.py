"""How Django's own connection to PostgreSQL becomes a connection string, so that custom backends, token logins and
service files mean here what they mean there. Never logged: it holds the password."""

from __future__ import annotations

from typing import Any, NamedTuple

from parquet_analytics.django.table import outages
from parquet_analytics.exceptions import ConfigurationError

__all__ = ["Seen", "connection_string", "seen_by"]

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


class Seen(NamedTuple):
    """What Django's own connection means by the names of some tables, and by whose rights."""

    schemas: list[str | None]
    """Of each table; ``None`` for one that is not there, which whoever reads it complains about."""
    relation: int | None
    """The oid of the first table."""
    user: str
    role: str | None
    """The role to assume after a login, to be that user."""
    temporary: list[str]
    """Those of the tables that no other connection can see."""


@outages.asking
def seen_by(alias: str, tables: list[str | None]) -> Seen:
    """What a site does to its connections when they are made (a search path, a role, a temporary table) decides what it
    sees, so its own connection is asked.

    :raises ConfigurationError: when a policy hides rows from it.
    """
    from django.db import connections

    connection = connections[alias]
    names = [None if table is None else connection.ops.quote_name(table) for table in tables]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT given.name, c.oid::bigint, n.nspname, c.relpersistence, row_security_active(c.oid)"
            " FROM unnest(%s::text[]) AS given(name) JOIN pg_class c ON c.oid = to_regclass(given.name)"
            " JOIN pg_namespace n ON n.oid = c.relnamespace",
            [[name for name in names if name is not None]],
        )
        found = {name: about for name, *about in cursor.fetchall()}
        cursor.execute("SELECT current_user::text, session_user::text")
        user, login = cursor.fetchone()
    hidden = sorted(name for name, about in found.items() if about[3])
    if hidden:
        raise ConfigurationError(
            f"row-level security hides rows of {', '.join(hidden)} from user {user!r} in the database {alias!r}, so a "
            "day could not be seen whole; connect as the table's owner or as a role with BYPASSRLS"
        )
    schemas = [None if name not in found else str(found[name][1]) for name in names]
    first = found.get(names[0])
    assumed = connection.settings_dict.get("OPTIONS", {}).get("assume_role") or None
    named = connection.settings_dict.get("USER") or login
    role = user if assumed or not user == login == named else None
    temporary = sorted(name for name, about in found.items() if about[2] == "t")
    return Seen(schemas, None if first is None else first[0], user, role, temporary)


def _resolved(driver: Any) -> dict[str, Any]:
    """Where psycopg (2 or 3) is connected to, and with which password."""
    info = driver.info
    given = info.get_parameters() if hasattr(info, "get_parameters") else info.dsn_parameters
    found = {name: given.get(name) for name in (*_RESOLVED, "sslmode", "sslrootcert", "sslcert", "sslkey")}
    return {name: value for name, value in found.items() if value} | {"password": info.password}


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

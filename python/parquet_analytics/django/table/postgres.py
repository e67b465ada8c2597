"""What a site's own connection to PostgreSQL sees."""

from __future__ import annotations

from typing import NamedTuple

from parquet_analytics.django.table import outages
from parquet_analytics.exceptions import ConfigurationError

__all__ = ["Seen", "seen_by"]


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


@outages.reconnecting
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

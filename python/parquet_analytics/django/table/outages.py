"""Databases that go away and come back. What Django raises then becomes an error that can be tried again, connections
that died are opened anew, and whoever has work to do waits a while. Which rows are asked for is not decided here."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from django.db import DatabaseError as DjangoDatabaseError
from django.db import Error as AnyDatabaseError
from django.db import InterfaceError, OperationalError, connections, router, transaction

from parquet_analytics.exceptions import DatabaseError, ParquetAnalyticsError

__all__ = ["PATIENCE", "Patience", "reconnecting", "atomic", "converted", "is_away", "reconnect", "translating"]

PATIENCE = 30.0
"""Seconds that tasks and commands wait for a database before they go on to the next day. A restart takes less."""

_LONGEST_PAUSE = 3.0
_ATTEMPTS = 4

# Connections, resources, shutdown and start, and a server that is not the primary any more or not yet.
_OUTAGES = ("08", "53", "57P", "25006")

# A wrong user, password or database: no waiting helps.
_REFUSALS = ("28", "3D")

# What SQLite calls operational although no waiting helps.
_FOR_GOOD = ("no such table", "no such column", "has no column named")

_log = logging.getLogger("parquet_analytics.django")

P = ParamSpec("P")
T = TypeVar("T")


def is_away(error: BaseException) -> bool:
    """Whether what Django raised may be over in a while: the server is down, restarts, refuses, or cut a connection."""
    if isinstance(error, OperationalError):
        return not any(text in str(error) for text in _FOR_GOOD)
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, AnyDatabaseError):
        return False
    code = _sqlstate(error)
    # psycopg2 has no name for a connection that was lost in mid answer.
    return type(error) is DjangoDatabaseError if code is None else code.startswith(_OUTAGES)


@contextmanager
def translating() -> Iterator[None]:
    """What Django raises because a database is away becomes :class:`DatabaseError`, which may be tried again. So may
    what a pooler answers while the database behind it is away, which it also answers to a wrong password: with Django's
    own parameters that is the less likely reason."""
    try:
        yield
    except DatabaseError as error:
        error.retryable = error.retryable or (error.sqlstate or "").startswith(_OUTAGES)
        raise
    except AnyDatabaseError as error:
        if not is_away(error):
            raise
        raise converted(error) from error


def reconnecting(function: Callable[P, T]) -> Callable[P, T]:
    """For functions that only ask. A connection that died while nobody used it says so when it is used: they ask once
    more on a new one. What is still away then is told as by :func:`translating`."""

    @functools.wraps(function)
    def asked(*arguments: P.args, **named: P.kwargs) -> T:
        with translating():
            try:
                return function(*arguments, **named)
            except AnyDatabaseError as error:
                if not is_away(error) or not reconnect():
                    raise
            return function(*arguments, **named)

    return asked


@contextmanager
def atomic(alias: str) -> Iterator[None]:
    """A transaction. When something else than the database breaks off its commit, such as a worker's time limit, that
    is what is raised, and not what Django says then of a connection that still waits for the answer."""
    try:
        with transaction.atomic(using=alias):
            yield
    except AnyDatabaseError as error:
        connection = connections[alias]
        stopped = error.__cause__ and error.__cause__.__context__
        if connection.in_atomic_block or connection.get_autocommit() or stopped is None:
            raise
        connection.close()
        raise stopped from None


def reconnect() -> bool:
    """Closes this thread's connections that are dead, so that the next question opens others. Says whether there was
    one. A transaction of the caller is left alone: what it did is lost with its connection."""
    found = False
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue
        connection.close_if_unusable_or_obsolete()
        found = found or connection.connection is None
    return found


class Patience:
    """Does work that a database kept from being done once more: at once, and then whenever the databases answer again,
    for PATIENCE seconds in all. After that nothing is waited for until some work succeeds: an outage costs a range of
    days its time once."""

    def __init__(self) -> None:
        self._left = PATIENCE

    def __call__(self, work: Callable[[], T]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with translating():
                    done = work()
            except DatabaseError as error:
                if attempt == _ATTEMPTS or not _is_outage(error) or _in_transaction():
                    raise
                _log.warning("a database is away, waited for at most %.0f s: %s", max(self._left, 0), _line(error))
                reconnect()
                # A pooler may answer before what it leads to does.
                if not self._wait(0.0 if attempt == 1 else 2.0):
                    raise
            else:
                self._left = PATIENCE
                return done
        raise AssertionError("unreachable")

    def _wait(self, pause: float) -> bool:
        """Waits until the databases answer. Trying the work itself would leave a row in the ledger each time."""
        while self._left > 0:
            began = time.monotonic()
            time.sleep(min(pause, self._left))
            answers = _answer()
            self._left -= time.monotonic() - began
            if answers:
                return True
            pause = min(_LONGEST_PAUSE, max(0.5, 2 * pause))
        return False


def _answer() -> bool:
    """Whether the databases that page views and the ledger are in can be asked."""
    for alias in _aliases():
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
        except AnyDatabaseError:
            reconnect()
            return False
    return True


def _is_outage(error: DatabaseError) -> bool:
    """Locks, time limits and replicas that break off a statement have pauses of their own."""
    return error.retryable and (error.sqlstate is None or error.sqlstate.startswith(_OUTAGES))


def _in_transaction() -> bool:
    return any(connection.in_atomic_block for connection in connections.all(initialized_only=True))


def converted(error: AnyDatabaseError) -> DatabaseError:
    """What Django raised because a database is away, as an error that may be tried again, unless it lets nobody in."""
    # A driver that could not connect does not say why in a way that does not depend on the server's language.
    refused = _refused() if _sqlstate(error) is None and isinstance(error, OperationalError) else None
    if refused is not None:
        return DatabaseError(f"a database cannot be asked: {_line(refused)}", sqlstate=refused.sqlstate)
    return DatabaseError(f"a database cannot be asked: {_line(error)}", sqlstate=_sqlstate(error), retryable=True)


def _refused() -> DatabaseError | None:
    """Why one of the PostgreSQL databases does not let this site in, such as a wrong password, by its SQLSTATE."""
    from parquet_analytics._native import PostgresSource
    from parquet_analytics.django.table.databases import connection_string

    for alias in _aliases():
        if connections[alias].vendor != "postgresql":
            continue
        try:
            PostgresSource(connection_string(alias)).identity()
        except DatabaseError as error:
            if not error.retryable and (error.sqlstate or "").startswith(_REFUSALS):
                return error
        except (ParquetAnalyticsError, AnyDatabaseError):
            continue
    return None


def _aliases() -> set[str]:
    """The databases that page views and the ledger are in."""
    from parquet_analytics.django.models import Run
    from parquet_analytics.django.table.databases import read_alias, write_alias
    from parquet_analytics.django.table.mapping import configured

    mapping = configured()
    return {read_alias(mapping), write_alias(mapping), router.db_for_write(Run)}


def _sqlstate(error: BaseException) -> str | None:
    """Of psycopg (``sqlstate``) or psycopg2 (``pgcode``), which Django's error has as its cause."""
    driver = error.__cause__
    return getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())

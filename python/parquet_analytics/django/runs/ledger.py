"""Writes the ledger: takes and renews the lease of a day, and records what became of a run."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import IntegrityError, OperationalError, connections, router
from django.db.models import QuerySet

from parquet_analytics.django import days
from parquet_analytics.django.models import Run
from parquet_analytics.django.table import outages
from parquet_analytics.exceptions import (
    CommitStateUnknown,
    ConfigurationError,
    CorruptFile,
    DatabaseError,
    DayIsTaken,
    ParquetAnalyticsError,
    VerificationFailed,
)

__all__ = [
    "LEASE",
    "Ledger",
    "killed_runs",
    "latest_verified",
    "refuse_without_autocommit",
    "runs",
    "without_rows",
    "settle",
]

LEASE = datetime.timedelta(seconds=90)
"""How long a day stays taken after the last sign of life of the run that has it."""

_RENEW_SECONDS = 20.0
_KILLED_WITHIN = datetime.timedelta(hours=24)

_log = logging.getLogger("parquet_analytics.django")


def runs() -> QuerySet[Run]:
    """The ledger's rows, in the database that is written to: a replica may not have the last ones."""
    return Run.objects.using(router.db_for_write(Run))


@outages.reconnecting
def latest_verified(location: str, since: datetime.date, until: datetime.date) -> dict[datetime.date, Run]:
    """For each of these days that has been exported after its end and verified, the last run that did."""
    settle()
    found = runs().filter(
        kind=Run.Kind.EXPORT, state=Run.State.VERIFIED, location=location, day__gte=since, day__lte=until
    )
    return {run.day: run for run in found.order_by("id") if days.is_complete(run.day, run.snapshot_at, run.started_at)}


@outages.reconnecting
def without_rows(since: datetime.date, until: datetime.date) -> set[datetime.date]:
    """Those of these days of which rows were deleted, after an export to whatever place, and not all brought back."""
    found: set[datetime.date] = set()
    told = runs().filter(kind__in=[Run.Kind.DELETE, Run.Kind.RESTORE], day__gte=since, day__lte=until).order_by("id")
    for kind, day, state, left in told.values_list("kind", "day", "state", "left"):
        if kind == Run.Kind.DELETE:
            found.add(day)
        elif state == Run.State.DONE and not left:
            found.discard(day)
    return found


@outages.reconnecting
def killed_runs(kind: str, day: datetime.date, location: str) -> int:
    """How many runs in a row have died on this day lately, without any that came to an end."""
    count = 0
    recent = runs().filter(kind=kind, day=day, location=location, started_at__gt=days.now() - _KILLED_WITHIN)
    for state in recent.exclude(state=Run.State.RUNNING).order_by("-id").values_list("state", flat=True):
        if state != Run.State.ABANDONED:
            break
        count += 1
    return count


@dataclass(frozen=True)
class _End:
    """How a run ended: its fields, or ``None`` for one that leaves no row. Its lease says that nobody has taken it for
    dead meanwhile, and told so."""

    pk: int
    lease: str
    fields: dict[str, Any] | None

    def write(self) -> None:
        mine = runs().filter(pk=self.pk, lease=self.lease)
        if self.fields is None:
            mine.delete()
        else:
            mine.update(**self.fields)


_unwritten: list[_End] = []


def settle() -> None:
    """Write the ends of this process's runs that came while the ledger's database was away."""
    for end in list(_unwritten):
        try:
            outages.reconnecting(end.write)()
        except DatabaseError:
            raise
        except AnyDatabaseError:
            _forget(end)
            raise
        _forget(end)


def _forget(end: _End) -> None:
    with contextlib.suppress(ValueError):  # another thread was faster
        _unwritten.remove(end)


class Ledger:
    """One run's row. Entering takes the day's lease (:class:`DayIsTaken` when another run has it); ``renew`` is to be
    called now and then; leaving gives it back, and records an exception that is on its way as the run's end."""

    def __init__(self, kind: Any, day: datetime.date, location: str, *, database: str = "", task_id: str = "") -> None:
        self.run = Run(
            kind=kind,
            day=day,
            location=location,
            database=database,
            task_id=task_id or "",
            worker=f"{socket.gethostname()}:{os.getpid()}"[:200],
        )
        # A compaction takes no day, but there is one at a time.
        what = "compact" if kind == Run.Kind.COMPACT else day
        self._lease = f"{what} {hashlib.sha256(location.encode()).hexdigest()[:32]}"
        self._renewed = 0.0
        self._needless = False
        self._of_caller = False

    def needless(self) -> None:
        """There was nothing to do, so there will be no row of this run."""
        self._needless = True

    def __enter__(self) -> Ledger:
        with contextlib.suppress(DatabaseError):
            # Also the end of a run of this very day, which would have to be waited for.
            settle()
        try:
            return self._enter()
        except AnyDatabaseError as error:
            # Also one on which somebody was stopped in the middle of a statement, which the driver does not call dead.
            if not outages.reconnect():
                raise _unreachable(error) from error
        try:
            return self._enter(again=True)
        except AnyDatabaseError as error:
            raise _unreachable(error) from error

    def _enter(self, *, again: bool = False) -> Ledger:
        for _ in range(5):
            if again and self._is_in():
                return self
            again = False
            self._renewed = time.monotonic()
            self.run.pk = None
            self.run.started_at = days.now()
            self.run.lease, self.run.lease_until = self._lease, days.now() + LEASE
            alias = router.db_for_write(Run)
            self._of_caller = connections[alias].in_atomic_block
            refuse_without_autocommit(alias)
            try:
                with outages.atomic(alias):
                    self.run.save(using=alias, force_insert=True)
            except IntegrityError:
                self._take_over()
            else:
                return self
        raise DayIsTaken(f"{self.run.day}: other runs keep taking this day", day=self.run.day, retryable=True)

    def _is_in(self) -> bool:
        """Whether it was only the answer that was lost with the connection: then the row is there."""
        run = self.run
        found = runs().filter(lease=self._lease, worker=run.worker, started_at=run.started_at).first()
        run.pk = None if found is None else found.pk
        return found is not None

    def _take_over(self) -> None:
        """Makes room if the run that has the day shows no sign of life."""
        holder = runs().filter(lease=self._lease).first()
        if holder is None or holder.lease_until is None:
            return
        if holder.lease_until > days.now():
            raise DayIsTaken(
                f"{holder.day}: another run ({holder.kind}, {holder.worker}, since {holder.started_at:%H:%M:%S} UTC) "
                f"has this day; it is free at {holder.lease_until:%H:%M:%S} UTC unless that run goes on",
                day=holder.day,
                retryable=True,
            )
        gone = runs().filter(pk=holder.pk, lease=self._lease, lease_until=holder.lease_until)
        if gone.update(
            lease=None,
            lease_until=None,
            state=Run.State.ABANDONED,
            finished_at=days.now(),
            error="The process gave no more sign of life: killed, or its machine went away.",
        ):
            _log.warning("%s: run %s (%s) was abandoned by %s", holder.day, holder.pk, holder.kind, holder.worker)

    def renew(self, *, now: bool = False) -> None:
        """Keeps the day for another while. :class:`DayIsTaken` when somebody else has it meanwhile. With ``now`` that
        is made sure of, and the ledger has to answer. Others see it at once, also from within a transaction."""
        if now or time.monotonic() - self._renewed >= _RENEW_SECONDS:
            self._renew(self._extended_apart if self._hidden() else self._extended, now=now)

    def hold(self) -> None:
        """Makes sure that the day is ours; where the ledger is in the database of a transaction, until its end. It is
        the last thing to be done in it: ``renew`` would wait for this."""
        self._renew(self._extended, now=True)

    def _renew(self, extended: Callable[[], int], *, now: bool) -> None:
        self._renewed = time.monotonic()
        try:
            kept = extended()
        except AnyDatabaseError as error:
            if now:
                raise _unreachable(error) from error
            # The ledger's database may be away for a moment; the run itself does not need it.
            _log.warning("%s: the lease could not be renewed", self.run.day, exc_info=True)
            outages.reconnect()
            return
        if not kept:
            raise DayIsTaken(
                f"{self.run.day}: another run has taken this day over, after this one gave no sign of life for "
                f"{LEASE.seconds} seconds",
                day=self.run.day,
                retryable=True,
            )

    def _hidden(self) -> bool:
        """Whether others would not see what is written now before a transaction ends that has begun since the run."""
        connection = connections[router.db_for_write(Run)]
        # SQLite lets nobody else write meanwhile.
        return connection.in_atomic_block and not self._of_caller and connection.vendor != "sqlite"

    def _extended(self) -> int:
        return runs().filter(pk=self.run.pk, lease=self._lease).update(lease_until=days.now() + LEASE)

    def _extended_apart(self) -> int:
        """In a connection of its own: Django has one for each thread. Who waits can be stopped, and does not wait for
        ever."""
        told: Future[int] = Future()

        def extended() -> int:
            alias = router.db_for_write(Run)
            try:
                with outages.atomic(alias):
                    if connections[alias].vendor == "postgresql":
                        with connections[alias].cursor() as cursor:
                            # Nor does anybody wait for this row should no more be heard of this connection.
                            cursor.execute(
                                "SELECT set_config('lock_timeout', '10s', true),"
                                " set_config('idle_in_transaction_session_timeout', '10s', true)"
                            )
                    return self._extended()
            finally:
                connections[alias].close()

        def report() -> None:
            try:
                told.set_result(extended())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                told.set_exception(error)

        threading.Thread(target=report, daemon=True).start()
        try:
            return told.result(outages.PATIENCE)
        except TimeoutError as error:
            raise OperationalError(f"no answer within {outages.PATIENCE:.0f} seconds") from error

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        run = self.run
        if error is not None:
            self._failed(error)
        run.finished_at, run.lease, run.lease_until = days.now(), None, None
        fields = {
            field.attname: getattr(run, field.attname) for field in Run._meta.concrete_fields if not field.primary_key
        }
        end = _End(run.pk, self._lease, None if self._needless else fields)
        _unwritten.append(end)
        stopped = error is not None and not isinstance(error, Exception)
        try:
            # Whoever stops a run does not wait; a connection that was cut meanwhile is opened anew all the same.
            settle() if stopped else outages.Patience()(settle)
        except DatabaseError as away:
            _log.warning("%s: the end of the run cannot be written yet (%s): %s", run.day, run.state, away)
            if error is None and not self._needless:
                raise DatabaseError(
                    f"{run.day}: the {run.kind} came to its end ({run.state}), and its row in the ledger cannot be "
                    f"written, so it is looked at again: {away}",
                    day=run.day,
                    sqlstate=away.sqlstate,
                    retryable=True,
                ) from away

    def _failed(self, error: BaseException) -> None:
        run = self.run
        run.error = str(error)[:10_000] or type(error).__name__
        run.error_type = type(error).__name__[:50]
        run.retryable = bool(getattr(error, "retryable", False)) or outages.is_away(error)
        if isinstance(error, CommitStateUnknown):
            run.state = Run.State.UNKNOWN
        elif isinstance(error, (VerificationFailed, CorruptFile)):
            run.state = Run.State.MISMATCH
        else:
            run.state = Run.State.FAILED
        if isinstance(error, ParquetAnalyticsError):
            run.key = run.key or error.key or ""
            run.run_id = run.run_id or error.run_id or ""


def refuse_without_autocommit(alias: str) -> None:
    """Where Django was told to leave transactions to the site, ``atomic`` commits nothing: no other run would see the
    lease, and what is said to be done would be lost with the connection."""
    connection = connections[alias]
    if not connection.in_atomic_block and not connection.get_autocommit():
        raise ConfigurationError(
            f"the database {alias!r} does not commit by itself (AUTOCOMMIT is False), so nothing written there would "
            "last; set AUTOCOMMIT to True"
        )


def _unreachable(error: AnyDatabaseError) -> ParquetAnalyticsError:
    about = " ".join(str(error).split())
    if outages.is_away(error):
        away = outages.converted(error)
        return DatabaseError(
            f"the ledger's database cannot be written: {about}", sqlstate=away.sqlstate, retryable=away.retryable
        )
    return ConfigurationError(f"the ledger has no table in its database; run manage.py migrate: {about}")

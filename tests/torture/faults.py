"""What can go wrong around a call: the database's side and the store's, each injected for real and counted when it was
really hit.

After a fault the file is as before or as it was to become, nothing is lost, the error says that the same call may be
made again, and when it is made again, it succeeds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import psycopg

from tests.torture.invariant import Seen, Violation
from tests.torture.player import Day, Player
from tests.torture.proxies import (
    PATIENCE,
    Armed,
    Pass,
    PostgresProxy,
    Request,
    Response,
    S3Proxy,
    forward,
    half,
    send_half,
    wait_until,
)
from tests.torture.steps import Step, Steps
from tests.torture.worker import Answer, Command

# A call that waits for a table is ended by the server after so many seconds.
STATEMENT_TIMEOUT = 0.15

# So long does a client wait for the store's answer.
REQUEST_TIMEOUT = 0.6
LATE = REQUEST_TIMEOUT + 0.3


class Faults(Steps):
    """The steps in which a fault is injected; `hits` counts each by its name."""

    def __init__(self, player: Player, first: Day) -> None:
        super().__init__(player, first)
        self.hits: Counter[str] = Counter({step.name: 0 for step in FAULTS})
        self.s3 = S3Proxy(player.options["endpoint_url"])
        self.postgres = PostgresProxy(player.postgres.port)
        self._held: list[Callable[[], None]] = []

    def close(self) -> None:
        """Ends what injects the faults."""
        self.release()
        self.s3.close()
        self.postgres.close()

    def release(self) -> None:
        """Lets everything through that is held back, and waits until it has arrived."""
        while self._held:
            self._held.pop()()

    # The store

    def store_fault(self, rng: Random, day: Day, name: str) -> str:
        fault = STORE_FAULTS[name]
        # A few times in a row, the client's own repetitions do not help.
        times = rng.choice((1, 1, 2, 9)) if fault.repeatable else 1
        options = {
            "endpoint_url": self.s3.url,
            "request_timeout": str(REQUEST_TIMEOUT),
            "max_retries": str(rng.randint(0, 2)),
        }
        if fault.damages:
            self.stored(rng, day)
        before, command, deletion = self._prepared(
            rng, day, options=options, deletion=False if fault.method == "PUT" else None
        )
        # The second reading is the verification of what was published, or the deletion's look whether the file is still
        # there, which asks for one byte.
        skip = rng.randint(0, 1) if fault.method == "GET" and not (deletion and fault.damages) else 0
        armed = self.s3.armed = Armed(fault.method, partial(fault.strike, self), times, skip)
        try:
            answer = self.player.finished(self.player.worker().call(command))
        finally:
            self.s3.armed = None
        return self._judged(name, armed.hits > 0, before, day, deletion, answer, fault)

    def late_put(self, rng: Random, day: Day) -> str:
        """The file arrives only when the export has given up, and other things have happened in between."""
        options = {"endpoint_url": self.s3.url, "request_timeout": str(REQUEST_TIMEOUT), "max_retries": "0"}
        before, command, _ = self._prepared(rng, day, options=options, deletion=False)
        held = Held(self.s3.address)
        armed = self.s3.armed = Armed("PUT", held.strike, 9)
        dies = rng.random() < 0.5
        worker = self.player.worker()
        worker.begin(command)
        if dies:
            wait_until(lambda: bool(held.requests))
            worker.kill()
        answer = self.player.finished(worker.finish())
        self.s3.armed = None
        held.give_up()
        self._held.append(held.deliver)
        now = self.player.expect_exported(before, day, [answer], lands_within=PATIENCE)
        self.hits["late PUT"] += bool(armed.hits)
        if armed.hits and answer.error is not None and not answer.error.unknown:
            raise Violation(f"the outcome is unknown, but the error is {answer}")
        between = rng.choice(("nothing", "writes", "export", "deletion"))
        touched: set[int] = set()
        if between == "writes":
            touched = self.anything(rng, day)
            now = self.player.look()
        elif between == "export":
            self.change(rng, day)
            now = self.player.seen
            export = self.player.export(day)
            self._expect_done(export)
            now = self.player.expect_exported(now, day, [export], touched)
        elif between == "deletion" and day in now.files and not now.shared(day):
            deletion = self.player.delete(day)
            self._expect_done(deletion)
            now = self.player.expect_deleted(now, day, deletion)
        self.release()
        self.player.sent.pop(day, None)
        after = self.player.look()
        landed = after.files.get(day) is not now.files.get(day)
        if between == "export" and landed:
            raise Violation(f"a file that was late was stored over a newer one: {after.files[day]}")
        again = self.player.export(day)
        self._expect_done(again)
        self.player.expect_exported(after, day, [again])
        return f"{answer}; then {between}; the file {'landed' if landed else 'was refused'}; again: {again}"

    # The database

    def backend_terminated(self, rng: Random, day: Day) -> str:
        def strike() -> bool:
            return self._waiting("pg_terminate_backend(pid)")

        return self._before_a_locked_table(rng, day, "backend terminated", strike, {})

    def query_cancelled(self, rng: Random, day: Day) -> str:
        def strike() -> bool:
            return self._waiting("pg_cancel_backend(pid)")

        return self._before_a_locked_table(rng, day, "query cancelled", strike, {})

    def statement_timeout(self, rng: Random, day: Day) -> str:
        limits = {"statement_timeout": STATEMENT_TIMEOUT, "lock_timeout": 60.0}
        return self._before_a_locked_table(rng, day, "statement_timeout", self._until_nobody_waits, limits)

    def lock_timeout(self, rng: Random, day: Day) -> str:
        limits = {"statement_timeout": 60.0, "lock_timeout": STATEMENT_TIMEOUT}
        return self._before_a_locked_table(rng, day, "lock_timeout", self._until_nobody_waits, limits)

    def _before_a_locked_table(
        self, rng: Random, day: Day, fault: str, strike: Callable[[], bool], limits: dict[str, Any]
    ) -> str:
        """A call waits for a table that somebody else holds, and meanwhile the fault strikes."""
        before, command, deletion = self._prepared(rng, day)
        if deletion:
            command.arguments.update(limits)
        else:
            command.source.update(limits)
        worker = self.player.worker()
        with psycopg.connect(self.site.url) as other:
            other.execute("LOCK TABLE analytics_pageview IN ACCESS EXCLUSIVE MODE")
            worker.begin(command)
            hit = strike()
            other.rollback()
        answer = self.player.finished(worker.finish())
        return self._judged(fault, hit, before, day, deletion, answer)

    def _waiting(self, act: str) -> bool:
        """Does something to the backend that waits for a lock, once there is one."""
        sql = (
            f"SELECT bool_or({act}) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            row = self.site.connection.execute(sql).fetchone()
            if row is not None and row[0] is not None:
                return bool(row[0])
            time.sleep(0.002)
        return False

    def _until_nobody_waits(self) -> bool:
        if not self._waiting("true"):
            return False
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.site.connection.execute(waiting).fetchone() == (0,):
                return True
            time.sleep(0.005)
        return False

    def connection_cut(self, rng: Random, day: Day) -> str:
        name = "database connection cut"
        for limit in (rng.choice((1000, 3000, 6000)), 500):  # the second when there was less to send
            before, command, deletion = self._prepared(rng, day, source={"url": self._through_proxy()})
            hits = self.postgres.hits
            self.postgres.cut_after = rng.randrange(1, limit)
            answer = self.player.finished(self.player.worker().call(command))
            self.postgres.disarm()
            said = self._judged(name, self.postgres.hits > hits, before, day, deletion, answer)
            if self.postgres.hits > hits:
                break
        return said

    def commit_unanswered(self, rng: Random, day: Day) -> str:
        """The rows of a batch are deleted, and nobody hears of it."""
        before, command, _ = self._prepared(rng, day, source={"url": self._through_proxy()}, deletion=True)
        hits = self.postgres.hits
        # The first one ends the look at where in its history the database is.
        self.postgres.skip, self.postgres.lose_reply_to = 1, b"COMMIT\0"
        answer = self.player.finished(self.player.worker().call(command))
        self.postgres.disarm()
        return self._judged("reply to COMMIT dropped", self.postgres.hits > hits, before, day, True, answer)

    def _through_proxy(self) -> str:
        return self.site.url.replace(f":{self.player.postgres.port}/", f":{self.postgres.port}/") + "?sslmode=disable"

    # What they have in common

    def _prepared(
        self, rng: Random, day: Day, *, deletion: bool | None = None, **given: Any
    ) -> tuple[Seen, Command, bool]:
        """An export with something to write, or a deletion with something to delete."""
        if deletion is None:
            deletion = rng.random() < 0.4
        self.repair(day)
        if deletion:
            self.make_deletable(rng, day, 3)
            return self.player.seen, self.player.command("delete_exported_pageviews", day, **given), True
        self.change(rng, day)
        return self.player.seen, self.player.command("export_daily_pageviews", day, **given), False

    def _judged(
        self,
        name: str,
        hit: bool,
        before: Seen,
        day: Day,
        deletion: bool,
        answer: Answer,
        fault: StoreFault | None = None,
    ) -> str:
        self.hits[name] += hit
        what = "deletion" if deletion else "export"
        damaged = fault is not None and fault.damages
        if hit and damaged:
            self.player.expect_error(answer, "VerificationFailed", "CorruptFile")
        elif answer.error is not None and not (answer.error.retryable or answer.error.unknown):
            raise Violation(f"{name}: the {what} ended with an error that is not worth a retry: {answer}")
        if deletion:
            now = self.player.expect_deleted(before, day, answer)
        else:
            now = self.player.expect_exported(before, day, [answer])
        said = f"{what}{'' if hit else ' (not hit)'}: {answer}"
        if not answer.done:
            again = self.player.delete(day) if deletion else self.player.export(day)
            if not again.done:
                raise Violation(f"{name}: {answer}; and without the fault: {again}")
            if deletion:
                self.player.expect_deleted(now, day, again)
            else:
                self.player.expect_exported(now, day, [again])
            said += f"; again: {again}"
        return said


class Held:
    """Requests that are kept from the store until `deliver`; whoever sent them hears nothing until `give_up`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[Request] = []
        self._over = threading.Event()

    def strike(self, request: Request, passing: Pass) -> None:
        self.requests.append(request)
        self._over.wait(PATIENCE)

    def give_up(self) -> None:
        self._over.set()

    def deliver(self) -> None:
        for request in self.requests:
            forward(self.address, request)


@dataclass(frozen=True)
class StoreFault:
    """What happens to a request for an object."""

    weight: int
    method: str
    strike: Callable[[Faults, Request, Pass], Response | bytes | None]
    repeatable: bool = True
    damages: bool = False  # the bytes, so that a retry would not help had the store done it


def _answered(status: int, code: str) -> Callable[[Faults, Request, Pass], Response]:
    """An answer without effect."""
    return lambda faults, request, passing: Response.error(status, code)


def _applied(status: int, code: str) -> Callable[[Faults, Request, Pass], Response]:
    """An error, though the request took effect."""

    def strike(faults: Faults, request: Request, passing: Pass) -> Response:
        passing(request)
        return Response.error(status, code)

    return strike


def _reply_dropped(faults: Faults, request: Request, passing: Pass) -> None:
    passing(request)


def _reply_late(faults: Faults, request: Request, passing: Pass) -> Response:
    answer = passing(request)
    time.sleep(LATE)
    return answer


def _never_answered(faults: Faults, request: Request, passing: Pass) -> None:
    time.sleep(LATE)


def _request_cut(faults: Faults, request: Request, passing: Pass) -> None:
    send_half(faults.s3.address, request)


def _reply_cut(faults: Faults, request: Request, passing: Pass) -> bytes:
    return half(passing(request))


def _sent_twice(faults: Faults, request: Request, passing: Pass) -> Response:
    passing(request)
    return passing(request)


def _bit_flipped(faults: Faults, request: Request, passing: Pass) -> Response:
    answer = passing(request)
    body = bytearray(answer.body)
    if body:
        body[len(body) // 3] ^= 0x10
    return Response(answer.status, answer.headers, bytes(body))


STORE_FAULTS: dict[str, StoreFault] = {
    "PUT applied, reply dropped": StoreFault(8, "PUT", _reply_dropped),
    "PUT applied, reply late": StoreFault(4, "PUT", _reply_late, repeatable=False),
    "PUT applied, then 503": StoreFault(6, "PUT", _applied(503, "SlowDown")),
    "PUT applied, then 500": StoreFault(4, "PUT", _applied(500, "InternalError")),
    "PUT sent twice": StoreFault(4, "PUT", _sent_twice),
    "PUT cut half way": StoreFault(6, "PUT", _request_cut),
    "PUT never answered": StoreFault(4, "PUT", _never_answered, repeatable=False),
    "PUT 503": StoreFault(6, "PUT", _answered(503, "SlowDown")),
    "PUT 500": StoreFault(4, "PUT", _answered(500, "InternalError")),
    "PUT 412": StoreFault(6, "PUT", _answered(412, "PreconditionFailed"), repeatable=False),
    "PUT 409": StoreFault(4, "PUT", _answered(409, "ConditionalRequestConflict"), repeatable=False),
    "PUT 200 with an error in the body": StoreFault(4, "PUT", _answered(200, "InternalError")),
    "GET 503": StoreFault(6, "GET", _answered(503, "SlowDown")),
    "GET cut half way": StoreFault(6, "GET", _reply_cut),
    "GET never answered": StoreFault(3, "GET", _never_answered, repeatable=False),
    "GET damaged": StoreFault(6, "GET", _bit_flipped, repeatable=False, damages=True),
}

FAULTS: tuple[Step, ...] = (
    Step("backend terminated", 12, Faults.backend_terminated),
    Step("query cancelled", 6, Faults.query_cancelled),
    Step("statement_timeout", 8, Faults.statement_timeout),
    Step("lock_timeout", 5, Faults.lock_timeout),
    Step("database connection cut", 10, Faults.connection_cut),
    Step("reply to COMMIT dropped", 6, Faults.commit_unanswered),
    Step("late PUT", 5, Faults.late_put),
    *(Step(name, fault.weight, partial(Faults.store_fault, name=name)) for name, fault in STORE_FAULTS.items()),
)

"""A child process that exports and deletes on command, tells which steps of the protocol it reaches, and can be made
to wait, or to die by SIGKILL, at any of them.

It lives over many commands. A new one is forked from a process that has imported everything already, so that
killing one costs milliseconds.
"""

from __future__ import annotations

import datetime
import logging
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from parquet_analytics import ParquetAnalyticsExporter, PostgresSource
from parquet_analytics.exceptions import ParquetAnalyticsError

LOGGER = "parquet_analytics.steps"

EXPORT_STEPS = (
    "reading-stored",
    "reading-database",
    "writing-file",
    "publishing",
    "published",
    "verifying",
    "verified",
)
COPY_STEPS = ("copying", "copied")
DELETE_STEPS = (
    "delete-verifying",
    "delete-stamping",
    "delete-locking",
    "delete-deleting",
    "delete-committing",
    "delete-committed",
    "delete-reporting",
)
# They come once for each batch of rows.
BATCH_STEPS = ("delete-locking", "delete-deleting", "delete-committing", "delete-committed")

# Longer than anything here may take; what takes longer hangs.
HANGS_AFTER = 90.0


@dataclass(frozen=True)
class Stop:
    """What to do when `step` is reached for the `occurrence`-th time (from 1): wait until told to go on, or die
    after so many seconds. Without a step, the time counts from the beginning."""

    step: str | None
    occurrence: int = 1
    dies_after: float | None = None


@dataclass(frozen=True)
class Command:
    """A call of `ParquetAnalyticsExporter`."""

    method: str
    arguments: dict[str, Any]
    exporter: dict[str, Any]  # its arguments but the source
    source: dict[str, Any]  # the arguments of PostgresSource
    stop: Stop | None = None


@dataclass(frozen=True)
class Told:
    """An exception as it was seen in the child."""

    name: str
    message: str
    typed: bool
    retryable: bool
    row_id: int | None
    export_first: tuple[datetime.date, ...] = ()

    @property
    def unknown(self) -> bool:
        return self.name == "CommitStateUnknown"


@dataclass(frozen=True)
class Answer:
    """How a command ended: with a result, with an error, or with the death of the child."""

    result: dict[str, Any] | None = None
    error: Told | None = None
    killed: bool = False
    steps: tuple[str, ...] = field(default=())

    @property
    def done(self) -> bool:
        return self.result is not None

    def __str__(self) -> str:
        if self.killed:
            return f"killed after {self.steps[-1] if self.steps else 'the start'}"
        if self.error is not None:
            return f"{self.error.name}: {self.error.message}"
        assert self.result is not None
        told = ("outcome", "total_records", "added", "changed", "kept", "deleted", "late", "busy", "left")
        return ", ".join(f"{name} {self.result[name]}" for name in told if name in self.result)


class Hangs(AssertionError):
    """A call did not end in time."""


class Worker:
    """The parent's end. `begin` and `finish`, or `call` for both; `wait_for_step` between them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._steps: list[str] = []

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def call(self, command: Command) -> Answer:
        self.begin(command)
        return self.finish()

    def begin(self, command: Command) -> None:
        self._steps = []
        self._pipe.send(command)

    def wait_for_step(self) -> Answer | None:
        """None when the child waits now at the step; the answer when it ended without reaching it."""
        told = self._next()
        return None if isinstance(told, str) else told

    def go_on(self) -> None:
        self._pipe.send("go")

    def kill(self) -> None:
        self._process.kill()

    def finish(self) -> Answer:
        told = self._next()
        if isinstance(told, str):
            raise AssertionError("the child waits, and nobody is there to tell it to go on")
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def _next(self) -> Answer | str:
        deadline = time.monotonic() + HANGS_AFTER
        while True:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                self.kill()
                raise Hangs(f"no answer within {HANGS_AFTER:.0f} s; the last steps: {self._steps[-5:]}")
            try:
                kind, value = self._pipe.recv()
            except (EOFError, OSError):  # also in the middle of a message
                self._process.join()
                if self._process.exitcode != -signal.SIGKILL:
                    raise AssertionError(f"the child ended by itself with {self._process.exitcode}") from None
                return Answer(killed=True, steps=tuple(self._steps))
            if kind == "step":
                self._steps.append(value)
            elif kind == "waits":
                return "waits"
            elif kind == "result":
                return Answer(result=value, steps=tuple(self._steps))
            else:
                return Answer(error=value, steps=tuple(self._steps))


class _Steps(logging.Handler):
    """Tells the parent each step before the call goes on with it."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(logging.DEBUG)
        self.pipe = pipe
        self.stop: Stop | None = None
        self.seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        step = record.getMessage().split()[-1]
        self.pipe.send(("step", step))
        stop = self.stop
        if stop is None or stop.step != step:
            return
        self.seen += 1
        if self.seen != stop.occurrence:
            return
        if stop.dies_after is None:
            self.pipe.send(("waits", step))
            self.pipe.recv()
        else:
            _die(stop.dies_after)


def _die(after: float) -> None:
    if after == 0:
        os.kill(os.getpid(), signal.SIGKILL)

    def later() -> None:
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=later, daemon=True).start()


def _serve(pipe: Connection) -> None:
    logging.getLogger("parquet_analytics").addHandler(logging.NullHandler())
    handler = _Steps(pipe)
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    logger.propagate = False
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        handler.stop, handler.seen = command.stop, 0
        pipe.send(_run(command))


def _run(command: Command) -> tuple[str, Any]:
    if command.stop is not None and command.stop.step is None:
        _die(command.stop.dies_after or 0)
    try:
        exporter = ParquetAnalyticsExporter(**command.exporter, source=PostgresSource(**command.source))
        found = getattr(exporter, command.method)(**command.arguments)
        return "result", found if isinstance(found, dict) else {"outcome": command.method, "found": found}
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent judges it
        return "error", Told(
            type(error).__name__,
            str(error),
            isinstance(error, ParquetAnalyticsError),
            bool(getattr(error, "retryable", False)),
            getattr(error, "row_id", None),
            tuple(getattr(error, "export_first", ())),
        )

"""What the commands have in common: a progress bar on a terminal, numbers that people can read, days as arguments, and
how whatever stops them ends."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.core.management.base import CommandError
from django.db import Error as AnyDatabaseError

from parquet_analytics.django.operations import exit_codes
from parquet_analytics.exceptions import ParquetAnalyticsError

__all__ = ["Bar", "as_options", "day_argument", "ended_in_order", "parsed", "size"]

# What the library's messages name, and what it is to whoever types a command.
_OPTIONS = {
    "pass allow_local_delete=True": "set ALLOW_LOCAL_DELETE",
    "accept_moved_database=True": "--accept-moved-database",
    'on_id_conflict="leave"': "--on-id-conflict leave",
    'on_id_conflict="database"': "--on-id-conflict database",
    "pass allow_cascades=True": "set DELETE_CASCADES",
    "pass lose_columns=": "set DELETE_COLUMNS to ",
    "allow_empty=True": "--allow-empty",
    "allow_open_day=True": "--allow-open-day",
    "discard_stored=True": "--replace --discard-stored",
    "replace=True": "--replace",
}


def as_options(error: BaseException) -> str:
    """An exception's text, with options in place of arguments."""
    text = str(error)
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def day_argument(text: str) -> datetime.date:
    """``YYYY-MM-DD`` and nothing else."""
    try:
        day = datetime.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=datetime.UTC).date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it as YYYY-MM-DD, such as 2026-07-01") from None
    if day.isoformat() != text:
        raise argparse.ArgumentTypeError(f"{text!r} is no day as YYYY-MM-DD; did you mean {day}?")
    return day


def parsed(options: dict[str, Any], **kinds: Callable[[str], Any]) -> dict[str, Any]:
    """The options of a command with texts as argparse makes them: ``call_command(..., date="2026-07-01")`` hands over
    what it was given."""
    for name, kind in kinds.items():
        if isinstance(options.get(name), str):
            try:
                options[name] = kind(options[name])
            except argparse.ArgumentTypeError as error:
                raise CommandError(f"--{name.replace('_', '-')}: {error}", returncode=exit_codes.USAGE) from None
    return options


def size(number: int | None) -> str:
    """Bytes as people say them."""
    if number is None:
        return "an unknown number of bytes"
    value = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{number} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


class Bar:
    """One line that is drawn anew while rows are read; nothing at all where ``stream`` is no terminal."""

    WIDTH = 30

    def __init__(self, stream: Any, title: str, *, wanted: bool) -> None:
        self._stream = stream if wanted and hasattr(stream, "isatty") and stream.isatty() else None
        self._title = title
        self.wants_total = self._stream is not None
        self._drawn = 0

    def __call__(self, done: int, total: int | None) -> None:
        if self._stream is None:
            return
        if total:
            filled = min(self.WIDTH, self.WIDTH * done // total)
            text = f"{self._title} [{'#' * filled}{'.' * (self.WIDTH - filled)}] {done:,} of {total:,} rows"
        else:
            text = f"{self._title} {done:,} rows"
        self._stream.write("\r" + text.ljust(self._drawn), ending="")
        self._stream.flush()
        self._drawn = len(text)

    def clear(self) -> None:
        if self._stream is not None and self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r", ending="")
            self._stream.flush()
            self._drawn = 0


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Whatever stops a command becomes a sentence and an exit code."""
    try:
        with _stopped_by_signals():
            yield
            sys.stdout.flush()
    except ParquetAnalyticsError as error:
        raise CommandError(as_options(error), returncode=exit_codes.of_error(error)) from error
    except AnyDatabaseError as error:
        about = " ".join(str(error).split())
        raise CommandError(f"a database cannot be asked: {about}", returncode=exit_codes.FAILED) from error
    except KeyboardInterrupt:
        raise CommandError("stopped; the day that was under way is as it was, or whole", returncode=130) from None
    except BrokenPipeError:
        # Nobody reads on, as with `| head`; nor is Python to find that out once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: what is under way is broken off in order, and the day given back."""

    def stop(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

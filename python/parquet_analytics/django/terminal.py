"""What the commands show: a progress bar on a terminal, numbers that people can read, days as arguments."""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Bar", "day_argument", "size", "stopped_by_signals"]


def day_argument(text: str) -> datetime.date:
    """``YYYY-MM-DD`` and nothing else."""
    try:
        day = datetime.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=datetime.UTC).date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it as YYYY-MM-DD, such as 2026-07-01") from None
    if day.isoformat() != text:
        raise argparse.ArgumentTypeError(f"{text!r} is no day as YYYY-MM-DD; did you mean {day}?")
    return day


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
def stopped_by_signals() -> Iterator[None]:
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

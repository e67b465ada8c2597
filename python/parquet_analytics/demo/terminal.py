"""How the demo's output looks: tables, bars and numbers; colours only on a terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from shutil import get_terminal_size

_EIGHTHS = " ▏▎▍▌▋▊▉"


class Terminal:
    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.live = terminal
        self.colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Paths are in all scripts; one that the terminal cannot show must not end the demo.
            sys.stdout.reconfigure(errors="replace")
        self.width = min(get_terminal_size((100, 40)).columns, 120)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def strong(self, text: str) -> str:
        return self._paint("1", text)

    def faint(self, text: str) -> str:
        return self._paint("2", text)

    def good(self, text: str) -> str:
        return self._paint("32", text)

    def bad(self, text: str) -> str:
        return self._paint("31", text)

    def heading(self, title: str, note: str = "") -> None:
        rule = ("─" if self.unicode else "-") * max(2, self.width - len(title) - len(note) - (2 if note else 1))
        print(f"\n{self.strong(title)} {self.faint(rule)}{' ' + self.faint(note) if note else ''}")

    def line(self, text: str = "") -> None:
        print(f"  {text}" if text else "")

    def working(self, text: str) -> None:
        """A line that the next one replaces; nothing where nobody watches."""
        if self.live:
            print(f"\r\x1b[2K  {self.faint(text)}", end="", flush=True)

    def done_working(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", flush=True)

    def table(self, names: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
        """``align`` has ``<`` or ``>`` for each column."""
        widths = [max(len(cell) for cell in column) for column in zip(names, *rows, strict=True)]
        for number, row in enumerate([names, *rows]):
            cells = (f"{cell:{side}{width}}" for cell, width, side in zip(row, widths, align, strict=True))
            text = "   ".join(cells).rstrip()
            self.line(self.faint(text) if number == 0 else text)

    def bar(self, value: float, most: float, width: int) -> str:
        """A bar in eighths of a character, or in ``#``."""
        eighths = round(value / most * width * 8) if most else 0
        if not self.unicode:
            return "#" * max(round(eighths / 8), 1 if value else 0)
        return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip() or ("▏" if value else "")

    def shorten(self, text: str, width: int) -> str:
        # Paths hold what visitors type; a terminal must not act on it.
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        mark = "…" if self.unicode else "..."
        return text if len(text) <= width else text[: width - len(mark)] + mark

    @property
    def dot(self) -> str:
        return "·" if self.unicode else "-"


def number(value: float) -> str:
    return f"{value:,.0f}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"

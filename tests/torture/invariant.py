"""What has to hold at any moment without a call under way, however the calls before it ended.

Every committed row that the application did not delete is in the table or in its day's file; a row that is in a
file alone has exactly the columns that it had last in the table, and is in no other file; a file holds no row that
never was, none twice, and never an older state of a row than it held before; a stored row stays stored, unless it has
moved to another date; and once a project is erased, no object has a row of it.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.archive import DAY_KEY, Archive, Broken, File
from tests.torture.site import Row, Rows, Site

Day = datetime.date


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Seen:
    """The state after a step."""

    table: Rows = field(default_factory=dict)
    files: dict[Day, File] = field(default_factory=dict)
    objects: dict[str, File] = field(default_factory=dict)  # by key, copies too

    def of(self, day: Day) -> Rows:
        """The table's rows of a day."""
        return {id: row for id, row in self.table.items() if row.date == day}

    def stored(self, day: Day) -> Rows:
        """The rows of a day's file, none when there is no file."""
        return self.files[day].rows if day in self.files else {}

    def moved(self, day: Day, ids: Iterable[int]) -> set[int]:
        """Those of the rows that the table has on another date."""
        return {id for id in ids if id in self.table and self.table[id].date != day}

    def shared(self, day: Day) -> dict[Day, set[int]]:
        """The rows of a day's file that other days' files have too."""
        mine = self.stored(day).keys()
        found = {other: mine & file.rows.keys() for other, file in self.files.items() if other != day}
        return {other: ids for other, ids in found.items() if ids}


@dataclass
class Totals:
    checks: int = 0
    lost: int = 0
    doubled: int = 0


class Invariant:
    def __init__(self, site: Site, archive: Archive, temporary: Path | None = None) -> None:
        self.site = site
        self.archive = archive
        self.temporary = temporary
        self.seen = Seen()
        self.totals = Totals()
        # Rows of a file that a call may have dropped, because it was told to.
        self.discardable: dict[Day, set[int]] = {}
        # Projects of which no object may have a row any more.
        self.swept: set[int] = set()

    def check(self) -> Seen:
        """Looks, and raises `Violation` with the rows concerned."""
        try:
            objects = self.archive.look()
        except Broken as broken:
            raise Violation(str(broken)) from broken
        before = self.seen
        now = Seen(
            self.site.rows(),
            {file.day: file for file in objects.values() if DAY_KEY.fullmatch(file.key)},
            objects,
        )
        self.totals.checks += 1
        self._check_discarded(before, now)
        self._check_table(now)
        self._check_objects(before, now)
        for day, file in now.files.items():
            if file is not before.files.get(day):
                self._check_file(before.files.get(day), file)
        self._check_nothing_is_lost(now)
        if self.temporary is not None and (left := sorted(self.temporary.iterdir())):
            raise Violation(f"left in the temporary folder: {left}")
        self.seen = now
        return now

    def _check_objects(self, before: Seen, now: Seen) -> None:
        absent = {
            key
            for key in before.objects.keys() - now.objects.keys()
            if DAY_KEY.fullmatch(key) or not _projects(before.objects[key]) & self.site.erased
        }
        if absent:
            raise Violation(f"objects are gone: {sorted(absent)}")
        for key, file in now.objects.items():
            if back := _projects(file) & self.swept:
                raise Violation(f"{file} holds rows of erased projects: {sorted(back)}")
            if file is not before.objects.get(key):
                self._check_rows(file)

    def _check_discarded(self, before: Seen, now: Seen) -> None:
        for day, ids in list(self.discardable.items()):
            if now.files.get(day) is not before.files.get(day):
                self.site.discarded |= ids - now.stored(day).keys()
                del self.discardable[day]

    def _check_table(self, now: Seen) -> None:
        versions = self.site.versions
        strange = [row for id, row in now.table.items() if id not in versions or id in self.site.deleted]
        if strange:
            raise Violation(f"rows in the table that the application did not leave there: {_show(strange)}")
        changed = [(row, versions[id][-1]) for id, row in now.table.items() if row != versions[id][-1]]
        if changed:
            raise Violation(f"rows in the table that somebody else changed (is, was): {_show(changed)}")

    def _check_rows(self, file: File) -> None:
        versions = self.site.versions
        invented = [row for id, row in file.rows.items() if row not in versions.get(id, ())]
        if invented:
            raise Violation(f"{file} holds rows that never were: {_show(invented)}")
        for id, (project_slug, version_slug) in file.slugs.items():
            row = file.rows[id]
            version = None if row.version_id is None else self.site.version_slugs[row.version_id]
            if project_slug not in self.site.slugs[row.project_id] or version_slug != version:
                raise Violation(f"{file} names {project_slug!r} and {version_slug!r} for {row}")

    def _check_file(self, before: File | None, file: File) -> None:
        versions = self.site.versions
        if before is None:
            return
        gone = {
            id
            for id in before.rows.keys() - file.rows.keys() - self.site.discarded
            if before.rows[id].project_id not in self.site.erased and not self._moved_since(before.rows[id])
        }
        if gone:
            raise Violation(f"{file} lacks rows that were stored before: {_show(before.rows[id] for id in gone)}")
        older = [
            (row, before.rows[id])
            for id, row in file.rows.items()
            if id in before.rows and self._last_time(row) < versions[id].index(before.rows[id])
        ]
        if older:
            raise Violation(f"{file} went back to an older state of rows (now, before): {_show(older)}")

    def _moved_since(self, row: Row) -> bool:
        """Whether it had another date after this state."""
        versions = self.site.versions[row.id]
        return any(later.date != row.date for later in versions[versions.index(row) :])

    def _last_time(self, row: Row) -> int:
        """A row that moved back may have had the same state before."""
        versions = self.site.versions[row.id]
        return len(versions) - 1 - versions[::-1].index(row)

    def _check_nothing_is_lost(self, now: Seen) -> None:
        site = self.site
        lost = []
        for id in site.kept() - now.table.keys():
            last = site.last(id)
            kept = now.stored(last.date).get(id)
            if kept != last:
                lost.append((last, kept))
        if lost:
            self.totals.lost += len(lost)
            raise Violation(f"{len(lost)} rows are lost (last in the table, in the file): {_show(lost)}")
        # `Archive` saw each id once in its file. Of a row in the table it can still be told which of two is old.
        counted = Counter(id for file in now.files.values() for id in file.rows)
        doubled = [
            site.last(id)
            for id, files in counted.items()
            if files > 1 and id not in now.table and site.last(id).project_id not in site.erased
        ]
        if doubled:
            self.totals.doubled += len(doubled)
            raise Violation(f"{len(doubled)} rows are in more than one file: {_show(doubled)}")


def _projects(file: File) -> set[int]:
    return {row.project_id for row in file.rows.values()}


def merged(stored: Rows, table: Rows) -> Rows:
    """What a file holds after these rows of the table were merged into it."""
    return stored | {id: row for id, row in table.items() if row.fits}


def merged_undecided(stored: Rows, table: Rows) -> Rows:
    """The same while it is not known whether rows that differ are the stored ones: those wait for the next deletion."""
    return merged(stored, table) | {id: row for id, row in stored.items() if id in table and table[id] != row}


def deletable(stored: Rows, table: Rows) -> set[int]:
    """The rows that are stored exactly as the table has them."""
    return {id for id, row in table.items() if stored.get(id) == row}


def difference(found: Rows, expected: Rows) -> str:
    return (
        f"missing {_show(expected[id] for id in expected.keys() - found.keys())}; "
        f"too many {_show(found[id] for id in found.keys() - expected.keys())}; "
        f"otherwise {_show((found[id], row) for id, row in expected.items() if id in found and found[id] != row)}"
    )


def _show(rows: Iterable[Row | tuple[Row | None, Row | None]]) -> str:
    listed = list(rows)
    shown = "".join(f"\n    {row}" for row in listed[:20])
    return f"{len(listed)}{shown}{'' if len(listed) <= 20 else ' ...'}"

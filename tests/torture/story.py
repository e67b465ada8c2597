"""The days in use, the application's steps on them, and the two calls that everything else is about."""

from __future__ import annotations

from random import Random

import psycopg

from tests.torture.invariant import Seen, Violation, deletable
from tests.torture.player import Day, Player
from tests.torture.worker import BATCH_STEPS, Answer, Stop


class Story:
    """The days in use, and what happens on them. A step says in one line what it did."""

    def __init__(self, player: Player, first: Day) -> None:
        self.player = player
        self.site = player.site
        self.first = first
        self.days: list[Day] = []
        self.opened = 0

    def open_day(self) -> Day:
        day = Day.fromordinal(self.first.toordinal() + self.opened)
        self.opened += 1
        self.days.append(day)
        return day

    # The application

    def insert(self, rng: Random, day: Day) -> str:
        seen, living = self.player.seen, self.site.living_versions
        gone = [row for id, row in seen.stored(day).items() if id not in seen.table and row.project_id in living]
        ids = self.site.insert(rng, day, rng.randint(1, 12), gone)
        self.player.look()
        return f"rows {ids}"

    def update(self, rng: Random, day: Day) -> str:
        changed = self.site.count_views(rng, self._some(rng, day))
        self.player.look()
        return f"rows {sorted(changed)}"

    def move(self, rng: Random, day: Day) -> str:
        """Rows of the day get another date, or rows of another day this one; either may have been exported, or deleted
        in part."""
        other = self._another_day(rng, day)
        source, target = rng.choice(((day, other), (other, day)))
        moved = self._move(rng, source, target)
        self.player.look()
        return f"rows {sorted(moved)} from {source} to {target}"

    def rename(self, rng: Random, day: Day) -> str:
        project = rng.choice(self.site.projects)
        slug = self.site.rename(rng, project)
        self.player.look()
        return f"project {project} is {slug}"

    def delete_version(self, rng: Random, day: Day) -> str:
        changed = self.site.delete_version(rng, rng.choice(self.site.projects))
        self.player.look()
        return f"rows {sorted(changed)}"

    def delete_rows(self, rng: Random, day: Day) -> str:
        every = list(self.player.seen.of(day))
        gone = self._delete(every if rng.random() < 0.1 else self._some(rng, day, 4))
        self.player.look()
        return f"rows {sorted(gone)}"

    def anything(self, rng: Random, day: Day) -> set[int]:
        """Some of the application's work on a day, while a call may be under way; the rows that it touched."""
        touched: set[int] = set()
        kinds = ["insert", "update", "update", "delete", "version", "rename"]
        if self.opened > 1:
            kinds.append("move")
        for _ in range(rng.randint(1, 3)):
            some = self._some(rng, day)
            work = rng.choice(kinds)
            try:
                if work == "insert":
                    touched.update(self.site.insert(rng, day, rng.randint(1, 5)))
                elif work == "update":
                    touched |= self.site.count_views(rng, some)
                elif work == "delete":
                    touched |= self._delete(some[:2])
                elif work == "version":
                    touched |= self.site.delete_version(rng, rng.choice(self.site.projects))
                elif work == "move":
                    other = self._another_day(rng, day)
                    touched |= self._move(rng, *rng.choice(((day, other), (other, day))), stored=False)
                else:
                    self.site.rename(rng, rng.choice(self.site.projects))
            except psycopg.errors.LockNotAvailable:
                continue  # a deletion holds the row; the application would try again
        return touched

    # In quiet

    def export(self, rng: Random, day: Day) -> str:
        before = self.player.seen
        leaves = self._spoiled(day)
        copies = rng.random() < 0.05
        answer = self.player.export(
            day, per_project=copies, on_bad_row="leave" if leaves else rng.choice(("fail", "leave"))
        )
        is_stored = day in before.files or any(self.player.bases(before, day))
        if not before.of(day) and not is_stored and not self.site.has_before(day):
            self.player.expect_error(answer, "DayHasNoRows")
        else:
            self._expect_done(answer)
        now = self.player.expect_exported(before, day, [answer])
        if copies and answer.done:
            self.player.expect_copies(now, day, answer)
        return str(answer)

    def delete(self, rng: Random, day: Day) -> str:
        self.make_deletable(rng, day)
        before = self.player.seen
        answer = self.player.delete(day)
        self._expect_done(answer)
        self.player.expect_deleted(before, day, answer)
        return str(answer)

    # Preparations

    def make_deletable(self, rng: Random, day: Day, count: int = 1) -> None:
        """At least so many rows that are stored as they are, and something late and changed among them."""
        seen = self.player.seen
        if len(deletable(seen.stored(day), seen.of(day))) < count or self.player.sent.get(day):
            self.repair(day)
            self.site.insert(rng, day, count + 6)
            self.player.look()
            self.export(rng, day)
            self.anything(rng, day)
            self.player.look()
        seen = self.player.seen
        if not deletable(seen.stored(day), seen.of(day)):
            self.site.insert(rng, day, count + 3)
            self.player.look()
            self.export(rng, day)
        self.settle(rng, day)

    def settle(self, rng: Random, day: Day) -> list[Day]:
        """Exports what a deletion of the day would ask for: days that have rows of its file which live elsewhere."""
        exported: list[Day] = []
        for _ in range(2):  # the day's own export may have stored rows that moved to it
            seen = self.player.seen
            shared = seen.shared(day)
            for each in [each for each in (day, *shared) if shared and seen.moved(each, seen.stored(each))]:
                self.repair(each)
                self.export(rng, each)
                exported.append(each)
        if shared := self.player.seen.shared(day):
            raise Violation(f"rows of {day} are in other days' files, though those were exported: {shared}")
        return exported

    def stored(self, rng: Random, day: Day) -> None:
        if not self.player.seen.stored(day):
            self.site.insert(rng, day, 5)
            self.player.look()
            self.export(rng, day)

    def change(self, rng: Random, day: Day) -> None:
        """Something for an export to write."""
        self.site.insert(rng, day, rng.randint(1, 6))
        self.site.count_views(rng, self._some(rng, day))
        self.player.look()

    def _spoiled(self, day: Day) -> list[int]:
        return [id for id, row in self.player.seen.of(day).items() if not row.fits]

    def repair(self, day: Day) -> None:
        if spoiled := self._spoiled(day):
            self.site.repair(spoiled)
            self.player.look()

    def _another_day(self, rng: Random, day: Day) -> Day:
        return rng.choice([each for each in self._every_day() if each != day])

    def _every_day(self) -> list[Day]:
        """Those in use, and those that have ended."""
        return [Day.fromordinal(self.first.toordinal() + number) for number in range(self.opened)]

    def _move(self, rng: Random, source: Day, target: Day, *, stored: bool = True) -> set[int]:
        """Rows go to another day; with `stored`, also back to one whose file has them. Not to one whose file says that
        they have left the table: there they would be taken for others that got their ids."""
        file = self.player.seen.files.get(target)
        taken = set() if file is None else file.gone if stored else file.rows.keys()
        return self.site.move_rows([id for id in self._some(rng, source, 4) if id not in taken], target)

    def _delete(self, ids: list[int]) -> set[int]:
        """Not of rows that have moved: of one that is in two files and not in the table, nobody could tell which of the
        two is old."""
        return self.site.delete([id for id in ids if not self.site.has_moved(id)])

    def _some(self, rng: Random, day: Day, at_most: int = 8) -> list[int]:
        ids = sorted(id for id, row in self.player.seen.table.items() if row.date == day and row.fits)
        return rng.sample(ids, min(len(ids), rng.randint(1, at_most)))

    def _with_writes(self, rng: Random, day: Day, method: str, step: str) -> tuple[Answer, set[int]]:
        """Calls, and lets the application work while the call waits at a step."""
        worker = self.player.worker()
        occurrence = rng.randint(1, 3) if step in BATCH_STEPS else 1
        worker.begin(self.player.command(method, day, stop=Stop(step, occurrence)))
        ended = worker.wait_for_step()
        touched = self.anything(rng, day)
        if ended is None:
            worker.go_on()
            ended = worker.finish()
        return self.player.finished(ended), touched

    def _expect_done(self, answer: Answer) -> None:
        if not answer.done:
            raise Violation(f"a call that nothing disturbed ended with {answer}")

    def _expect_deletion_over(self, answer: Answer, before: Seen, day: Day) -> None:
        """Done, or overtaken by an export: which has perhaps stored rows that an older file has too."""
        if answer.done or (answer.error is not None and answer.error.name == "Conflict"):
            return
        self.player.expect_error(answer, "DeletionRefused")
        assert answer.error is not None
        shared = self.player.look().shared(day).keys() | before.shared(day).keys()
        if not answer.error.export_first or not shared >= set(answer.error.export_first):
            raise Violation(f"refused for rows that no other day has: {answer}")

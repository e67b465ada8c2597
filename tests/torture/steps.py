"""What can happen: the application's steps, and ours in quiet, beside the application, and beside each other.

Each step makes what it needs first (something to delete, a changed row), so that no step is without effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import psycopg

from tests.torture.erasures import Erasures
from tests.torture.invariant import Seen, Violation, deletable
from tests.torture.player import BATCH_ROWS, Day
from tests.torture.strangers import Strangers
from tests.torture.worker import BATCH_STEPS, COPY_STEPS, DELETE_STEPS, EXPORT_STEPS, Stop


@dataclass(frozen=True)
class Step:
    """`weight` of a thousand steps, about; every step comes at least once."""

    name: str
    weight: int
    take: Callable[[Any, Random, Day], str]


class Steps(Strangers, Erasures):
    """Each says in one line what it did, and raises `Violation` when a promise was broken."""

    # Exports

    def merge_after_deletion(self, rng: Random, day: Day) -> str:
        said = [self.delete(rng, day), self.insert(rng, day), self.update(rng, day), self.export(rng, day)]
        return "; ".join(said)

    def export_beside_writes(self, rng: Random, day: Day) -> str:
        self.repair(day)
        self.change(rng, day)
        before = self.player.seen
        step = rng.choice(EXPORT_STEPS[:-1])
        answer, touched = self._with_writes(rng, day, "export_daily_pageviews", step)
        self._expect_done(answer)
        self.player.expect_exported(before, day, [answer], touched)
        return f"{sorted(touched)} touched at {step}: {answer}"

    def export_beside_open_transaction(self, rng: Random, day: Day) -> str:
        """Rows with lower ids than others that are exported already become visible only afterwards."""
        self.repair(day)
        commit = self.site.insert_slowly(rng, day, rng.randint(1, 4))
        self.site.insert(rng, day, 2)
        before = self.player.look()
        answer = self.player.export(day)
        self._expect_done(answer)
        self.player.expect_exported(before, day, [answer])
        late = commit()
        self.player.look()
        return f"{late} committed late: {answer}"

    def export_twice_at_once(self, rng: Random, day: Day) -> str:
        self.repair(day)
        self.change(rng, day)
        before = self.player.seen
        command = self.player.command("export_daily_pageviews", day)
        workers = [self.player.worker(number) for number in (0, 1)]
        for worker in workers:
            worker.begin(command)
        touched = self.anything(rng, day) if rng.random() < 0.5 else set()
        answers = [self.player.finished(worker.finish(), number) for number, worker in enumerate(workers)]
        for answer in answers:
            self._expect_done(answer)
        self.player.expect_exported(before, day, answers, touched)
        return f"{sorted(touched)} touched: {' / '.join(map(str, answers))}"

    def export_overtaken(self, rng: Random, day: Day) -> str:
        """Another child exports newer rows while the first, which may be replacing, is about to publish."""
        self.repair(day)
        self.change(rng, day)
        before = self.player.seen
        first, second = self.player.worker(0), self.player.worker(1)
        step = rng.choice(("reading-database", "writing-file", "publishing"))
        replaces = rng.random() < 0.3
        first.begin(self.player.command("export_daily_pageviews", day, stop=Stop(step), replace=replaces))
        ended = first.wait_for_step()
        touched = self.anything(rng, day)
        answers = [self.player.finished(second.call(self.player.command("export_daily_pageviews", day)), 1)]
        if ended is None:
            first.go_on()
            ended = first.finish()
        answers.append(self.player.finished(ended))
        self._expect_done(answers[0])
        if replaces and not answers[1].done:  # the other one has stored rows that are in the table no more
            self.player.expect_error(answers[1], *self._refusals(before, day))
        else:
            self._expect_done(answers[1])
        self.player.expect_exported(before, day, answers, touched)
        return f"{sorted(touched)} touched at {step}: {' / '.join(map(str, answers))}"

    def replace(self, rng: Random, day: Day) -> str:
        self.repair(day)
        before = self.player.seen
        table = before.of(day)
        answer = self.player.export(day, replace=True, allow_empty=True)
        kept = [self.player.staying(before, day, base).keys() - table.keys() for base in self.player.bases(before, day)]
        refusals = self._refusals(before, day)
        if (any(kept) or "IdConflict" in refusals) and not answer.done:
            self.player.expect_error(answer, *refusals)
            self.player.expect_exported(before, day, [answer], replace=True)
            return f"refused for {len(kept[0])} stored rows: {answer}"
        self._expect_done(answer)
        if kept[0]:
            raise Violation(f"a replacement was not refused though it drops {kept[0]}")
        self.player.expect_exported(before, day, [answer], replace=True)
        return str(answer)

    def _refusals(self, before: Seen, day: Day) -> list[str]:
        """Stored rows that the table has no more, or of which a broken-off deletion left open whether it has."""
        undecided = day in before.files and before.files[day].undecided
        return ["InvalidInput", "IdConflict"] if undecided else ["InvalidInput"]

    def discard_stored(self, rng: Random, day: Day) -> str:
        self.repair(day)
        self.site.insert(rng, day, 3)
        before = self.player.look()
        dropped = self._discardable(before, day)
        answer = self.player.export(day, replace=True, discard_stored=True)
        self._expect_done(answer)
        self.player.expect_exported(before, day, [answer], discard=True)
        self.player.invariant.discardable.pop(day, None)
        return f"{len(dropped)} dropped: {answer}"

    def killed_while_discarding(self, rng: Random, day: Day) -> str:
        self.stored(rng, day)
        self.repair(day)
        self.change(rng, day)
        before = self.player.seen
        dropped = self._discardable(before, day)
        stop = Stop(rng.choice(("publishing", "published")), dies_after=rng.random() * 0.01)
        answer = self.player.export(day, discard_stored=True, stop=stop)
        self.player.expect_exported(before, day, [answer], discard=True)
        if not answer.killed:
            self.player.restart()  # it may be about to die
        return f"{len(dropped)} may be dropped: {answer}"

    def _discardable(self, before: Seen, day: Day) -> set[int]:
        """The stored rows that are nowhere in the table, which may be dropped from now on."""
        dropped = {id for base in self.player.bases(before, day) for id in base} - before.table.keys()
        self.player.invariant.discardable[day] = dropped
        return dropped

    # Deletions

    def delete_beside_writes(self, rng: Random, day: Day) -> str:
        self.make_deletable(rng, day, rng.choice((1, 2 * BATCH_ROWS)))
        before = self.player.seen
        step = rng.choice(DELETE_STEPS[:-1])
        answer, touched = self._with_writes(rng, day, "delete_exported_pageviews", step)
        self._expect_done(answer)
        self.player.expect_deleted(before, day, answer, touched)
        return f"{sorted(touched)} touched at {step}: {answer}"

    def delete_beside_locks(self, rng: Random, day: Day) -> str:
        self.make_deletable(rng, day)
        before = self.player.seen
        held = self._some(rng, day)
        with psycopg.connect(self.site.url) as other:
            other.execute("SELECT 1 FROM analytics_pageview WHERE id = ANY(%s) FOR UPDATE", (held,))
            answer = self.player.delete(day)
            other.rollback()
        self._expect_done(answer)
        self.player.expect_deleted(before, day, answer, locked=held)
        return f"{held} held: {answer}"

    def delete_beside_export(self, rng: Random, day: Day) -> str:
        self.repair(day)
        self.make_deletable(rng, day)
        touched = self.site.count_views(rng, self._some(rng, day))
        before = self.player.look()
        first, second = self.player.worker(0), self.player.worker(1)
        first.begin(self.player.command("delete_exported_pageviews", day))
        second.begin(self.player.command("export_daily_pageviews", day))
        touched |= self.anything(rng, day)
        deletion = self.player.finished(first.finish())
        export = self.player.finished(second.finish(), 1)
        self._expect_done(export)
        self._expect_deletion_over(deletion, before, day)
        self.player.expect_deleted(before, day, deletion, before.of(day).keys() | touched)
        self.player.expect_exported(before, day, [export], touched, alone=False, undecided=True)
        return f"{sorted(touched)} touched: {deletion} / {export}"

    def deletion_overtaken(self, rng: Random, day: Day) -> str:
        """Another child exports newer rows while a deletion is under way."""
        self.repair(day)
        self.make_deletable(rng, day, 2 * BATCH_ROWS)
        self.change(rng, day)
        before = self.player.seen
        first, second = self.player.worker(0), self.player.worker(1)
        stop = Stop(rng.choice(DELETE_STEPS), rng.randint(1, 2))
        first.begin(self.player.command("delete_exported_pageviews", day, stop=stop))
        ended = first.wait_for_step()
        export = self.player.finished(second.call(self.player.command("export_daily_pageviews", day)), 1)
        touched = self.anything(rng, day)
        if ended is None:
            first.go_on()
            ended = first.finish()
        deletion = self.player.finished(ended)
        self._expect_done(export)
        self._expect_deletion_over(deletion, before, day)
        self.player.expect_deleted(before, day, deletion, before.of(day).keys() | touched)
        self.player.expect_exported(before, day, [export], touched, alone=False, undecided=True)
        return f"{stop}, {sorted(touched)} touched: {deletion} / {export}"

    def two_deletions_at_once(self, rng: Random, day: Day) -> str:
        self.make_deletable(rng, day, 2 * BATCH_ROWS)
        before = self.player.seen
        command = self.player.command("delete_exported_pageviews", day)
        workers = [self.player.worker(number) for number in (0, 1)]
        for worker in workers:
            worker.begin(command)
        answers = [self.player.finished(worker.finish(), number) for number, worker in enumerate(workers)]
        deleted = 0
        for answer in answers:
            self._expect_done(answer)
            assert answer.result is not None
            deleted += answer.result["deleted"]
        exact = deletable(before.stored(day), before.of(day))
        now = self.player.look()
        if before.of(day).keys() - now.of(day).keys() != exact or deleted != len(exact):
            raise Violation(f"{len(exact)} rows were to be deleted, not {deleted}: {' / '.join(map(str, answers))}")
        return " / ".join(map(str, answers))

    def delete_what_was_verified(self, rng: Random, day: Day) -> str:
        """A deletion that is told which version of the file was verified refuses any other."""
        self.make_deletable(rng, day)
        self.repair(day)
        early = self.player.export(day)
        self._expect_done(early)
        self.player.look()
        self.change(rng, day)
        late = self.player.export(day)
        self._expect_done(late)
        self.player.look()
        self.settle(rng, day)
        before = self.player.seen
        refused = self.player.delete(day, verification=early.result)
        self.player.expect_error(refused, "DeletionRefused")
        self.player.expect_deleted(before, day, refused)
        answer = self.player.delete(day, verification=late.result)
        self._expect_done(answer)
        self.player.expect_deleted(before, day, answer)
        return f"{refused}; {answer}"

    # Looking

    def verify(self, rng: Random, day: Day) -> str:
        before = self.player.seen
        command = self.player.command("verify", day, against=rng.choice((None, "database", "database")))
        answer = self.player.finished(self.player.worker().call(command))
        if day not in before.files:
            self.player.expect_error(answer, "DayNotStored")
            return str(answer)
        self._expect_done(answer)
        assert answer.result is not None
        stored, table = before.stored(day), before.of(day)
        statuses = [row.status for row in stored.values()]
        truth: dict[str, object] = {
            "total_records": len(stored),
            "total_views": sum(row.view_count for row in stored.values()),
            "statuses": {status: statuses.count(status) for status in set(statuses)},
            "run_id": before.files[day].run_id,
        }
        if command.arguments["against"]:
            truth |= {
                "missing_ids": sorted(id for id in table.keys() - stored.keys() if table[id].fits),
                "changed_ids": sorted(id for id in table.keys() & stored.keys() if table[id] != stored[id]),
                "archive_only_ids": sorted(stored.keys() - table.keys()),
            }
        wrong = {name: (answer.result[name], value) for name, value in truth.items() if answer.result[name] != value}
        if wrong and not self.player.sent.get(day):
            raise Violation(f"verify says otherwise than the file and the table (said, is): {wrong}")
        self.player.look()
        return f"{len(stored)} rows as said"

    # Days and rows of other kinds

    def next_day(self, rng: Random, day: Day) -> str:
        """A day is finished, and another one begins; some have no rows at first."""
        self.repair(day)
        self.days.remove(day)
        said = self.export(rng, day)
        if self.player.seen.of(day):
            said += "; " + self.delete(rng, day)
        new = self.open_day()
        if rng.random() < 0.6:
            self.site.insert(rng, new, rng.randint(10, 30))
        self.player.look()
        return f"{day} ends: {said}; {new} begins"

    def empty_day(self, rng: Random, day: Day) -> str:
        """Before the first day there is no history to be empty in."""
        empty = Day.fromordinal(self.first.toordinal() - 1 - rng.randrange(1000))
        answer = self.player.export(empty)
        self.player.expect_error(answer, "DayHasNoRows")
        self.player.look()
        return str(answer)

    def bad_row(self, rng: Random, day: Day) -> str:
        self.repair(day)
        self.site.insert(rng, day, 2)
        spoiled = self.site.spoil(self._some(rng, day, 2) or self.site.insert(rng, day, 1))
        before = self.player.look()
        file = before.files.get(day)
        answer = self.player.export(day)
        self.player.expect_error(answer, "BadRow")
        self.player.expect_exported(before, day, [answer])
        if rng.random() < 0.5:
            return str(answer)
        left = self.player.export(day, on_bad_row="leave", allow_empty=True)
        self._expect_done(left)
        self.player.expect_exported(before, day, [left])
        assert left.result is not None
        said = {row["id"] for row in left.result["left_rows"]}
        # Beside them, those that wait for the end of a deletion.
        if said != spoiled and not (file is not None and file.undecided and said >= spoiled):
            raise Violation(f"left in the database: {spoiled}, but said: {said}")
        return str(left)

    def reused_id(self, rng: Random, day: Day) -> str:
        """A restored database gives an id of a stored row to another page: nothing of it is stored or deleted."""
        self.repair(day)
        self.make_deletable(rng, day)
        self.delete(rng, day)
        before = self.player.seen
        row = rng.choice([row for id, row in before.stored(day).items() if id not in before.table])
        self.site.reuse_id(row)
        export = self.player.export(day)
        delete = self.player.delete(day)
        if not self.site.forget_reused(row.id):
            raise Violation(f"the row that reused the id of {row} was deleted")
        self.player.expect_error(export, "IdConflict")
        assert export.error is not None
        if export.error.row_id != row.id:
            raise Violation(f"the conflict is with {row.id}, but said to be with {export.error.row_id}")
        self._expect_done(delete)
        self.player.expect_exported(before, day, [export])
        return str(export)

    # Rows that move, slugs that are handed on

    def moved_before_deletion(self, rng: Random, day: Day) -> str:
        """Rows that an older file has too are not deleted before that one is exported again; then they count once."""
        self.repair(day)
        other = self._another_day(rng, day)
        self.repair(other)
        ids = self.site.insert(rng, other, rng.randint(1, 4))
        self.player.look()
        self.export(rng, other)
        moved = self.site.move_rows(ids, day)
        self.player.look()
        self.export(rng, day)
        before = self.player.seen
        refused = self.player.delete(day)
        self.player.expect_error(refused, "DeletionRefused")
        assert refused.error is not None
        if set(refused.error.export_first) != before.shared(day).keys():
            raise Violation(f"{before.shared(day)} are shared, but the refusal is {refused}")
        before = self.player.expect_deleted(before, day, refused)
        exported = self.settle(rng, day)
        before = self.player.seen
        answer = self.player.delete(day)
        self._expect_done(answer)
        self.player.expect_deleted(before, day, answer)
        return f"rows {sorted(moved)} from {other}: {refused}; after the export of {exported}: {answer}"

    def hand_over_slug(self, rng: Random, day: Day) -> str:
        """A project gets another slug, and another project its old one: each copy is that of the file's rows."""
        self.repair(day)
        first, second = rng.sample(self.site.projects, 2)
        for _ in range(2):
            self.change(rng, day)
            before = self.player.seen
            answer = self.player.export(day, per_project=True)
            self._expect_done(answer)
            now = self.player.expect_exported(before, day, [answer])
            self.player.expect_copies(now, day, answer)
            file = now.files[day]
            old_ones = [
                row
                for id, row in before.of(day).items()
                if file.rows.get(id) == row and file.slugs[id][0] != self.site.slugs[row.project_id][-1]
            ]
            if old_ones:
                raise Violation(f"{file} has slugs of before: {old_ones}")
            old, new = self.site.hand_over(first, second)
        self.player.look()
        return f"{old} of {first} is {second}'s, and {first} is {new}: {answer}"

    # Deaths

    def killed_at(self, rng: Random, day: Day, step: str) -> str:
        delay = rng.choice((0.0, 0.0, rng.random() * 0.01, rng.random() * 0.03))
        occurrence = rng.randint(1, 2) if step in BATCH_STEPS else 1
        return self._killed(rng, day, Stop(step, occurrence, delay), step in DELETE_STEPS)

    def killed_some_time(self, rng: Random, day: Day) -> str:
        return self._killed(rng, day, Stop(None, dies_after=rng.random() * 0.12), rng.random() < 0.5)

    def _killed(self, rng: Random, day: Day, stop: Stop, deletion: bool) -> str:
        self.repair(day)
        copies = stop.step in COPY_STEPS or rng.random() < 0.1
        for delay in (stop.dies_after, 0.0):  # the second when the call was over sooner
            stop = replace(stop, dies_after=delay)
            if deletion:
                self.make_deletable(rng, day, 2 * BATCH_ROWS + 3)
                before = self.player.seen
                answer = self.player.delete(day, stop=stop)
                now = self.player.expect_deleted(before, day, answer)
            else:
                self.change(rng, day)
                before = self.player.seen
                answer = self.player.export(day, stop=stop, per_project=copies)
                now = self.player.expect_exported(before, day, [answer])
            if answer.killed:
                break
            self.player.restart()  # it may be about to die
        said = f"{stop}: {answer}"
        if rng.random() < 0.6:  # what a scheduler would do; otherwise something else comes first
            again = self.player.delete(day) if deletion else self.player.export(day)
            self._expect_done(again)
            if deletion:
                self.player.expect_deleted(now, day, again)
            else:
                self.player.expect_exported(now, day, [again])
            said += f"; again: {again}"
        return said


STEPS = (
    Step("late insert", 140, Steps.insert),
    Step("update", 110, Steps.update),
    Step("project renamed", 35, Steps.rename),
    Step("version deleted", 25, Steps.delete_version),
    Step("deleted by the application", 50, Steps.delete_rows),
    Step("export", 110, Steps.export),
    Step("export beside writes", 50, Steps.export_beside_writes),
    Step("export beside an open transaction", 15, Steps.export_beside_open_transaction),
    Step("two exports at once", 45, Steps.export_twice_at_once),
    Step("export overtaken by another", 25, Steps.export_overtaken),
    Step("replace", 30, Steps.replace),
    Step("replace, discard_stored", 4, Steps.discard_stored),
    Step("killed while discarding", 3, Steps.killed_while_discarding),
    Step("deletion", 55, Steps.delete),
    Step("deletion beside writes", 35, Steps.delete_beside_writes),
    Step("deletion beside locks", 5, Steps.delete_beside_locks),
    Step("deletion beside an export", 20, Steps.delete_beside_export),
    Step("deletion overtaken by an export", 20, Steps.deletion_overtaken),
    Step("two deletions at once", 6, Steps.two_deletions_at_once),
    Step("deletion of what was verified", 8, Steps.delete_what_was_verified),
    Step("merge after deletion", 25, Steps.merge_after_deletion),
    Step("verify", 20, Steps.verify),
    Step("day ends", 15, Steps.next_day),
    Step("empty day refused", 3, Steps.empty_day),
    Step("bad row", 15, Steps.bad_row),
    Step("id used again", 6, Steps.reused_id),
    Step("other database", 4, Steps.other_database),
    Step("other schema", 4, Steps.other_schema),
    Step("database moved", 2, Steps.database_moved),
    Step("row moved", 60, Steps.move),
    Step("row moved, deletion before the old day's export", 10, Steps.moved_before_deletion),
    Step("slug handed on", 8, Steps.hand_over_slug),
    Step("project erased", 10, Steps.erase),
    Step("project erased beside an export", 8, Steps.erase_beside_export),
    Step("project erased beside a deletion", 8, Steps.erase_beside_deletion),
    Step("killed after a while", 25, Steps.killed_some_time),
    *(
        Step(f"killed at {step}", 5, partial(Steps.killed_at, step=step))
        for step in (*EXPORT_STEPS, *COPY_STEPS, *DELETE_STEPS)
    ),
)

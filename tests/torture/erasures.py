"""Projects that are deleted and erased: in quiet, beside other calls, and with rows that come back."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.torture.invariant import Violation
from tests.torture.player import BATCH_ROWS, Day
from tests.torture.site import Row
from tests.torture.story import Story
from tests.torture.worker import COPY_STEPS, DELETE_STEPS, EXPORT_STEPS, Answer, Stop


class Erasures(Story):
    """After each, no object has a row of the project."""

    def erase(self, rng: Random, day: Day) -> str:
        """A project is deleted: nothing stored has a row of it, and a restored database brings none back."""
        self.repair(day)
        self.player.wait_until_landed()
        project = rng.choice(self.site.projects)
        if rng.random() < 0.6:  # copies below a slug that may be another project's by now
            self._expect_done(self.player.export(day, per_project=True))
            self.player.look()
            self.site.rename(rng, project)
        rows = [row for row in self.player.look().stored(day).values() if row.project_id == project]
        gone = self.site.erase(project)
        self._list_erased(0, project)
        before = self.player.look()
        if rng.random() < 0.3:
            export = self.player.export(day)
            self._expect_done(export)
            self.player.expect_exported(before, day, [export])
        for each in self._days_of(project):
            before = self.player.look()
            if rng.random() < 0.2:
                stop = Stop(rng.choice(EXPORT_STEPS), dies_after=rng.choice((0.0, rng.random() * 0.01)))
                before = self.player.expect_erased(before, each, self.player.erase_from_day(each, stop=stop))
                self.player.restart()  # it may be about to die
            answer = self._erase_from_day(each)
            self.player.expect_erased(before, each, answer)
        self._swept(project)
        said = f"project {project} with {len(gone)} rows in the table"
        if rows:
            said += "; " + self._erased_and_restored(rng, day, project, rows)
        return said

    def _erased_and_restored(self, rng: Random, day: Day, project: int, rows: list[Row]) -> str:
        """Rows of an erased project are in the table again: none is stored, and none deleted."""
        self.settle(rng, day)
        before = self.player.seen
        pages = {(row.path, row.status): row for row in rng.sample(rows, min(3, len(rows)))}
        self.site.bring_back(project, pages.values())
        deletes = rng.random() < 0.5
        answer = self.player.delete(day) if deletes else self.player.export(day)
        if (left := self.site.forget_brought_back(project)) != len(pages):
            raise Violation(f"{len(pages)} rows of an erased project were in the table, and {left} are left: {answer}")
        self._expect_done(answer)
        if deletes:
            self.player.expect_deleted(before, day, answer, [row.id for row in pages.values()])
        else:
            self.player.expect_exported(before, day, [answer])
        return f"restored: {answer}"

    def erase_beside_export(self, rng: Random, day: Day) -> str:
        """Whatever an export has read before, it stores no row of a project that is erased meanwhile."""
        self.repair(day)
        self.player.wait_until_landed()
        self.change(rng, day)
        before = self.player.seen
        project = rng.choice(self.site.projects)
        step = rng.choice((*EXPORT_STEPS, *COPY_STEPS))
        copies = step in COPY_STEPS or rng.random() < 0.3
        worker = self.player.worker()
        worker.begin(self.player.command("export_daily_pageviews", day, stop=Stop(step), per_project=copies))
        ended = worker.wait_for_step()
        gone = self._erase_meanwhile(project)
        if ended is None:
            worker.go_on()
            ended = worker.finish()
        export = self.player.finished(ended)
        self._expect_done(export)
        touched = gone | {id for id, row in before.stored(day).items() if row.project_id == project}
        self.player.expect_exported(before, day, [export], touched, alone=False)
        self._swept(project)
        return f"project {project} at {step}: {export}"

    def erase_beside_deletion(self, rng: Random, day: Day) -> str:
        self.make_deletable(rng, day, 2 * BATCH_ROWS)
        self.player.wait_until_landed()
        before = self.player.seen
        project = rng.choice(self.site.projects)
        # At the others it holds rows of the project.
        step = rng.choice([step for step in DELETE_STEPS if step not in ("delete-deleting", "delete-committing")])
        worker = self.player.worker()
        worker.begin(self.player.command("delete_exported_pageviews", day, stop=Stop(step)))
        ended = worker.wait_for_step()
        self._erase_meanwhile(project)
        if ended is None:
            worker.go_on()
            ended = worker.finish()
        deletion = self.player.finished(ended)
        self._expect_deletion_over(deletion, before, day)
        self.player.expect_deleted(before, day, deletion, before.of(day))
        self._swept(project)
        return f"project {project} at {step}: {deletion}"

    def _erase_meanwhile(self, project: int) -> set[int]:
        """By another child."""
        gone = self.site.erase(project)
        self._list_erased(1, project)
        for each in self._days_of(project):
            self._erase_from_day(each, number=1)
        return gone

    def _erase_from_day(self, day: Day, **given: Any) -> Answer:
        answer = self.player.erase_from_day(day, **given)
        if self.player.has_moved and answer.error is not None and "/project/" in answer.error.message:
            # Nobody has said yet of copies from before that the database was moved, only of days.
            self.player.expect_error(answer, "ErasureRefused")
            answer = self.player.erase_from_day(day, accept_moved_database=True, **given)
        self._expect_done(answer)
        return answer

    def _list_erased(self, number: int, project: int) -> None:
        listed = self.player.erase_projects(project, number=number)
        self._expect_done(listed)
        assert listed.result is not None
        if listed.result["found"] != [project]:
            raise Violation(f"project {project} was to be erased, but {listed.result['found']} were")

    def _days_of(self, project: int) -> list[Day]:
        """The days with a file or a copy that has rows of a project."""
        every = self.player.archive.look().values()
        return sorted({file.day for file in every if any(row.project_id == project for row in file.rows.values())})

    def _swept(self, project: int) -> None:
        self.player.invariant.swept.add(project)
        self.player.look()

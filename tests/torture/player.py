"""Runs calls in child processes and judges how they ended: what the file and the table may hold after a call that
succeeded, failed, or died."""

from __future__ import annotations

import datetime
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from parquet_analytics import ParquetAnalyticsQuerier
from psycopg import sql

from tests.archives import Place
from tests.services import S3, Postgres
from tests.torture.archive import Archive, Bucket, Folder, copy_key
from tests.torture.invariant import Invariant, Seen, Violation, deletable, difference, merged, merged_undecided
from tests.torture.site import Row, Rows, Site
from tests.torture.worker import Answer, Command, Stop, Worker

Day = datetime.date

# Small, so that a deletion has several transactions.
BATCH_ROWS = 7

# So long may a server take to store what it received from a client that is gone.
LANDS_WITHIN = 5.0


class Player:
    """One database, one place in the store, and children that work on them."""

    def __init__(self, postgres: Postgres, archive: Archive, url: str, options: dict[str, str]) -> None:
        self.postgres = postgres
        self.archive = archive
        self.url = url
        self.options = options
        self.folder = tempfile.TemporaryDirectory(prefix="parquet-analytics-torture-")
        self.site = Site(postgres.create_database())
        self.invariant = Invariant(self.site, archive, Path(self.folder.name))
        self.seen = Seen()
        self.workers: list[Worker] = []
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.deleted = 0
        self.has_moved = False
        # Files that a call may have sent which failed or died, and until when they may land: until another one does,
        # or some seconds have gone by.
        self.sent: dict[Day, list[tuple[Rows, float]]] = {}

    @classmethod
    def on_s3(cls, postgres: Postgres, s3: S3) -> Player:
        place = Place(s3, s3.bucket, f"torture-{uuid.uuid4()}")
        return cls(postgres, Bucket(s3.client(), s3.bucket, place.location), place.url, place.options())

    @classmethod
    def on_folder(cls, postgres: Postgres, folder: Path) -> Player:
        return cls(postgres, Folder(folder), folder.as_uri(), {})

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.site.close()
        self.postgres.drop_database(self.site.url)
        self.folder.cleanup()

    def querier(self) -> ParquetAnalyticsQuerier:
        return ParquetAnalyticsQuerier(self.url, storage_options=self.options or None)

    def move_database(self) -> None:
        """The site goes on with a copy of its database."""
        old = self.site.url
        new = f"moved_{uuid.uuid4().hex}"

        def copy() -> str:
            with psycopg.connect(self.postgres.url, autocommit=True) as connection:
                names = (sql.Identifier(new), sql.Identifier(old.rsplit("/", 1)[1]))
                connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
            return self.postgres.database_url(new)

        self.wait_until_quiet()
        self.site.move(copy)
        self.postgres.drop_database(old)
        self.has_moved = True

    # Calls

    def worker(self, number: int = 0) -> Worker:
        while len(self.workers) <= number:
            self.workers.append(Worker())
        return self.workers[number]

    def command(
        self,
        method: str,
        day: Day | None,
        *,
        stop: Stop | None = None,
        options: dict[str, str] | None = None,
        source: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Command:
        """`options` are of the store, `source` of the database, where they are not the usual ones. What concerns the
        whole store has no day."""
        if day is not None:
            arguments["target_date"] = day.isoformat()
        if method == "delete_exported_pageviews":
            arguments = {"batch_rows": BATCH_ROWS} | arguments
            if self.url.startswith("file:"):
                arguments["allow_local_delete"] = True
        exporter = {
            "storage": self.url,
            "storage_options": self.options | (options or {}),
            "temp_dir": self.folder.name,
        }
        return Command(method, arguments, exporter, {"url": self.site.url} | (source or {}), stop)

    def export(self, day: Day, **given: Any) -> Answer:
        return self._call("export_daily_pageviews", day, given)

    def delete(self, day: Day, **given: Any) -> Answer:
        return self._call("delete_exported_pageviews", day, given)

    def erase_projects(self, *projects: int, **given: Any) -> Answer:
        """Puts projects on the list of erased ones."""
        slugs = {project: self.site.slugs[project][-1] for project in projects}
        return self._call("erase_projects", None, given | {"projects": slugs})

    def erase_from_day(self, day: Day, **given: Any) -> Answer:
        """Takes the rows of erased projects out of a day's file and its copies, under whatever slug."""
        slugs = sorted({slug for project in self.site.erased for slug in self.site.slugs[project]})
        return self._call("erase_from_day", day, given | {"slugs": slugs})

    def call(self, method: str, day: Day | None = None, **given: Any) -> Answer:
        return self._call(method, day, given)

    def _call(self, method: str, day: Day | None, given: dict[str, Any]) -> Answer:
        number = given.pop("number", 0)
        command = self.command(method, day, **given)
        return self.finished(self.worker(number).call(command), number, command.stop)

    def finished(self, answer: Answer, number: int = 0, stop: Stop | None = None) -> Answer:
        """Counts an answer; and when the child died, waits until the database noticed."""
        if answer.result is not None:
            self.outcomes[
                str(answer.result.get("outcome", "deleted" if "deleted" in answer.result else "verified"))
            ] += 1
        elif answer.error is not None:
            self.errors[answer.error.name] += 1
            if answer.error.name == "DatabaseError":
                self.wait_until_quiet()  # what was cut off may hold its locks for another moment
            if not answer.error.typed or answer.error.name == "InternalError":
                raise Violation(f"a call failed with {answer}")
        if answer.killed:
            last = answer.steps[-1] if answer.steps else "the start"
            self.killed[(stop and stop.step) or last] += 1
            self.restart(number)
        return answer

    def restart(self, number: int = 0) -> None:
        """Kills the child, if it lives, and has another one take its place."""
        self.workers[number].close()
        self.workers[number] = Worker()
        self.wait_until_quiet()

    def wait_until_quiet(self) -> None:
        """Until no backend works for others: a server goes on for a moment with what a dead client asked for."""
        deadline = time.monotonic() + 20
        busy = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND state <> 'idle'"
        )
        while self.site.connection.execute(busy).fetchone() != (0,):
            if time.monotonic() > deadline:
                raise Violation("backends of calls that ended go on working")
            time.sleep(0.003)

    def look(self) -> Seen:
        before, self.seen = self.seen, self.invariant.check()
        for day, file in self.seen.files.items():
            if file is not before.files.get(day):
                self.sent.pop(day, None)
        self.deleted += len(before.table.keys() - self.seen.table.keys() - self.site.deleted)
        return self.seen

    def wait_until_landed(self) -> None:
        """Until no file can arrive any more that a call sent which failed or died."""
        until = max((until for sent in self.sent.values() for _, until in sent), default=0.0)
        time.sleep(max(0.0, until - time.monotonic()))
        self.look()
        self.sent.clear()

    # Judgement

    def staying(self, before: Seen, day: Day, stored: Rows) -> Rows:
        """Those of stored rows that an export of the day leaves there: neither erased, nor on another date by now."""
        moved = before.moved(day, stored)
        return {id: row for id, row in stored.items() if id not in moved and row.project_id not in self.site.erased}

    def bases(self, before: Seen, day: Day) -> list[Rows]:
        """What may have been stored when a call began."""
        return [before.stored(day), *self._underway(day)]

    def _underway(self, day: Day) -> list[Rows]:
        return [rows for rows, until in self.sent.get(day, ()) if time.monotonic() < until]

    def expect_exported(
        self,
        before: Seen,
        day: Day,
        answers: Sequence[Answer],
        touched: Iterable[int] = (),
        *,
        replace: bool = False,
        discard: bool = False,
        alone: bool = True,
        undecided: bool = False,
        lands_within: float | None = None,
    ) -> Seen:
        """After exports of a day. `touched` are rows that the application changed meanwhile: they may be in the file
        as they were before or after. A write that nobody waits for any more may take `lands_within` seconds. An
        export that was not `alone` may count otherwise than it would have before. With `undecided`, a deletion goes on
        or was broken off, and rows that changed wait for the next one."""
        bases, table, ignored = self.bases(before, day), before.of(day), set(touched)
        stay = [self.staying(before, day, base) for base in bases]
        good = {id: row for id, row in table.items() if row.fits}
        undecided = undecided or (day in before.files and before.files[day].undecided)
        afterwards = [good] if replace or discard else [merged(rows, table) for rows in stay]
        if undecided and not discard:
            afterwards += [merged_undecided(rows, table) for rows in stay]
        now = self.look()
        found = now.stored(day)
        if any(answer.done for answer in answers):
            allowed = afterwards
            if day not in now.files:
                raise Violation(f"{day} was exported, but there is no file")
        elif any("publishing" in answer.steps for answer in answers):
            allowed = [*bases, *afterwards]
            if now.files.get(day) is before.files.get(day):
                until = time.monotonic() + (lands_within or LANDS_WITHIN)
                self.sent.setdefault(day, []).extend((rows, until) for rows in afterwards)
        else:
            allowed = bases
        if not any(_same(found, choice, ignored) for choice in allowed):
            raise Violation(f"{now.files.get(day)} after {[str(a) for a in answers]}: {difference(found, allowed[-1])}")
        if alone and len(answers) == 1 and len(bases) == 1 and answers[0].result is not None and not ignored:
            # What is discarded is not compared: every row is new then.
            stored = {} if discard else before.stored(day)
            self._check_numbers(before, now, day, answers[0].result, stored, good, undecided=undecided)
        return now

    def _check_numbers(
        self, before: Seen, now: Seen, day: Day, result: dict[str, Any], stored: Rows, good: Rows, *, undecided: bool
    ) -> None:
        file = now.files[day]
        truth: dict[str, Any] = {
            "date": day.isoformat(),
            "total_records": len(file.rows),
            "total_views": sum(row.view_count for row in file.rows.values()),
            "added": len(good.keys() - stored.keys()),
            "changed": sum(1 for id in good.keys() & stored.keys() if good[id] != stored[id]),
            "moved": len(before.moved(day, stored)),
            "left": len(before.of(day)) - len(good),
            "run_id": file.run_id,
            "verified": True,
        }
        if self.archive.knows_etags:
            truth["etag"] = file.etag
        if undecided:
            del truth["changed"], truth["left"]
        elif result["outcome"] != "replaced" and not truth["left"]:
            truth["kept"] = len(self.staying(before, day, stored).keys() - good.keys())
        wrong = {name: (result.get(name), value) for name, value in truth.items() if result.get(name) != value}
        wrote = file is not before.files.get(day)
        same = now.stored(day) == before.stored(day) and day in before.files
        # The same rows may be written anew, to say that they were seen again.
        unchanged = result["outcome"] == "unchanged"
        if (wrote and unchanged and not same) or not (wrote or unchanged):
            wrong["outcome"] = (result["outcome"], "a new file" if wrote else "the same file")
        if wrong:
            raise Violation(f"the result says otherwise than the file (said, is): {wrong}")

    def expect_deleted(
        self, before: Seen, day: Day, answer: Answer, touched: Iterable[int] = (), locked: Iterable[int] = ()
    ) -> Seen:
        """After a deletion. `touched` are rows that the application changed meanwhile, `locked` those it held."""
        stored, table, ignored, held = before.stored(day), before.of(day), set(touched), set(locked)
        exact = deletable(stored, table)
        underway = self._underway(day)
        now = self.look()
        gone = table.keys() - now.of(day).keys() - self.site.deleted
        if gone - exact - ignored and not underway:
            raise Violation(f"deleted, but not as stored: {[(table[id], stored.get(id)) for id in gone - exact]}")
        if answer.result is None or underway:
            return now
        if gone - ignored != exact - ignored - held:
            left = [table[id] for id in exact - gone - ignored - held]
            raise Violation(f"not deleted, though stored, unchanged and free: {left}; {answer}")
        result = answer.result
        if ignored:
            return now
        changed = sorted(id for id, row in table.items() if id in stored and stored[id] != row)
        late = sorted(id for id, row in table.items() if id not in stored and row.fits)
        bad = sum(1 for row in table.values() if not row.fits)
        truth = {"deleted": len(gone), "changed_ids": changed, "late_ids": late}
        if self.archive.knows_etags:
            truth["etag"] = now.files[day].etag
        if not held:
            truth |= {"changed": len(changed), "late": len(late), "left": bad, "busy": 0}
        elif not len(exact & held) <= result["busy"] <= len(held):
            raise Violation(f"{result['busy']} rows are said to be locked, not {len(held)}")
        else:
            truth = {"deleted": len(gone)}
        wrong = {name: (result.get(name), value) for name, value in truth.items() if result.get(name) != value}
        if wrong:
            ids = {*changed, *late, *result["changed_ids"], *result["late_ids"]}
            raise Violation(
                f"the result of the deletion says otherwise than the table (said, is): {wrong}; "
                f"the rows (stored, in the table): {[(stored.get(id), table.get(id)) for id in ids]}"
            )
        return now

    def expect_copies(self, now: Seen, day: Day, answer: Answer) -> None:
        """After an export with a copy for each project: each has exactly the rows that the file has below its slug."""
        file = now.files[day]
        expected: dict[str, Rows] = {}
        for id, (slug, _) in file.slugs.items():
            expected.setdefault(slug, {})[id] = file.rows[id]
        for slug, rows in expected.items():
            copy = now.objects.get(copy_key(slug, day))
            if copy is None or copy.rows != rows:
                raise Violation(f"the copy of {slug} on {day} is {copy}, not {len(rows)} rows")
        assert answer.result is not None
        if answer.result["project_files"] != len(expected):
            raise Violation(f"{len(expected)} projects have rows on {day}, but {answer.result['project_files']} copies")

    def expect_erased(self, before: Seen, day: Day, answer: Answer) -> Seen:
        """After the rows of erased projects were to be taken out of a day: nothing else has changed."""
        now = self.look()
        stored, found = before.stored(day), now.stored(day)
        left = {id: row for id, row in stored.items() if row.project_id not in self.site.erased}
        if found != left and (answer.done or found != stored):
            raise Violation(f"{now.files.get(day)} after {answer}: {difference(found, left)}")
        if not answer.done and "publishing" in answer.steps and now.files.get(day) is before.files.get(day):
            self.sent.setdefault(day, []).append((left, time.monotonic() + LANDS_WITHIN))
        for key, file in before.objects.items():
            may_change = file.day == day and any(row.project_id in self.site.erased for row in file.rows.values())
            if now.objects.get(key) is not file and not may_change:
                raise Violation(f"{file} was changed, though it has no row of an erased project")
        return now

    def expect_error(self, answer: Answer, *names: str) -> None:
        if answer.error is None or answer.error.name not in names:
            raise Violation(f"{' or '.join(names)} was expected, not {answer}")


def _same(found: Rows, expected: Rows, ignored: set[int]) -> bool:
    if not ignored:
        return found == expected

    def without(rows: dict[int, Row]) -> Rows:
        return {id: row for id, row in rows.items() if id not in ignored}

    return without(found) == without(expected)

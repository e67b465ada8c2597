"""The seeded sequence of steps, the check after each, and the report."""

from __future__ import annotations

import datetime
import time
from collections import Counter, deque
from collections.abc import Callable
from random import Random

from tests.services import S3, Postgres
from tests.torture.faults import FAULTS, Faults
from tests.torture.invariant import Violation
from tests.torture.player import Player
from tests.torture.steps import STEPS, Step
from tests.torture.worker import COPY_STEPS, DELETE_STEPS, EXPORT_STEPS, Hangs

FIRST_DAY = datetime.date(2024, 1, 1)
DAYS_AT_ONCE = 3
SHOWN_STEPS = 20

# Without these a run of any length has not shown what it is for.
DEATHS = (*EXPORT_STEPS, *COPY_STEPS, *DELETE_STEPS)


def plan(seed: int, steps: int) -> list[Step]:
    """Every step once, the rest by weight, in an order that the seed decides."""
    every = [*STEPS, *FAULTS]
    rng = Random(f"{seed} plan")
    chosen = [*every, *rng.choices(every, [step.weight for step in every], k=max(0, steps - len(every)))]
    rng.shuffle(chosen)
    return chosen


class Report:
    """What happened, as text."""

    def __init__(self, seed: int, planned: int) -> None:
        self.seed = seed
        self.planned = planned
        self.steps: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=SHOWN_STEPS)
        self.seconds = 0.0
        self.player: Player | None = None
        self.story: Faults | None = None
        self.violation: str | None = None

    @property
    def never_hit(self) -> list[str]:
        assert self.player is not None
        assert self.story is not None
        faults = [fault for fault, hits in self.story.hits.items() if not hits]
        deaths = [f"killed at {step}" for step in DEATHS if not self.player.killed[step]]
        return [*faults, *deaths]

    def __str__(self) -> str:
        player, story = self.player, self.story
        assert player is not None
        assert story is not None
        done = sum(self.steps.values())
        site, totals = player.site, player.invariant.totals
        lines = [
            f"torture, seed {self.seed}: {done} steps in {self.seconds:.0f} s, the state checked {totals.checks} times",
            f"  steps: {_counted(self.steps)}",
            f"  calls that ended well: {_counted(player.outcomes)}",
            f"  calls that failed: {_counted(player.errors)}",
            f"  faults that were hit: {_counted(story.hits)}",
            f"  children killed at: {_counted(player.killed)}",
            f"  rows: {len(site.versions)} committed in {sum(map(len, site.versions.values()))} states, "
            f"{len(site.deleted)} deleted by the application, {len(site.discarded)} discarded on purpose, "
            f"{player.deleted} deleted after their export",
            f"  files: {len(player.seen.files)} days, {player.archive.decoded} versions of objects read",
            f"  rows lost: {totals.lost}",
            f"  rows doubled: {totals.doubled}",
        ]
        if self.violation is not None:
            lines += [f"  VIOLATION in step {done} of seed {self.seed}: {self.violation}", "  the last steps:"]
            lines += [f"    {step}" for step in self.last]
        elif self.never_hit:
            lines.append(f"  NEVER HIT: {', '.join(self.never_hit)}")
        lines.append(f"  again: make torture N={self.planned} SEED={self.seed}")
        return "\n".join(lines)

    @property
    def passed(self) -> bool:
        return self.violation is None and not self.never_hit


def run(postgres: Postgres, s3: S3, steps: int, seed: int, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Takes the steps until one of them breaks a promise. The report says which, and how to see it again."""
    report = Report(seed, steps)
    started = time.monotonic()
    player = report.player = Player.on_s3(postgres, s3)
    story = report.story = Faults(player, FIRST_DAY)
    try:
        for _ in range(DAYS_AT_ONCE):
            player.site.insert(Random(f"{seed} first rows"), story.open_day(), 30)
        player.look()
        for number, step in enumerate(plan(seed, steps), 1):
            rng = Random(f"{seed} {number}")
            day = rng.choice(story.days)
            report.steps[step.name] += 1
            report.last.append(f"{number} {day} {step.name}: (under way)")
            before = time.monotonic()
            said = step.take(story, rng, day)
            report.last[-1] = f"{number} {day} {step.name}: {said}"
            tell(f"{time.monotonic() - before:6.3f} s  {report.last[-1]}")
        _finish(player, story)
    except (Violation, Hangs) as violation:
        report.violation = str(violation)
    finally:
        report.seconds = time.monotonic() - started
        story.close()
        player.close()
    return report


def _finish(player: Player, story: Faults) -> None:
    """At last everything is exported once more, undisturbed: then the files alone are the truth."""
    story.release()
    player.restart()
    rng = Random(0)
    days = sorted({*story.days, *player.seen.files, *(row.date for row in player.seen.table.values())})
    for day in days:
        story.repair(day)
        story.export(rng, day)
        if day in player.seen.files and player.seen.files[day].undecided:
            # What a deletion that was broken off has left open, the next one decides.
            story.delete(rng, day)
    for day in days:
        story.repair(day)
        story.export(rng, day)
    seen, site = player.seen, player.site
    for day, file in seen.files.items():
        if seen.shared(day) or seen.moved(day, file.rows):
            raise Violation(f"after the last export {day} has rows that are elsewhere: {seen.shared(day)}")
    for id in site.kept():
        last = site.last(id)
        if seen.stored(last.date).get(id) != last:
            raise Violation(f"after the last export {last} is not stored")
    views = sum(row.view_count for file in seen.files.values() for row in file.rows.values())
    asked = player.querier().sql("SELECT sum(view_count) FROM pageviews", since=FIRST_DAY, until=max(seen.files))
    if asked.column(0).to_pylist() != [views]:
        raise Violation(f"the querier counts {asked.column(0).to_pylist()} views, the files {views}")
    if uploads := player.archive.unfinished_uploads():
        raise Violation(f"unfinished uploads: {uploads}")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

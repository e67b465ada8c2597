"""SIGKILL at every named step of an export with merge and copies, and of the deletion after it; then all of it again.

The child kills itself as it logs the step, or up to 30 milliseconds after that.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.services import S3, Postgres
from tests.torture.archive import Folder
from tests.torture.player import BATCH_ROWS, Day, Player
from tests.torture.worker import BATCH_STEPS, COPY_STEPS, DELETE_STEPS, EXPORT_STEPS, Answer, Stop

STEPS = (*EXPORT_STEPS, *COPY_STEPS, *DELETE_STEPS)
FIRST_DAY = datetime.date(2024, 1, 1)
DAYS = 5
# Three batches.
ROWS = 3 * BATCH_ROWS

FULL = [pytest.mark.full, pytest.mark.timeout(1800)]


def sweep(player: Player, moments: int, tell: Callable[[object], None]) -> None:
    rng = Random(0)
    hit: Counter[str] = Counter(dict.fromkeys(STEPS, 0))
    last: Counter[str] = Counter()
    days = [Day.fromordinal(FIRST_DAY.toordinal() + number) for number in range(DAYS)]
    for number in range(moments):
        step = STEPS[number % len(STEPS)]
        occurrence = rng.randint(1, 3) if step in BATCH_STEPS else 1
        delay = rng.choice((0.0, rng.random() * 0.005, rng.random() * 0.03))
        while not (died := killed(player, rng, days[number % DAYS], Stop(step, occurrence, delay))).killed:
            delay = delay / 2 if delay > 0.001 else 0.0  # the call was over before that
        hit[step] += 1
        last[died.steps[-1]] += 1
    site = player.site
    assert not site.rows()
    stored = {id: row for file in player.seen.files.values() for id, row in file.rows.items()}
    lost = [id for id in site.versions.keys() - site.deleted if stored.get(id) != site.last(id)]
    doubled = sum(len(file.rows) for file in player.seen.files.values()) - len(stored)
    tell(
        f"killed {sum(hit.values())} times: {_counted(hit)}\n  the last step that was reached: {_counted(last)}\n"
        f"  {len(site.versions)} rows, lost: {len(lost)}, doubled: {doubled}"
    )
    assert sum(hit.values()) == moments
    assert min(hit.values()) >= moments // len(STEPS)
    assert (lost, doubled) == ([], 0)
    assert player.deleted == len(site.versions) - len(site.deleted)
    assert player.archive.unfinished_uploads() == []


def killed(player: Player, rng: Random, day: Day, stop: Stop) -> Answer:
    """One death, and everything again afterwards."""
    site = player.site
    site.insert(rng, day, ROWS)
    if day not in player.look().files or rng.random() < 0.5:
        export(player, day)
        changed = rng.sample(sorted(player.seen.of(day)), 6)
        site.count_views(rng, changed[:4])
        site.delete(changed[4:])
        site.insert(rng, day, 4)
        player.look()
    if stop.step in DELETE_STEPS:
        assert export(player, day).done
        died = delete(player, day, stop)
    else:
        died = export(player, day, stop)
    if not died.killed:
        player.restart()  # it may be about to die
    if rng.random() < 0.5:
        site.insert(rng, day, 2)
        player.look()
    assert export(player, day).done
    assert delete(player, day).done
    assert not player.seen.of(day)
    return died


def export(player: Player, day: Day, stop: Stop | None = None) -> Answer:
    before = player.seen
    answer = player.export(day, stop=stop, per_project=stop is not None)
    player.expect_exported(before, day, [answer])
    assert answer.done or answer.killed, str(answer)
    return answer


def delete(player: Player, day: Day, stop: Stop | None = None) -> Answer:
    before = player.seen
    answer = player.delete(day, stop=stop)
    player.expect_deleted(before, day, answer)
    assert answer.done or answer.killed, str(answer)
    return answer


@pytest.mark.parametrize("moments", [20, pytest.param(200, marks=FULL)])
def test_killed_at_every_step_and_run_again_nothing_is_lost_or_doubled(
    moments: int, postgres: Postgres, s3: S3, tell: Callable[[object], None]
) -> None:
    with Player.on_s3(postgres, s3) as player:
        sweep(player, moments, tell)


@pytest.mark.parametrize("moments", [len(STEPS), pytest.param(200, marks=FULL)])
def test_killed_on_a_local_folder_leaves_nothing_but_hidden_drafts(
    moments: int, postgres: Postgres, tmp_path: Path, tell: Callable[[object], None]
) -> None:
    with Player.on_folder(postgres, tmp_path) as player:
        sweep(player, moments, tell)
        assert isinstance(player.archive, Folder)
        drafts = player.archive.drafts()
        # Of a file, of a list of days or projects, or of the object that conditions are tried with.
        assert all(re.fullmatch(r"\.[0-9a-f]{32}\.(parquet|json|)\.tmp", draft.name) for draft in drafts), drafts
        assert len(drafts) <= moments
        tell(f"{len(drafts)} hidden drafts were left in the folder")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{step} {counts[step]}" for step in STEPS if counts[step])

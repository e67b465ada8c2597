"""Many processes export one day at the same time, while the application writes, and beside deletions."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import psycopg
import pytest

from tests.services import S3, Postgres
from tests.torture.invariant import merged
from tests.torture.player import Player
from tests.torture.story import Story
from tests.torture.worker import Answer

DAY = datetime.date(2024, 1, 1)
EXPORTERS = 8
ROUNDS = [5, pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(1800)])]


def together(player: Player, methods: list[str], meanwhile: Callable[[], set[int]]) -> tuple[list[Answer], set[int]]:
    """All calls at once, and something else while they are under way."""
    workers = [player.worker(number) for number in range(len(methods))]
    for worker, method in zip(workers, methods, strict=True):
        worker.begin(player.command(method, DAY))
    touched = meanwhile()
    return [player.finished(worker.finish(), number) for number, worker in enumerate(workers)], touched


@pytest.mark.parametrize("store", ["S3", "a folder"])
@pytest.mark.parametrize("rounds", ROUNDS)
def test_of_eight_exporters_at_once_each_succeeds_and_every_row_is_stored_once(
    rounds: int, store: str, postgres: Postgres, s3: S3, tmp_path: Path, tell: Callable[[object], None]
) -> None:
    outcomes: Counter[str] = Counter()
    overtaken = 0
    with Player.on_s3(postgres, s3) if store == "S3" else Player.on_folder(postgres, tmp_path) as player:
        story, rng = Story(player, DAY), Random(0)
        story.open_day()
        for number in range(rounds):
            player.site.insert(rng, DAY, 12)
            story.update(rng, DAY)
            before = player.seen
            quiet = number % 5 == 0  # then the calls alone have to store every row
            methods = ["export_daily_pageviews"] * EXPORTERS
            answers, touched = together(player, methods, set if quiet else partial(busy, story, rng))
            assert all(answer.done for answer in answers), list(map(str, answers))
            outcomes.update(answer.result["outcome"] for answer in answers if answer.result)
            overtaken += sum(answer.steps.count("publishing") - answer.steps.count("published") for answer in answers)
            player.expect_exported(before, DAY, answers, touched)
            if quiet:
                assert player.seen.stored(DAY) == merged(before.stored(DAY), before.of(DAY))
            before = player.seen
            player.expect_exported(before, DAY, [player.export(DAY)])
            counted = {id: row for id, row in player.seen.stored(DAY).items() if id not in player.site.deleted}
            assert counted == player.seen.of(DAY)
        rows = len(player.seen.stored(DAY))
        assert len(player.seen.objects) == 1
    tell(
        f"{rounds} rounds of {EXPORTERS} exporters of a day in {store}: {dict(outcomes)}, "
        f"{overtaken} times overtaken; {rows} rows, each once"
    )
    assert sum(outcomes.values()) == rounds * EXPORTERS
    assert outcomes["created"] == 1
    assert outcomes["merged"] >= rounds - 1
    assert outcomes["unchanged"] > 0
    assert overtaken > 0


@pytest.mark.parametrize("rounds", ROUNDS)
def test_exporters_beside_deletions_lose_nothing(
    rounds: int, postgres: Postgres, s3: S3, tell: Callable[[object], None]
) -> None:
    refused = 0
    with Player.on_s3(postgres, s3) as player:
        story, rng = Story(player, DAY), Random(1)
        story.open_day()
        for _ in range(rounds):
            player.site.insert(rng, DAY, 20)
            player.look()
            story.export(rng, DAY)
            story.update(rng, DAY)
            before = player.seen
            methods = ["export_daily_pageviews"] * 4 + ["delete_exported_pageviews"] * 2
            answers, touched = together(player, methods, partial(busy, story, rng))
            exports, deletions = answers[:4], answers[4:]
            assert all(answer.done for answer in exports), list(map(str, exports))
            for deletion in deletions:
                if not deletion.done:
                    refused += 1
                    player.expect_error(deletion, "Conflict")
            player.expect_exported(before, DAY, exports, before.of(DAY).keys() | touched)
        story.export(rng, DAY)
        story.delete(rng, DAY)
        seen, site = player.seen, player.site
        stored = seen.stored(DAY)
        assert all(stored[id] == site.last(id) for id in site.versions.keys() - site.deleted - seen.table.keys())
        deleted = player.deleted
    tell(f"{rounds} rounds of 4 exporters and 2 deletions: {deleted} rows deleted, {refused} deletions refused")
    assert deleted > rounds


def busy(story: Story, rng: Random) -> set[int]:
    touched: set[int] = set()
    for _ in range(6):
        try:
            touched |= story.anything(rng, DAY)
        except psycopg.errors.LockNotAvailable:  # a deletion has the row just now
            continue
    return touched

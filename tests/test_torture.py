"""The random test, as long as fits: see `tests/torture`. `make torture N=5000 SEED=7` runs it for longer."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

import pytest

from tests.services import S3, Postgres
from tests.torture.run import Report, run

# Set to repeat a run that failed.
SEED = "PARQUET_ANALYTICS_TEST_SEED"


@pytest.mark.parametrize("steps", [150, pytest.param(600, marks=[pytest.mark.full, pytest.mark.timeout(1800)])])
def test_no_row_is_lost_or_doubled_whatever_happens_in_whatever_order(
    steps: int, postgres: Postgres, s3: S3, tell: Callable[[object], None]
) -> None:
    seed = int(os.environ.get(SEED) or secrets.randbelow(1_000_000))
    report: Report = run(postgres, s3, steps, seed)
    tell(report)
    assert report.passed, str(report)
    assert sum(report.steps.values()) == steps
    assert report.player is not None
    assert report.player.invariant.totals.checks > steps

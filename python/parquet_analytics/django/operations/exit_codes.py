"""What the commands' exit codes mean. Each has an entry in the operations guide."""

from __future__ import annotations

from collections.abc import Iterable

from parquet_analytics.exceptions import (
    CommitStateUnknown,
    CorruptFile,
    DayIsTaken,
    VerificationFailed,
)

__all__ = ["DONE", "FAILED", "MISMATCH", "TAKEN", "UNKNOWN", "USAGE", "of_error", "worst"]

DONE = 0
FAILED = 1
USAGE = 2
MISMATCH = 3
UNKNOWN = 4
TAKEN = 75
"""Another run has the day; ``EX_TEMPFAIL`` of sysexits.h."""

_FROM_WORST = (UNKNOWN, MISMATCH, FAILED, TAKEN, DONE)


def of_error(error: BaseException) -> int:
    if isinstance(error, CommitStateUnknown):
        return UNKNOWN
    if isinstance(error, (VerificationFailed, CorruptFile)):
        return MISMATCH
    if isinstance(error, DayIsTaken):
        return TAKEN
    return FAILED


def worst(codes: Iterable[int]) -> int:
    """What a range of days ends with."""
    found = set(codes)
    return next((code for code in _FROM_WORST if code in found), DONE)

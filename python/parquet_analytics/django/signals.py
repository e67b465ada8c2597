"""Sent with ``send_robust``: a receiver that fails is logged and changes nothing.

- ``run_finished``, ``run_failed``: ``run`` (:class:`~parquet_analytics.django.models.Run`); the latter also ``error``
- ``late_rows_found``: ``day`` and ``run``, the verified export after which rows or views came
- ``rows_vanished``: ``day``, ``rows`` (how many) and ``run``: rows of a day that HOT_DAYS keeps are in the archive and
  not in the table any more, and no deletion is recorded
- ``days_missing``: ``days``, a list of finished days that have rows in the table and no verified file
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

__all__ = ["days_missing", "late_rows_found", "rows_vanished", "run_failed", "run_finished", "send"]

run_finished = Signal()
run_failed = Signal()
late_rows_found = Signal()
rows_vanished = Signal()
days_missing = Signal()

_log = logging.getLogger("parquet_analytics.django")


def send(signal: Signal, **facts: Any) -> None:
    """Sends a signal, and logs what its receivers raise."""
    for receiver, answer in signal.send_robust(sender=None, **facts):
        if isinstance(answer, Exception):
            _log.error("a receiver of a signal failed: %r", receiver, exc_info=answer)

"""Shadow mode: answers come from the table, as before, and the archive is asked the same in the background.
Differences are logged and counted, and change nothing."""

from __future__ import annotations

import collections
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from django.db import connections

from parquet_analytics.django import days
from parquet_analytics.django.querier.page_views import Evaluate, Ledger, PageViewsQuerier, Split
from parquet_analytics.querier import Question, table_of

__all__ = ["ShadowQuerier", "shadow"]

_WAITING = 100
_REMEMBERED = 1_000
# After so many comparisons a process says how they went.
_TOLD_EVERY = 1_000

_log = logging.getLogger("parquet_analytics.shadow")


class Shadow:
    """Compares in one thread of the process. Counters: ``compared``, ``different``, ``failed`` (a comparison that
    could not be made), ``dropped`` (because too many were waiting). Each difference is logged once, and the counters
    (INFO) after the first comparison and then after each thousandth."""

    def __init__(self) -> None:
        self._forget()
        # A thread that another one of the parent's held up in here would hold up the child for ever.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._process: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What this process has counted so far."""
        counted = self._counts if self._process == os.getpid() else {}
        return {name: counted.get(name, 0) for name in ("compared", "different", "failed", "dropped")}

    def submit(self, compare: Callable[[], str | None]) -> None:
        """``compare`` gives a description of the difference, or ``None``."""
        with self._lock:
            if self._process != os.getpid():
                # Also after a fork, which a thread does not survive. The process waits for it when it ends.
                self._process = os.getpid()
                self._counts: collections.Counter[str] = collections.Counter()
                self._told: set[str] = set()
                self._room = threading.BoundedSemaphore(_WAITING)
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet-analytics-shadow")
        if self._room.acquire(blocking=False):
            self._thread.submit(self._work, compare)
        else:
            self._counts["dropped"] += 1

    def wait(self) -> None:
        """Until all that was submitted is compared."""
        if self._process == os.getpid():
            self._thread.submit(lambda: None).result()

    def _work(self, compare: Callable[[], str | None]) -> None:
        try:
            difference = compare()
            self._counts["compared"] += 1
            if difference is not None:
                self._counts["different"] += 1
                if difference not in self._told and len(self._told) < _REMEMBERED:
                    self._told.add(difference)
                    _log.warning("the archive answers differently: %s", difference)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self._counts["failed"] += 1
            _log.warning("the archive could not be compared: %s", error)
        finally:
            counts = self.counts
            if (counts["compared"] + counts["failed"]) % _TOLD_EVERY == 1:
                told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
                _log.info("answers of the archive and the table, in this process: %s", told)
            self._room.release()
            connections.close_all()


shadow = Shadow()
"""This process's."""


class ShadowQuerier(PageViewsQuerier):
    """Answers from the table alone, and lets :data:`shadow` ask the archive about the days that are verified."""

    def _decide(self, question: Question, evaluate: Evaluate) -> tuple[Any, Split, Any]:
        asked = set(days.days(question.since, question.until))
        split = Split(set(), asked, Ledger())
        found, files = evaluate(split, self._live.rows(question, asked))
        shadow.submit(lambda: self._difference(question))
        return found, split, files

    def _difference(self, question: Question) -> str | None:
        """How the table and the archive differ on the verified days, in what they add up to or in single rows."""
        ledger = self._ledger(question)
        verified = {day for day in ledger.verified - ledger.deleted if day < days.today()}
        if not verified:
            return None
        live = self._live.rows(question, verified, {*ledger.hidden, *self._native.erased()})
        stored = self._stored(question, verified, ledger)
        by = list(question.summed_by or self._schema.names)
        theirs, ours = (_comparable(table, by) for table in (live, stored))
        if theirs == ours:
            return None
        only_theirs, only_ours = sorted(theirs - ours, key=repr)[:3], sorted(ours - theirs, key=repr)[:3]
        return f"{question}: only in the table: {only_theirs}; only in the archive: {only_ours}"

    def _stored(self, question: Question, verified: set[Any], ledger: Ledger) -> pa.Table:
        texts = [day.isoformat() for day in sorted(verified)]
        slugs = None if question.slugs is None else list(question.slugs)
        extent = (*question.days, texts, None, ledger.hidden)
        stream, _, _ = self._native.sql(
            "FROM pageviews", [], extent, slugs, question.project_id, question.status, question.versions
        )
        return table_of(stream)


def _comparable(table: pa.Table, by: list[str]) -> set[tuple[Any, ...]]:
    if "id" in by:
        return set(zip(*(table[name].to_pylist() for name in by), strict=True))
    sums: collections.Counter[tuple[Any, ...]] = collections.Counter()
    keys = zip(*(table[name].to_pylist() for name in by), strict=True)
    for key, views in zip(keys, table["view_count"].to_pylist(), strict=True):
        sums[key] += views
    return {(*key, views) for key, views in sums.items()}

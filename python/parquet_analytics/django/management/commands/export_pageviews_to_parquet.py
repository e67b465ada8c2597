"""``manage.py export_pageviews_to_parquet``: one finished day, or a range of them, to the store."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from parquet_analytics.django import days
from parquet_analytics.django.conf import settings
from parquet_analytics.django.operations import exit_codes
from parquet_analytics.django.operations.terminal import Bar, as_options, day_argument, ended_in_order, parsed, size
from parquet_analytics.exceptions import (
    ConfigurationError,
    DatabaseError,
    DayHasNoRows,
    DeletionRefused,
    InvalidInput,
    ParquetAnalyticsError,
    PermissionDenied,
)

SCHEMA = 1
"""Of the objects that ``--json`` prints. Keys may be added; one that goes or changes makes this 2."""


class Command(BaseCommand):
    help = (
        "Exports finished days of page views to one Parquet file each, reads each back and verifies it. Exit codes: "
        "0 done, 1 failed, 2 usage, 3 the file does not match, 4 the outcome is unknown, 75 another run has the day; "
        "a range ends with the worst of 4, 3, 1, 75 and 0."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--date", type=day_argument, metavar="DAY", help="The day to export (default: the last finished one).")
        add("--since", type=day_argument, metavar="DAY", help="The first day of a range. Verified days are skipped.")
        add("--until", type=day_argument, metavar="DAY", help="Its last day (default: the last finished one).")
        add("--recheck", action="store_true", help="Do not skip verified days of a range: merge what came later.")
        add("--per-project", action="store_true", default=None, help="Also write a copy for each project.")
        add("--per-organization", action="store_true", default=None, help="Also write a copy for each organization.")
        add(
            "--delete-after-export",
            action="store_true",
            help="Delete the exported rows of days that HOT_DAYS does not keep, once their file is verified.",
        )
        add("--replace", action="store_true", help="Write the database's rows alone, if no stored row is lost by that.")
        add("--discard-stored", action="store_true", help="With --replace: drop stored rows that the database lacks.")
        add("--allow-empty", action="store_true", help="Record a day without rows as empty, also before the first one.")
        add("--allow-open-day", action="store_true", help="Export today, as far as it is.")
        add("--leave-bad-rows", action="store_true", help="Leave rows with a value that does not fit, and report them.")
        add(
            "--on-id-conflict",
            choices=["leave", "database"],
            help="What becomes of rows whose ids are those of other stored rows: leave them in the table, or take them "
            "for corrections (default: the export fails).",
        )
        add(
            "--accept-moved-database",
            action="store_true",
            help="Merge also from another database than the one the day was exported from.",
        )
        add("--dry-run", action="store_true", help="Count rows and name the keys; write nothing.")
        add("--json", action="store_true", help="Print one JSON object a day, and nothing else.")
        add("--noinput", "--no-input", action="store_false", dest="interactive", help="Ask nothing.")

    def handle(self, **options: Any) -> None:
        self.options = parsed(options, date=day_argument, since=day_argument, until=day_argument)
        wanted = self._days()
        with ended_in_order():
            codes = self._dry_run(wanted) if options["dry_run"] else self._export(wanted)
        code = exit_codes.worst(codes)
        if code != exit_codes.DONE:
            failed = sum(code != exit_codes.DONE for code in codes)
            raise CommandError(f"{failed} of {len(codes)} days did not end well", returncode=code)

    def _days(self) -> list[datetime.date]:
        day, since, until = self.options["date"], self.options["since"], self.options["until"]
        if day is not None and (since is not None or until is not None):
            raise _usage("--date is one day, --since and --until are a range; give one of the two")
        if until is not None and since is None:
            raise _usage("--until needs --since")
        if self.options["recheck"] and since is None:
            raise _usage("--recheck is about a range; a day given by --date is always looked at")
        if self.options["discard_stored"] and not self.options["replace"]:
            raise _usage("--discard-stored needs --replace")
        last = days.last_finished()
        first = since or day or last
        until = until or (last if since else first)
        if first > until:
            raise _usage(f"--since ({first}) lies after --until ({until})")
        today = days.today()
        if until > today:
            raise _usage(f"{until} is in the future (today is {today})")
        if days.end_of(until) > days.now() and not self.options["allow_open_day"]:
            raise _usage(f"{until} is not over yet; export it tomorrow, or as it is now with --allow-open-day")
        return list(days.days(first, until))

    def _export(self, wanted: list[datetime.date]) -> list[int]:
        from parquet_analytics.django import erasure, runs
        from parquet_analytics.django.runs.ledger import latest_verified
        from parquet_analytics.django.table.outages import Patience

        who = runs.exporter()
        self._last = wanted[-1]
        self._confirm(wanted)
        # What no worker has done.
        erasure.erase_pending_or_log()
        self._patience = Patience()
        done = {}
        if self.options["since"] is not None and not self.options["recheck"]:
            done = self._patience(lambda: latest_verified(who.location, wanted[0], wanted[-1]))
        codes = []
        for day in wanted:
            if day in done and not self.options["delete_after_export"]:
                codes.append(self._report(day, "skipped", run=done[day]))
                continue
            try:
                codes.append(self._one(day, done.get(day)))
            except (ConfigurationError, PermissionDenied) as error:
                # It would be the same for every other day.
                codes.append(self._report(day, "failed", error=error))
                break
        return codes

    def _one(self, day: datetime.date, run: Any) -> int:
        from parquet_analytics.django import runs

        bar = Bar(self.stdout, str(day), wanted=not self.options["json"] and self.options["verbosity"] > 0)
        result: dict[str, Any] = {}
        deleted: dict[str, Any] | None = None
        error: ParquetAnalyticsError | OSError | None = None
        hot = self.options["delete_after_export"] and day >= days.deletable_before()
        absent = False
        try:
            if run is None:
                run, result = self._patience(lambda: self._exported(day, bar))
            bar.clear()
            if self.options["delete_after_export"] and not hot:
                _, deleted = self._patience(lambda: runs.delete_day(day, progress=bar))
        except (ConfigurationError, PermissionDenied):
            raise
        except DayHasNoRows as failure:
            error = failure
            with contextlib.suppress(DatabaseError):
                absent = self._patience(lambda: self._begins_later(day))
        except (ParquetAnalyticsError, OSError) as failure:
            error = failure
        finally:
            bar.clear()
        if error is None:
            return self._report(day, "verified", run=run, result=result, deleted=deleted, hot=hot)
        if absent:
            return self._report(day, "absent")
        return self._report(day, "failed", run=run, error=error)

    def _exported(self, day: datetime.date, bar: Bar) -> tuple[Any, dict[str, Any]]:
        from parquet_analytics.django import runs

        return runs.export_day(
            day,
            per_project=self.options["per_project"],
            per_organization=self.options["per_organization"],
            replace=self.options["replace"],
            discard_stored=self.options["discard_stored"],
            allow_empty=self.options["allow_empty"],
            allow_open_day=self.options["allow_open_day"],
            on_bad_row="leave" if self.options["leave_bad_rows"] else "fail",
            on_id_conflict=self.options["on_id_conflict"] or "fail",
            accept_moved_database=self.options["accept_moved_database"],
            of_range=self.options["since"] is not None,
            progress=bar,
        )

    def _begins_later(self, day: datetime.date) -> bool:
        """Whether a range begins before the table does; a table that has nothing of a whole range is the wrong one, or
        the range is."""
        from parquet_analytics.django.runs import first_day
        from parquet_analytics.django.table.mapping import configured

        if self.options["since"] is None:
            return False
        first = first_day(configured())
        return first is not None and day < first <= self._last

    def _confirm(self, wanted: list[datetime.date]) -> None:
        dangerous = []
        deletable = [day for day in wanted if day < days.deletable_before()]
        if self.options["delete_after_export"] and deletable:
            dangerous.append(f"delete the exported rows of {_span(deletable)} from the database")
        if self.options["discard_stored"]:
            dangerous.append(f"drop stored rows of {_span(wanted)} that the database lacks")
        if not dangerous or not self.options["interactive"] or not sys.stdin.isatty():
            return
        answer = input(f"This will {' and '.join(dangerous)}.\nType 'yes' to go on, anything else to stop: ")
        if answer != "yes":
            raise CommandError("stopped; nothing was changed", returncode=exit_codes.FAILED)

    def _dry_run(self, wanted: list[datetime.date]) -> list[int]:
        from parquet_analytics.django.operations.dry_run import Plan

        plan = Plan(
            per_project=self.options["per_project"],
            per_organization=self.options["per_organization"],
            allow_open_day=self.options["allow_open_day"],
        )
        codes = []
        for day in wanted:
            try:
                found = plan.of(day)
            except ParquetAnalyticsError as error:
                codes.append(self._report(day, "failed", error=error))
                continue
            codes.append(exit_codes.DONE)
            if self.options["json"]:
                self._print({"date": str(day), "state": "planned", "dry_run": True, **found})
            elif self.options["verbosity"] > 0:
                about = "" if found["bytes"] is None else f", about {size(found['bytes'])}"
                known = ", verified already" if found["verified"] else ""
                self.stdout.write(f"{day}: {found['rows']:,} rows{about}{known}")
                for key in found["keys"]:
                    self.stdout.write(f"  {key}")
        return codes

    def _report(
        self,
        day: datetime.date,
        state: str,
        *,
        run: Any = None,
        result: dict[str, Any] | None = None,
        deleted: dict[str, Any] | None = None,
        error: BaseException | None = None,
        hot: bool = False,
    ) -> int:
        """Says what became of a day, and gives its exit code."""
        code = exit_codes.DONE if error is None else exit_codes.of_error(error)
        if isinstance(error, InvalidInput):
            code = exit_codes.FAILED
        if self.options["json"]:
            self._print(_as_json(day, state, code, run, result, deleted, error))
            return code
        if error is not None:
            self.stderr.write(f"{day}: {_without_day(day, error)}")
            if isinstance(error, DeletionRefused) and run is not None:
                self.stderr.write(f"{day}: it is exported and verified; its rows stay")
            return code
        if self.options["verbosity"] < 1:
            return code
        if state == "absent":
            self.stdout.write(f"{day}: no rows; the table begins later")
            return code
        if state == "skipped":
            self.stdout.write(f"{day}: verified on {run.finished_at:%Y-%m-%d}, skipped")
            return code
        text = f"{day}: {run.rows:,} rows, {run.views:,} views, {size(run.bytes)}, "
        text += self.style.SUCCESS(f"{run.outcome} and verified" if result else "verified before")
        if result and result["kept"]:
            text += f"; {result['kept']:,} rows only in the store"
        if result and result["left"]:
            text += self.style.WARNING(f"; {result['left']:,} bad rows left in the database")
        if deleted is not None:
            text += f"; {deleted['deleted']:,} rows deleted"
            kept = {name: deleted[name] for name in ("changed", "late", "busy", "left") if deleted[name]}
            if kept:
                text += ", kept: " + ", ".join(f"{number:,} {name}" for name, number in kept.items())
        elif hot:
            text += f"; its rows stay until they are older than {settings.HOT_DAYS} days (HOT_DAYS)"
        self.stdout.write(text)
        if self.options["verbosity"] > 1:
            for name in ("key", "etag", "sha256", "run_id", "source", "position"):
                self.stdout.write(f"  {name}: {getattr(run, name)}")
        return code

    def _print(self, what: dict[str, Any]) -> None:
        self.stdout.write(json.dumps({"schema": SCHEMA, **what}))


def _as_json(
    day: datetime.date,
    state: str,
    code: int,
    run: Any,
    result: dict[str, Any] | None,
    deleted: dict[str, Any] | None,
    error: BaseException | None,
) -> dict[str, Any]:
    about: dict[str, Any] = {"date": str(day), "state": state, "exit_code": code}
    if run is not None:
        for name in ("outcome", "key", "etag", "sha256", "run_id", "rows", "views", "bytes"):
            about[name] = getattr(run, name)
    if result:
        for name in ("added", "changed", "kept", "left", "project_files", "organization_files", "source"):
            about[name] = result[name]
    if deleted is not None:
        about["deletion"] = {name: deleted[name] for name in ("deleted", "changed", "late", "busy", "left", "seconds")}
    if error is not None:
        about["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "retryable": bool(getattr(error, "retryable", False)),
        }
    return about


def _usage(message: str) -> CommandError:
    return CommandError(message, returncode=exit_codes.USAGE)


def _without_day(day: datetime.date, error: BaseException) -> str:
    return as_options(error).removeprefix(f"{day}: ")


def _span(wanted: list[datetime.date]) -> str:
    return str(wanted[0]) if len(wanted) == 1 else f"{len(wanted)} days, {wanted[0]} to {wanted[-1]},"

"""``manage.py parquet_analytics status|verify|compact|restore|erase|unerase|doctor``."""

from __future__ import annotations

import datetime
import json
import re
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q
from django.utils import timezone

from parquet_analytics.django import days
from parquet_analytics.django.operations import exit_codes
from parquet_analytics.django.operations.terminal import day_argument, ended_in_order, parsed, size
from parquet_analytics.exceptions import ParquetAnalyticsError

SCHEMA = 1

_UNITS = {"d": 86_400, "h": 3_600, "m": 60}


def duration(text: str) -> datetime.timedelta:
    """``36h``, ``2d`` or ``90m``."""
    found = re.fullmatch(r"(\d{1,6})([dhm])", text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no duration; write it as 36h, 2d or 90m")
    return datetime.timedelta(seconds=int(found[1]) * _UNITS[found[2]])


class Command(BaseCommand):
    help = "Says how the archive of page views is, verifies it, brings days back, and finds out what is wrong."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for name, help in (
            ("status", "Which days are exported, verified, deleted, empty, missing or late. --max-lag for monitoring."),
            ("verify", "Read files back and compare them with what was recorded, or with the database."),
            ("compact", "Bring the derived files of months up to date, by which questions about many days are fast."),
            ("restore", "Bring a day's rows back into the table, which may not have other rows of it."),
            ("erase", "Take deleted projects out of files and copies, and say what became of each."),
            ("unerase", "Take the erasure of a project back that lives (again)."),
            ("doctor", "Look at the databases, the store, the clocks and the schedules."),
        ):
            action = actions.add_parser(name, help=help, description=help)
            getattr(self, f"_{name}_arguments")(action)

    def _status_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since", type=day_argument, metavar="DAY", help="Default: the first known, at most 90 days."
        )
        parser.add_argument("--until", type=day_argument, metavar="DAY", help="Default: the last finished day.")
        parser.add_argument(
            "--max-lag", type=duration, metavar="36h", help="Exit with 1 when the archive is further behind."
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def _verify_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--date", type=day_argument, metavar="DAY", help="The day (default: the last finished one)."
        )
        parser.add_argument("--since", type=day_argument, metavar="DAY", help="The first day of a range.")
        parser.add_argument(
            "--until", type=day_argument, metavar="DAY", help="Its last day (default: the last finished)."
        )
        parser.add_argument("--against", choices=["database"], help="Also compare each row with the database's.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object a day.")

    def _compact_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--since", type=day_argument, metavar="DAY", help="Default: the first that is stored.")
        parser.add_argument("--until", type=day_argument, metavar="DAY", help="Default: the last that is stored.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object a month.")

    def _restore_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--date", type=day_argument, metavar="DAY", required=True, help="The day.")
        parser.add_argument("--dry-run", action="store_true", help="Say what would come back.")
        parser.add_argument(
            "--accept-moved-database",
            action="store_true",
            help="Restore also to another database than the one that the day was exported from.",
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def _erase_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--accept-moved-database",
            action="store_true",
            help="List and files are this database's from before it was moved, promoted or restored.",
        )
        parser.add_argument(
            "--every-copy", action="store_true", help="Look at the copies of all projects, however many there are."
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON object a project.")

    def _unerase_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--project", type=int, action="append", metavar="ID", required=True, help="Its id. May be given repeatedly."
        )
        parser.add_argument("--accept-moved-database", action="store_true", help="As for erase.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def _doctor_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object a finding.")

    def handle(self, **options: Any) -> None:
        days_given = {"date": day_argument, "since": day_argument, "until": day_argument}
        self.options = parsed(options, **days_given, max_lag=duration)
        with ended_in_order():
            code = getattr(self, f"_{options['action']}")()
        if code != exit_codes.DONE:
            raise CommandError(self.trouble, returncode=code)

    def _status(self) -> int:
        from parquet_analytics.django.operations.status import status

        since, until = self.options["since"], self.options["until"]
        if since and until and since > until:
            raise CommandError(f"--since ({since}) lies after --until ({until})", returncode=exit_codes.USAGE)
        found = status(since, until)
        states = (
            "verified",
            "deleted",
            "empty",
            "late",
            "early",
            "missing",
            "running",
            "failed",
            "mismatch",
            "unknown",
            "abandoned",
        )
        counts = {state: found.count(state) for state in states}
        lag = None if found.lag is None else round(found.lag.total_seconds())
        if self.options["json"]:
            about = {
                "schema": SCHEMA,
                "location": found.location,
                "since": str(found.since),
                "until": str(found.until),
                "through": None if found.through is None else str(found.through),
                "lag_seconds": lag,
                "bytes": found.bytes,
                "vanished": found.vanished,
                "counts": counts,
                "days": [
                    {
                        "date": str(day.day),
                        "state": day.state,
                        "rows": day.rows,
                        "views": day.views,
                        "bytes": day.bytes,
                        "deleted": day.deleted,
                        "vanished": day.vanished,
                        "error": day.error or None,
                    }
                    for day in found.days
                ],
            }
            self.stdout.write(json.dumps(about))
        else:
            self._show(found, {state: count for state, count in counts.items() if count})
        limit = self.options["max_lag"]
        if limit is not None and (found.lag is None or found.lag > limit):
            behind = "nothing is exported" if found.lag is None else f"the archive is {_hours(found.lag)} behind"
            self.trouble = f"{behind}, and at most {_hours(limit)} are allowed"
            return exit_codes.FAILED
        return exit_codes.DONE

    def _show(self, found: Any, counts: dict[str, int]) -> None:
        self.stdout.write(f"{found.location}, {found.since} to {found.until}")
        if self.options["verbosity"] > 1 or len(found.days) <= 14:
            listed = found.days
        else:
            fine = {"verified", "deleted", "empty"}
            listed = [day for day in found.days if day.state not in fine or day.vanished]
        for day in listed:
            text = f"  {day.day}  {day.state:<9}"
            if day.rows is not None:
                text += f" {day.rows:>12,} rows  {size(day.bytes):>10}"
            if day.deleted:
                text += f"  {day.deleted:,} rows deleted"
            if day.vanished:
                text += f"  {day.vanished:,} rows vanished from the table"
            if day.error and day.state not in {"verified", "deleted", "empty"}:
                text += f"  {day.error.splitlines()[0]:.120}"
            self.stdout.write(text)
        summary = ", ".join(f"{count} {state}" for state, count in counts.items())
        self.stdout.write(f"{summary}; {size(found.bytes)}")
        if found.vanished:
            self.stdout.write(
                f"{found.vanished:,} rows vanished from the table, and no deletion is recorded: if the table is right, "
                "as after rows were merged, export their days with --replace --discard-stored"
            )
        if found.lag is None:
            self.stdout.write("nothing is exported yet")
        else:
            self.stdout.write(f"complete through {found.through}, {_hours(found.lag)} ago")

    def _verify(self) -> int:
        from parquet_analytics.django.runs import exporter

        day, since, until = (self.options[name] for name in ("date", "since", "until"))
        if day is not None and (since is not None or until is not None):
            raise CommandError("--date is one day, --since and --until are a range", returncode=exit_codes.USAGE)
        last = days.last_finished()
        first = since or day or last
        until = until or (last if since else first)
        if first > until:
            raise CommandError(f"--since ({first}) lies after --until ({until})", returncode=exit_codes.USAGE)
        who = exporter()
        codes = []
        for each in days.days(first, until):
            try:
                found = who.verify(each, against=self.options["against"])
            except ParquetAnalyticsError as error:
                codes.append(exit_codes.of_error(error))
                self._verified(each, codes[-1], {"error": type(error).__name__, "message": str(error)})
                continue
            wrong = self.options["against"] and (found["missing"] or found["changed"])
            codes.append(exit_codes.MISMATCH if wrong else exit_codes.DONE)
            self._verified(each, codes[-1], found)
        code = exit_codes.worst(codes)
        self.trouble = f"{sum(code != 0 for code in codes)} of {len(codes)} days are not as they should be"
        return code

    def _verified(self, day: datetime.date, code: int, found: dict[str, Any]) -> None:
        if self.options["json"]:
            about = {name: value for name, value in found.items() if name not in {"date", "statuses"}}
            self.stdout.write(json.dumps({"schema": SCHEMA, "date": str(day), "exit_code": code, **about}))
            return
        if "error" in found:
            self.stderr.write(f"{day}: {found['message'].removeprefix(f'{day}: ')}")
            return
        text = f"{day}: {found['total_records']:,} rows, {found['total_views']:,} views, {size(found['bytes'])}"
        text += ", as it was written"
        if "missing" in found:
            text += (
                f"; {found['missing']:,} rows only in the database, {found['changed']:,} changed, "
                f"{found['archive_only']:,} only in the file"
            )
        (self.stderr if code else self.stdout).write(text)

    def _compact(self) -> int:
        from parquet_analytics.django.runs import compact

        since, until = self.options["since"], self.options["until"]
        if since and until and since > until:
            raise CommandError(f"--since ({since}) lies after --until ({until})", returncode=exit_codes.USAGE)
        for month in compact(since, until):
            if self.options["json"]:
                self.stdout.write(json.dumps({"schema": SCHEMA, **month}))
                continue
            text = f"{month['month']}: {month['outcome']}"
            if month["days"]:
                text += f", {month['days']} days ({month['days_read']} read), {month['rows']:,} rows"
                text += f", {size(month['bytes'])}"
            self.stdout.write(text)
        return exit_codes.DONE

    def _restore(self) -> int:
        from parquet_analytics.django.restore import restore_day

        found = restore_day(
            self.options["date"],
            dry_run=self.options["dry_run"],
            accept_moved_database=self.options["accept_moved_database"],
        )
        if self.options["json"]:
            self.stdout.write(json.dumps({"schema": SCHEMA, "dry_run": self.options["dry_run"], **found}))
            return exit_codes.DONE
        verb = "would come back" if self.options["dry_run"] else "are back in the table"
        text = f"{found['date']}: {found['restored']:,} rows with {found['views']:,} views {verb}"
        if found["summed"]:
            text += f"; {found['summed']:,} were added to others of the same project, version, path and status"
        self.stdout.write(text)
        if found["skipped"]:
            gone = "; ".join(
                f"{what} gone: {', '.join(map(str, found[f'skipped_{what}'][:20]))}"
                for what in ("projects", "versions")
                if found[f"skipped_{what}"]
            )
            self.stderr.write(self.style.WARNING(f"{found['skipped']:,} rows were skipped; {gone}"))
        if found["columns_lost"]:
            self.stderr.write(
                self.style.WARNING(
                    f"no file holds {', '.join(found['columns_lost'])}: these columns have their defaults"
                )
            )
        if found["unsettled"]:
            self.stderr.write(
                self.style.WARNING(
                    f"export the day again, so that its file says that they are back: {found['unsettled']}"
                )
            )
        return exit_codes.DONE

    def _erase(self) -> int:
        from parquet_analytics.django.erasure import erase_pending
        from parquet_analytics.django.erasure.sweep import erasures

        begun = timezone.now()
        waiting = set(erasures().filter(finished_at__isnull=True).values_list("pk", flat=True))
        code, self.trouble = exit_codes.DONE, ""
        try:
            erase_pending(
                accept_moved_database=self.options["accept_moved_database"], every_copy=self.options["every_copy"]
            )
        except ParquetAnalyticsError as error:
            code, self.trouble = exit_codes.of_error(error), str(error)
        # Also those that the list in the store had lost.
        shown = Q(pk__in=waiting) | Q(finished_at__gte=begun) | Q(finished_at__isnull=True)
        for each in erasures().filter(shown).order_by("pk"):
            if self.options["json"]:
                about = {"project_id": each.project_id, "slug": each.slug, "finished": each.finished_at is not None}
                self.stdout.write(
                    json.dumps({"schema": SCHEMA, **about, "error": each.error or None, "note": each.note or None})
                )
                continue
            became = "erased" if each.finished_at else f"not finished: {each.error or 'not begun'}"
            text = f"project {each.project_id} ({each.slug}): {became}"
            (self.stdout if each.finished_at else self.stderr).write(f"{text}. {each.note}" if each.note else text)
        return code

    def _unerase(self) -> int:
        from parquet_analytics.django.erasure import unerase

        wanted = set(self.options["project"])
        found = unerase(wanted, accept_moved_database=self.options["accept_moved_database"])
        unknown = sorted(wanted - set(found))
        if self.options["json"]:
            self.stdout.write(json.dumps({"schema": SCHEMA, "unerased": found, "unknown": unknown}))
        else:
            for each in found:
                self.stdout.write(f"project {each} is not erased any more")
            if found:
                self.stdout.write(
                    "Export the days again that the table still has: manage.py export_pageviews_to_parquet --recheck "
                    "--since DAY. Rows that were taken out of files and are not in the table are gone."
                )
        self.trouble = f"not erased: {', '.join(map(str, unknown))}"
        return exit_codes.FAILED if unknown else exit_codes.DONE

    def _doctor(self) -> int:
        from parquet_analytics.django.operations.doctor import examine

        failed = 0
        styles = {"ok": self.style.SUCCESS, "warning": self.style.WARNING, "failed": self.style.ERROR}
        for finding in examine():
            failed += finding.state == "failed"
            if self.options["json"]:
                self.stdout.write(json.dumps({"schema": SCHEMA, **finding._asdict()}))
                continue
            mark = styles.get(finding.state, str)(f"{finding.state:<8}")
            self.stdout.write(f"{mark} {finding.check}: {finding.message}")
            if finding.hint:
                self.stdout.write(f"         -> {finding.hint}")
        self.trouble = f"{failed} checks failed"
        return exit_codes.FAILED if failed else exit_codes.DONE


def _hours(time: datetime.timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 72 else f"{hours:.1f} hours"

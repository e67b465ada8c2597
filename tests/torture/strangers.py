"""Tables that are not the site's, at the same place; and the site's own, moved to another database."""

from __future__ import annotations

from random import Random
from typing import Any

import psycopg

from tests.torture.archive import PROBE_KEY
from tests.torture.invariant import Violation
from tests.torture.player import Day
from tests.torture.story import Story


class Strangers(Story):
    """Whatever a stranger calls is refused."""

    def other_database(self, rng: Random, day: Day) -> str:
        """The same tables with the same ids in another database."""
        url = self.player.postgres.create_database()
        try:
            return self._strangers(rng, day, "public", url)
        finally:
            self.player.postgres.drop_database(url)

    def other_schema(self, rng: Random, day: Day) -> str:
        """The same tables with the same ids in another schema of the database."""
        schema = "tenant"
        with psycopg.connect(self.site.url) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
            for table in ("projects_project", "builds_version", "analytics_pageview"):
                connection.execute(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)")
        try:
            return self._strangers(rng, day, schema, self.site.url)
        finally:
            with psycopg.connect(self.site.url) as connection:
                connection.execute(f"DROP SCHEMA {schema} CASCADE")

    def _strangers(self, rng: Random, day: Day, schema: str, url: str) -> str:
        """Another table's export, deletion and erasure are refused by its name, and nothing changes here or there."""
        self.repair(day)
        self.stored(rng, day)
        before, stored = self.player.look(), self._everything()
        some = rng.sample(sorted(before.stored(day).values()), min(3, len(before.stored(day))))
        projects = {row.project_id for row in some}
        with psycopg.connect(url, options=f"-c search_path={schema}") as connection:
            for project in projects:
                connection.execute(
                    "INSERT INTO projects_project (id, name, slug) VALUES (%s, 'x', %s)", (project, f"x{project}")
                )
            for row in some:
                connection.execute(
                    "INSERT INTO analytics_pageview (id, project_id, path, view_count, date, status) "
                    "VALUES (%s, %s, %s, %s, %s, %s)",
                    (row.id, row.project_id, f"{row.path}{row.id}", row.view_count, row.date, row.status),
                )
            theirs = connection.execute("SELECT * FROM analytics_pageview ORDER BY id").fetchall()
            found = connection.execute(
                "SELECT system_identifier, oid FROM pg_control_system(), pg_database WHERE datname = current_database()"
            ).fetchone()
            assert found is not None
        name = f"this is {schema}.analytics_pageview in database {found[0]}/{found[1]}"
        source: dict[str, Any] = {"url": url} if schema == "public" else {"schema": schema}
        way: dict[str, Any] = rng.choice(({}, {"replace": True}, {"discard_stored": True}, {"per_project": True}))
        answers = [
            self.player.export(day, source=source, **way),
            self.player.delete(day, source=source),
            self.player.erase_projects(*projects, source=source),
            self.player.erase_from_day(day, source=source),
        ]
        for answer, error in zip(
            answers, ("StaleSnapshot", "DeletionRefused", "ErasureRefused", "ErasureRefused"), strict=True
        ):
            self.player.expect_error(answer, error)
            if name not in str(answer):
                raise Violation(f"refused, but not by the name that {name}: {answer}")
        if self._everything() != stored or self.player.look().table != before.table:
            raise Violation(f"another table's calls changed something: {[str(answer) for answer in answers]}")
        with psycopg.connect(url, options=f"-c search_path={schema}") as connection:
            if connection.execute("SELECT * FROM analytics_pageview ORDER BY id").fetchall() != theirs:
                raise Violation(f"the other table changed: {[str(answer) for answer in answers]}")
        return " / ".join(map(str, answers))

    def _everything(self) -> dict[str, str]:
        """The version of each object, but for what deletions try the store with."""
        return {key: etag for key, etag in self.player.archive.listed().items() if key != PROBE_KEY}

    def database_moved(self, rng: Random, day: Day) -> str:
        """The database is copied to another one, which the application goes on with. Nothing is merged or deleted until
        somebody says that this is meant; then all is as before."""
        for each in self.days:
            self.repair(each)
        before = self.player.seen
        self.player.move_database()
        moved = list(before.files)
        if moved:
            self.player.expect_error(self.player.call("check_erasure"), "ErasureRefused")
        self._expect_done(self.player.call("erase_projects", projects={}, accept_moved_database=True))
        for each in moved:
            refused = self.player.export(each)
            self.player.expect_error(refused, "StaleSnapshot")
            self.player.expect_exported(before, each, [refused])
            deletion = self.player.delete(each)
            self.player.expect_error(deletion, "DeletionRefused")
            answer = self.player.export(each, accept_moved_database=True)
            self._expect_done(answer)
            self.player.look()
            again = self.player.export(each)
            self._expect_done(again)
            before = self.player.expect_exported(before, each, [answer, again])
        return f"{len(moved)} days accepted"

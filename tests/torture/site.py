"""The application that writes page views, and the model of what it wrote.

The model is kept from what the application's own transactions committed, never from what the package under test says.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import args_row

Day = datetime.date

# The file's status is a 16-bit number, the table's is not.
LARGEST_STATUS = 32_767


class Row(NamedTuple):
    """The columns that are copied, and the day."""

    id: int
    project_id: int
    version_id: int | None
    path: str
    full_path: str | None
    view_count: int
    date: Day
    status: int

    @property
    def fits(self) -> bool:
        """Whether a file can hold it."""
        return self.status <= LARGEST_STATUS


Rows = dict[int, Row]

COLUMNS = ", ".join(Row._fields)
PATHS = ("/", "/index.html", "/guide/start/", "/API/Überblick.html", "/api/_x%20y.html", "/a'b\"c.html", "/🙂/", "/zz/")


class Site:
    """Projects, versions and page views. Each change is committed when its method returns, and is in the model."""

    def __init__(self, url: str, projects: int = 6) -> None:
        self._connect(url)
        self.versions: dict[int, list[Row]] = {}  # of each row ever committed, the last one is the present
        self.deleted: set[int] = set()  # by the application itself
        self.discarded: set[int] = set()  # from a file, by discard_stored
        self.erased: set[int] = set()  # projects
        self.slugs: dict[int, list[str]] = {}  # of each project, the last one is the present
        self.version_slugs: dict[int, str] = {}
        self.living_versions: dict[int, list[int]] = {}  # of each project that lives
        self._named = 0
        self._paths = 0
        for _ in range(projects):
            self.add_project()

    def close(self) -> None:
        self.connection.close()

    def move(self, copy: Callable[[], str]) -> None:
        """Goes on with another database, which `copy` makes while nobody is connected to this one."""
        self.close()
        self._connect(copy())

    # What is so

    def rows(self) -> Rows:
        """Every row of the table, as PostgreSQL has it now."""
        return {row.id: row for row in self.cursor.execute(f"SELECT {COLUMNS} FROM analytics_pageview")}

    def last(self, id: int) -> Row:
        return self.versions[id][-1]

    def kept(self) -> set[int]:
        """The rows that are somewhere at any moment."""
        gone = self.deleted | self.discarded
        return {id for id in self.versions if id not in gone and self.last(id).project_id not in self.erased}

    @property
    def projects(self) -> list[int]:
        """Those that live."""
        return sorted(self.living_versions)

    def has_moved(self, id: int) -> bool:
        """Whether a row had another date before."""
        return len({row.date for row in self.versions[id]}) > 1

    def has_before(self, day: Day) -> bool:
        """Whether the table holds a row of an earlier day."""
        found = self.connection.execute("SELECT 1 FROM analytics_pageview WHERE date < %s LIMIT 1", (day,))
        return found.fetchone() is not None

    # What the application does

    def add_project(self) -> int:
        id = len(self.slugs) + 1
        slug = self._new_slug()
        with self.connection.transaction():
            self.connection.execute(
                "INSERT INTO projects_project (id, name, slug) VALUES (%s, %s, %s)", (id, slug, slug)
            )
            self.slugs[id] = [slug]
            self.living_versions[id] = []
            for _ in range(2):
                self._add_version(id)
        return id

    def insert(self, rng: Random, day: Day, count: int, again: Sequence[Row] = ()) -> list[int]:
        """New page views; some are of the same pages as `again`, rows that are no longer in the table."""
        with self.connection.transaction():
            found = list(self._insert(rng, day, count, again))
        self._remember(found)
        return [row.id for row in found]

    def insert_slowly(self, rng: Random, day: Day, count: int) -> Callable[[], list[int]]:
        """The same in a transaction of its own that is open until the returned function is called."""
        connection = psycopg.connect(self.url)
        cursor = connection.cursor(row_factory=args_row(Row))
        found = list(self._insert(rng, day, count, (), cursor))

        def commit() -> list[int]:
            connection.commit()
            connection.close()
            self._remember(found)
            return [row.id for row in found]

        return commit

    def count_views(self, rng: Random, ids: Iterable[int]) -> set[int]:
        """More views of these rows, as far as they are still there."""
        more = rng.randint(1, 900)
        return self._change("UPDATE analytics_pageview SET view_count = view_count + %s WHERE id = ANY(%s)", more, ids)

    def move_rows(self, ids: Iterable[int], day: Day) -> set[int]:
        """Gives rows another date, but for those of pages that have a row there, and those that a deletion holds."""
        moved: set[int] = set()
        for id in ids:
            with suppress(psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable):
                moved |= self._change("UPDATE analytics_pageview SET date = %s WHERE id = ANY(%s)", day, [id])
        return moved

    def spoil(self, ids: Iterable[int]) -> set[int]:
        """Gives rows a status that no file can hold."""
        return self._change("UPDATE analytics_pageview SET status = status + %s WHERE id = ANY(%s)", 100_000, ids)

    def repair(self, ids: Iterable[int]) -> set[int]:
        return self._change("UPDATE analytics_pageview SET status = status - %s WHERE id = ANY(%s)", 100_000, ids)

    def delete(self, ids: Iterable[int]) -> set[int]:
        """The application itself deletes; nobody has to keep these."""
        gone = self.connection.execute(
            "DELETE FROM analytics_pageview WHERE id = ANY(%s) RETURNING id", (list(ids),)
        ).fetchall()
        self.deleted.update(id for (id,) in gone)
        return {id for (id,) in gone}

    def rename(self, rng: Random, project: int) -> str:
        """Another slug: a new one, or one that another project gave up."""
        taken = {self.slugs[each][-1] for each in self.projects}
        given_up = sorted({slug for slugs in self.slugs.values() for slug in slugs} - taken)
        slug = rng.choice(given_up) if given_up and rng.random() < 0.4 else self._new_slug()
        self.rename_to(project, slug)
        return slug

    def rename_to(self, project: int, slug: str) -> None:
        self.connection.execute("UPDATE projects_project SET slug = %s WHERE id = %s", (slug, project))
        self.slugs[project].append(slug)

    def hand_over(self, project: int, other: int) -> tuple[str, str]:
        """A project gets a new slug, and another one its old slug."""
        old, new = self.slugs[project][-1], self._new_slug()
        self.rename_to(project, new)
        self.rename_to(other, old)
        return old, new

    def erase(self, project: int) -> set[int]:
        """Deletes a project with its rows, which no file may keep; another one begins."""
        with self.connection.transaction():
            gone = self.connection.execute(
                "DELETE FROM analytics_pageview WHERE project_id = %s RETURNING id", (project,)
            ).fetchall()
            self.connection.execute("DELETE FROM builds_version WHERE project_id = %s", (project,))
            self.connection.execute("DELETE FROM projects_project WHERE id = %s", (project,))
        self.deleted.update(id for (id,) in gone)
        self.erased.add(project)
        del self.living_versions[project]
        self.add_project()
        return {id for (id,) in gone}

    def bring_back(self, project: int, rows: Iterable[Row]) -> None:
        """An erased project and some of its rows are there again, as after a restoration. They are no part of the
        model: `forget_brought_back` takes them away again."""
        with self.connection.transaction():
            self.connection.execute(
                "INSERT INTO projects_project (id, name, slug) VALUES (%s, 'restored', 'restored')", (project,)
            )
            for row in rows:
                self.connection.execute(
                    f"INSERT INTO analytics_pageview ({COLUMNS}) VALUES (%s, %s, NULL, %s, %s, %s, %s, %s)",
                    row[:2] + row[3:],
                )

    def forget_brought_back(self, project: int) -> int:
        """How many of its rows were still there."""
        with self.connection.transaction():
            gone = self.connection.execute("DELETE FROM analytics_pageview WHERE project_id = %s", (project,)).rowcount
            self.connection.execute("DELETE FROM projects_project WHERE id = %s", (project,))
        return gone

    def delete_version(self, rng: Random, project: int) -> set[int]:
        """Its rows stay, without a version; and there is a new version. Nothing happens when a page has views
        without a version already."""
        version = rng.choice(self.living_versions[project])
        with suppress(psycopg.errors.UniqueViolation), self.connection.transaction():
            changed = self.cursor.execute(
                f"UPDATE analytics_pageview SET version_id = NULL WHERE version_id = %s RETURNING {COLUMNS}", (version,)
            ).fetchall()
            self.connection.execute("DELETE FROM builds_version WHERE id = %s", (version,))
            self.living_versions[project].remove(version)
            self._add_version(project)
            self._remember(changed)
            return {row.id for row in changed}
        return set()

    def reuse_id(self, row: Row) -> None:
        """A row with the id of a stored one but another path, as a restored database makes them. It is no part of
        the model: `forget_reused` takes it away again."""
        self.connection.execute(
            f"INSERT INTO analytics_pageview ({COLUMNS}) VALUES (%s, %s, NULL, %s, NULL, 1, %s, 200)",
            (row.id, row.project_id, f"{row.path}?restored", row.date),
        )

    def forget_reused(self, id: int) -> bool:
        """Whether it was still there."""
        return self.connection.execute("DELETE FROM analytics_pageview WHERE id = %s", (id,)).rowcount == 1

    # How

    def _connect(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        # A deletion that waits at one of its steps holds locks, and we are who lets it go on.
        self.connection.execute("SET lock_timeout = '40ms'")
        self.cursor = self.connection.cursor(row_factory=args_row(Row))

    def _new_slug(self) -> str:
        self._named += 1
        return f"{'zmab'[self._named % 4]}-project-{self._named}"

    def _add_version(self, project: int) -> None:
        id = len(self.version_slugs) + 1
        slug = f"{'vls'[id % 3]}{id}.x"
        self.connection.execute(
            "INSERT INTO builds_version (id, project_id, slug) VALUES (%s, %s, %s)", (id, project, slug)
        )
        self.version_slugs[id] = slug
        self.living_versions[project].append(id)

    def _insert(self, rng: Random, day: Day, count: int, again: Sequence[Row], cursor: Any = None) -> Iterable[Row]:
        for _ in range(count):
            if again and rng.random() < 0.3:
                project, version, path, status = self._page_of(rng.choice(again))
            else:
                project = rng.choice(self.projects)
                version = rng.choice([None, *self.living_versions[project]])
                self._paths += 1
                path = f"{rng.choice(PATHS)}{self._paths}"
                status = rng.choice((200, 200, 200, 404, 301, 0, LARGEST_STATUS))
            yield from (cursor or self.cursor).execute(
                "INSERT INTO analytics_pageview (path, full_path, view_count, date, status, project_id, version_id) "
                f"VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING {COLUMNS}",
                (
                    path,
                    None if rng.random() < 0.2 else f"/en/{version or 'latest'}{path}",
                    rng.choice((0, 1, 1, 2, 7, 1000, 2_000_000_000)),
                    day,
                    status,
                    project,
                    version,
                ),
            )

    def _page_of(self, row: Row) -> tuple[int, int | None, str, int]:
        living = self.living_versions[row.project_id]
        version = row.version_id if row.version_id in living else None
        return row.project_id, version, row.path, row.status

    def _change(self, sql: str, value: int | Day, ids: Iterable[int]) -> set[int]:
        changed = self.cursor.execute(f"{sql} RETURNING {COLUMNS}", (value, list(ids))).fetchall()
        self._remember(changed)
        return {row.id for row in changed}

    def _remember(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.versions.setdefault(row.id, []).append(row)

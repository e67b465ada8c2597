"""A streaming standby of a PostgreSQL server, whose replay can be held back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql

from .postgres import SETTINGS, Postgres, answers
from .workspace import Unavailable, free_port, wait_until


@dataclass
class Standby:
    primary: Postgres
    port: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, primary: Postgres, name: str = "standby") -> Standby:
        workspace = primary.workspace
        data = workspace.directory(name)
        source = f"host={primary.socket_folder} port={primary.port} user=postgres password={primary.password}"
        options = ["-R", "-X", "stream", "-c", "fast", "--no-sync"]
        copied = workspace.run([primary.binaries / "pg_basebackup", "-D", data, "-d", source, *options])
        if copied.returncode != 0:
            raise Unavailable(f"pg_basebackup failed: {copied.stderr.strip()}")
        log = workspace.folder / f"{name}.log"
        settings = SETTINGS | {"hot_standby": "on", "max_standby_streaming_delay": "2s"}
        while True:
            port = free_port()
            command: list[str | Path] = [
                primary.binaries / "postgres",
                "-D",
                data,
                "-p",
                str(port),
                "-k",
                primary.socket_folder,
            ]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            process = workspace.spawn(command, log)
            try:
                wait_until(partial(answers, port, primary.password), process, log)
                return cls(primary, port, process)
            except Unavailable:
                workspace.stop(process)
                if "could not bind" not in log.read_text(errors="replace"):
                    raise

    def database_url(self, primary_url: str) -> str:
        """The URL of a primary's database here."""
        return f"postgresql://postgres:{self.primary.password}@127.0.0.1:{self.port}/{primary_url.rsplit('/', 1)[1]}"

    def promote(self) -> None:
        """Makes it a primary with a history of its own."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)

    def stop(self) -> None:
        self.primary.workspace.stop(self.process)

    def catch_up(self) -> None:
        """Waits until everything that the primary has written is replayed."""
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            # Commits are not flushed at once here; one that is takes those before it along.
            connection.execute("SET synchronous_commit = on")
            connection.execute("SELECT pg_logical_emit_message(true, 'catch up', '')")
            [wanted] = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone() or [None]
        with psycopg.connect(self._url, autocommit=True) as connection:
            for _ in range(300):
                [done] = connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [wanted]).fetchone() or [0]
                if done:
                    return
                time.sleep(0.1)
        raise AssertionError("the standby does not catch up")

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """What the primary commits meanwhile is not seen here."""
        self.catch_up()
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
            while connection.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() != ("paused",):
                time.sleep(0.02)
            try:
                yield
            finally:
                connection.execute("SELECT pg_wal_replay_resume()")

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """It gets nothing from its primary meanwhile."""
        self.catch_up()
        with psycopg.connect(self._url, autocommit=True) as connection:
            [before] = connection.execute("SELECT current_setting('primary_conninfo')").fetchone() or [""]
            self._set(connection, "host=127.0.0.1 port=1 connect_timeout=1")
            try:
                while connection.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone() != (0,):
                    time.sleep(0.05)
                yield
            finally:
                self._set(connection, before)

    def _set(self, connection: psycopg.Connection[tuple[object, ...]], primary: str) -> None:
        connection.execute(sql.SQL("ALTER SYSTEM SET primary_conninfo = {}").format(sql.Literal(primary)))
        connection.execute("SELECT pg_reload_conf()")

    @property
    def _url(self) -> str:
        return self.database_url(self.primary.url)

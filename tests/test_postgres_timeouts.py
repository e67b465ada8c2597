"""Timeouts that a role has for its web requests, and words that are no UTF-8: an export sets what it may set for
itself, and what ends it all the same is told by name."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from parquet_analytics import PostgresSource, SampleData
from parquet_analytics.exceptions import DatabaseError

from tests.archives import DAY, KEY, Place, execute, rows_of, saying
from tests.services import Postgres
from tests.test_export import ADD

ROWS = 60_000


@dataclass
class Site:
    """A database with a day of rows, and a role with these settings that may read and delete them."""

    admin: str
    url: str
    role: str

    def set(self, **settings: str) -> None:
        for name, value in settings.items():
            execute(self.admin, f"ALTER ROLE {self.role} SET {name} = '{value}'")


@pytest.fixture
def site(embedded_postgres: Postgres) -> Iterator[Site]:
    admin = embedded_postgres.create_database()
    name = admin.rsplit("/", 1)[1]
    role = f"web_{name}"
    sample = SampleData(rows_per_day=ROWS, projects=20, weekly_rhythm=False, growth=0)
    sample.load_postgres(admin, DAY, DAY)
    execute(
        admin,
        f"CREATE ROLE {role} LOGIN PASSWORD '{embedded_postgres.password}'",
        f"GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
    )
    yield Site(admin, embedded_postgres.database_url(name, user=role), role)
    embedded_postgres.drop_database(admin)


def test_an_export_and_a_deletion_outlive_the_timeouts_of_their_role(place: Place, site: Site) -> None:
    site.set(transaction_timeout="60ms", idle_in_transaction_session_timeout="1ms")
    exporter = place.exporter(site.url)
    assert exporter.export_daily_pageviews(DAY, progress=lambda *_: None)["total_records"] == ROWS
    verified = exporter.verify(DAY, against="database")
    assert verified["missing"] == verified["changed"] == 0
    assert exporter.delete_exported_pageviews(DAY, batch_rows=ROWS)["deleted"] == ROWS


def test_a_sites_own_options_do_not_end_an_export_either(place: Place, site: Site) -> None:
    options = "-c%20transaction_timeout%3D60ms%20-c%20idle_in_transaction_session_timeout%3D1ms"
    exporter = place.exporter(f"{site.url}?options={options}")
    assert exporter.export_daily_pageviews(DAY)["total_records"] == ROWS
    assert exporter.delete_exported_pageviews(DAY, batch_rows=ROWS)["deleted"] == ROWS


def test_an_older_server_does_not_know_all_of_them(place: Place, postgres: Postgres, database: str) -> None:
    execute(database, ADD, "ALTER ROLE postgres SET idle_in_transaction_session_timeout = '1ms'")
    try:
        assert place.exporter(database).export_daily_pageviews(DAY)["total_records"] == 3
    finally:
        execute(postgres.url, "ALTER ROLE postgres RESET idle_in_transaction_session_timeout")


def test_a_connection_that_ends_in_a_pause_is_made_anew(place: Place, site: Site) -> None:
    exporter = place.exporter(site.url)
    exporter.export_daily_pageviews(DAY)
    site.set(idle_session_timeout="200ms")
    result = exporter.delete_exported_pageviews(DAY, batch_rows=ROWS // 2, pause=1.0)
    assert (result["deleted"], result["batches"]) == (ROWS, 2)
    assert rows_of(site.admin, "SELECT count(*) FROM analytics_pageview") == [(0,)]


def test_a_connection_that_is_ended_in_the_middle_is_not_called_a_server_that_is_down(place: Place, site: Site) -> None:
    # The rows come slowly, and the backend that sends them is terminated.
    execute(
        site.admin,
        "CREATE VIEW slow AS SELECT v.* FROM analytics_pageview v WHERE (id % 1000 <> 0 OR pg_sleep(0.05) IS NOT NULL)",
        f"GRANT SELECT ON slow TO {site.role}",
    )
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            execute(
                site.admin,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'"
                " AND query_start < clock_timestamp() - interval '0.5 s' AND datname = current_database()",
            )

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(DatabaseError) as caught:
            place.exporter(PostgresSource(site.url, table="slow")).export_daily_pageviews(DAY)
    finally:
        stop.set()
        killer.join()
    assert caught.value.retryable
    assert "is the server running" not in str(caught.value)
    for name in ("log", "pg_terminate_backend", "transaction_timeout", "idle_in_transaction_session_timeout"):
        assert name in str(caught.value)
    assert KEY not in place.keys()  # noqa: SIM118 - a method of ours


# What a real server says only in an encoding or a state that no test server is in.


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def refusal(code: str, text: bytes, severity: bytes = b"FATAL") -> bytes:
    fields = {b"S": severity, b"V": b"FATAL", b"C": code.encode(), b"M": text}
    return message(b"E", b"".join(name + value + b"\0" for name, value in fields.items()) + b"\0")


WELCOME = message(b"R", struct.pack("!i", 0)) + message(b"Z", b"I")


class Saying:
    """A server that answers the start of a session, and each statement, with the next of these."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://web:canary-Xy7@127.0.0.1:{self._listener.getsockname()[1]}/docs?sslmode=disable"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                for answer in self._answers:
                    client.recv(65536)
                    client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


GERMAN = "Passwort-Authentifizierung für Benutzer »web« fehlgeschlagen"
RUSSIAN = "пользователь не прошёл проверку подлинности"

# What the server answers to; what is known of it then.
REFUSED: dict[str, tuple[list[bytes], str | None, bool, tuple[str, ...]]] = {
    "in German": ([refusal("28P01", GERMAN.encode())], "28P01", False, ("pg_hba.conf", GERMAN)),
    "in Russian": ([refusal("28P01", RUSSIAN.encode(), "ВАЖНО".encode())], "28P01", False, ("pg_hba.conf", RUSSIAN)),
    "in Latin 1": ([refusal("28P01", GERMAN.encode("latin-1"))], None, False, ("password", "lc_messages", "log")),
    "severity in KOI8-R": (
        [refusal("28000", RUSSIAN.encode("koi8-r"), "ВАЖНО".encode("koi8-r"))],
        None,
        False,
        ("password", "lc_messages"),
    ),
    "by a pooler": ([refusal("08P01", GERMAN.encode())], "08P01", False, ("pooler", "password")),
    "too many connections": ([refusal("53300", b"zu viele Verbindungen")], "53300", True, ("try again later",)),
    "a way of logging in that is not known": (
        [message(b"R", struct.pack("!i", 7))],
        None,
        False,
        ("pg_hba.conf",),
    ),
    "SCRAM that goes wrong": (
        [
            message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"),
            message(b"R", struct.pack("!i", 12) + b"v=d3Jvbmc="),
        ],
        None,
        False,
        ("password", "pg_hba.conf"),
    ),
    "later, in Latin 1": ([WELCOME, refusal("42501", GERMAN.encode("latin-1"))], None, False, ("lc_messages",)),
    "later, by transaction_timeout": (
        [WELCOME, refusal("25P04", b"terminating connection due to transaction timeout")],
        "25P04",
        False,
        ("transaction_timeout", "ALTER ROLE"),
    ),
    "later, by idle_in_transaction_session_timeout": (
        [WELCOME, refusal("25P03", b"terminating connection due to idle-in-transaction timeout")],
        "25P03",
        True,
        ("idle_in_transaction_session_timeout", "ALTER ROLE"),
    ),
    "later, by idle_session_timeout": (
        [WELCOME, refusal("57P05", b"terminating connection due to idle-session timeout")],
        "57P05",
        True,
        ("idle_session_timeout", "ALTER ROLE"),
    ),
    "later, by a shutdown": (
        [WELCOME, refusal("57P01", b"terminating connection due to administrator command")],
        "57P01",
        True,
        ("pg_terminate_backend", "try again later"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_refusal_means_goes_by_its_code_and_never_by_its_words(place: Place, name: str) -> None:
    answers, sqlstate, retryable, words = REFUSED[name]
    server = Saying(*answers)
    try:
        with pytest.raises(DatabaseError, match=saying("2026-07-01", *words)) as caught:
            place.exporter(server.url).export_daily_pageviews(DAY)
    finally:
        server.close()
    assert (caught.value.sqlstate, caught.value.retryable) == (sqlstate, retryable)
    assert "canary" not in str(caught.value)
    assert "is the server running" not in str(caught.value)

"""A password and keys that work, and the same where they do not: they are nowhere to be read afterwards.

Each failure is provoked for real. Looked through are exceptions with their chains and pickles, log records of every
level and logger, what objects print, results, the stored files and their metadata.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import pickle
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pyarrow.parquet as pq
import pytest
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, PostgresSource
from parquet_analytics.exceptions import ParquetAnalyticsError

from tests.archives import DAY, Place, execute, views
from tests.services import PgBouncer
from tests.test_export import ADD
from tests.torture.proxies import Armed, Request, Response, S3Proxy

# Characters that URLs and connection strings have to escape.
PASSWORD = "cAnArY 7'p@ss/w%rd\\é"
TOKEN = "cAnArYtOkEn+/77=="


def forms(secret: str) -> list[str]:
    """How a secret may be written."""
    inner = secret[2:-2]
    return [
        secret,
        inner,
        quote(secret, safe=""),
        quote(inner, safe=""),
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        # As a part of a longer text, such as user:password, too.
        *(base64.b64encode(b"x" * offset + secret.encode() + b"xxx").decode()[4:-8] for offset in range(3)),
    ]


class Told:
    """Everything that was told, searched at the end."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.loggers: set[str] = set()

    def add(self, *things: Any) -> None:
        self.texts += [thing if isinstance(thing, str) else repr(thing) for thing in things]

    def error(self, error: BaseException) -> None:
        seen: list[BaseException] = []
        pending: list[BaseException | None] = [error]
        while pending:
            one = pending.pop()
            if one is not None and one not in seen:
                seen.append(one)
                pending += [one.__cause__, one.__context__]
                self.add(str(one), repr(one), repr(one.args), repr(vars(one)))
                self.add(pickle.dumps(one).decode("latin-1"))
        self.add("".join(traceback.format_exception_only(error)))

    def check(self, *secrets: str) -> None:
        assert len(self.texts) > 20
        for secret in secrets:
            for form in forms(secret):
                found = [text for text in self.texts if form in text]
                assert not found, f"{form!r} is told in {found[0][:400]!r}"


class Everything(logging.Handler):
    def __init__(self, told: Told) -> None:
        super().__init__(level=0)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        self.told.add(record.getMessage(), repr(vars(record)))
        self.told.loggers.add(record.name)


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    handler, root = Everything(told), logging.getLogger()
    level = root.level
    ours = logging.getLogger("parquet_analytics")
    root.setLevel(1)
    ours.setLevel(1)
    root.addHandler(handler)
    yield told
    root.removeHandler(handler)
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)


@pytest.fixture
def secret_url(database: str) -> Iterator[str]:
    """The database for a user whose password is the canary."""
    execute(database, ADD)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS canary")
        connection.execute(
            psycopg.sql.SQL("CREATE ROLE canary SUPERUSER LOGIN PASSWORD {}").format(psycopg.sql.Literal(PASSWORD))
        )
    host = database.split("@")[1]
    yield f"postgresql://canary:{quote(PASSWORD, safe='')}@{host}"
    execute(database, "DROP ROLE canary")


def tried(told: Told, call: Callable[[], Any]) -> None:
    with pytest.raises(ParquetAnalyticsError) as caught:
        call()
    told.error(caught.value)


def test_work_that_succeeds_tells_no_secret(place: Place, secret_url: str, told: Told, tmp_path: Path) -> None:
    exporter = place.exporter(secret_url, temp_dir=tmp_path, sort_memory=1)
    querier = place.querier()
    told.add(exporter, querier, PostgresSource(secret_url), exporter._store)
    told.add(exporter.export_daily_pageviews(DAY, per_project=True, progress=lambda *_: None))
    told.add(exporter.export_daily_pageviews(DAY), exporter.verify(DAY, against="database"))
    told.add(querier.top_pages("docs", since=DAY, until=DAY), querier.stats, querier.explain("docs", since=DAY))
    told.add(querier.get_s3_url("x"), exporter.export_daily_pageviews("2026-07-02", dry_run=True))
    told.add(exporter.delete_exported_pageviews(DAY))
    client = place.s3.client()
    for key in place.keys():  # noqa: SIM118
        body = place.read(key)
        told.add(body.decode("latin-1"), client.head_object(Bucket=place.bucket, Key=place._full(key))["Metadata"])
        if key.endswith(".parquet"):
            told.add(pq.read_metadata(io.BytesIO(body)).metadata)
    told.add(*(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()))
    assert "parquet_analytics.steps" in told.loggers
    told.check(PASSWORD, place.s3.admin.secret_access_key)


def test_databases_that_refuse_tell_no_secret(
    place: Place, secret_url: str, told: Told, pgbouncer: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = secret_url.rsplit("/", 1)[1]
    server = secret_url.split("@")[1].split("/")[0]
    encoded = quote(PASSWORD, safe="")
    host, port = server.split(":")
    escaped = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    wrong = [
        f"postgresql://nobody:{encoded}@{server}/{name}",
        f"postgresql://canary:{encoded}@{server}/missing",
        f"postgresql://canary:{encoded}@127.0.0.1:1/{name}",
        f"postgresql://canary:{PASSWORD}@{server}/{name}",
        f"postgresql://canary:{encoded}@{server}:{encoded}/{name}",
        f"postgresql://canary:{encoded}@[{server}/{name}",
        f"postgresql://canary:{encoded}@{server}/{name}?sslmode={encoded}",
        f"postgresql://canary:{encoded}@{server}/{name}?{encoded}=1",
        f"postgresql://canary:{encoded}@{server}/{name}?sslmode=verify-full&sslrootcert=/missing",
        f"postgres{PASSWORD}://canary@{server}/{name}",
        f"host={host} port={port} dbname={name} user=nobody password='{escaped}'",
        f"host={host} port={port} dbname={name} user=canary password={PASSWORD}",
        f"host={host} port='{escaped}' dbname={name} user=canary password='{escaped}'",
        f"password='{escaped}",
        f"host={host};password={encoded};user=canary",
        f"postgresql://{host};password={encoded}/{name}",
        f"user=u;password={encoded} host={host}",
        f"host={host} password=correct cAnArY=battery",
        f"{PASSWORD}",
        pgbouncer.database_url(name).replace(pgbouncer.database_url(name).split(":")[2].split("@")[0], encoded),
    ]
    for url in wrong:
        tried(told, lambda url=url: place.exporter(url).export_daily_pageviews(DAY))
        with contextlib.suppress(ParquetAnalyticsError):
            told.add(PostgresSource(url))
        tried(told, lambda url=url: place.exporter(secret_url).delete_exported_pageviews("2026-06-01", database=url))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    tried(told, lambda: place.exporter(f"postgresql://nobody@{server}/{name}").export_daily_pageviews(DAY))
    # The statement that fails is not repeated with values either.
    execute(secret_url, "ALTER TABLE analytics_pageview DROP COLUMN path")
    tried(told, lambda: place.exporter(secret_url).export_daily_pageviews(DAY))
    told.check(PASSWORD, "..cAnArY..")


def test_text_that_is_no_unicode_is_refused_without_being_repeated(place: Place, told: Told) -> None:
    """As Python hands over an environment variable that is not UTF-8."""
    secret = "cAnArYsEcReT\udce9"
    url = f"postgresql://u:{secret}@127.0.0.1:1/d"
    calls: list[Callable[[], Any]] = [
        lambda: PostgresSource(url),
        lambda: PostgresSource("postgresql://u@h/d").at(url),
        lambda: place.exporter(url).export_daily_pageviews(DAY),
        lambda: place.exporter("postgresql://u@h/d").delete_exported_pageviews(DAY, database=url),
        lambda: place.exporter(PostgresSource("postgresql://u@h/d")).delete_exported_pageviews(DAY, database=url),
    ]
    for name in ("secret_access_key", "session_token", "proxy_url"):
        options = place.options() | {name: secret}
        calls.append(lambda options=options: ParquetAnalyticsExporter(place.url, source=url, storage_options=options))
        calls.append(lambda options=options: ParquetAnalyticsQuerier(place.url, storage_options=options))
    for _ in range(2):
        for call in calls:
            tried(told, call)
    told.check("cAnArYsEcReT")


def test_stores_that_refuse_tell_no_secret(place: Place, told: Told) -> None:
    secret = "cAnArYsEcReT/44+7"
    options = place.options(secret_access_key=secret, session_token=TOKEN, max_retries="0")
    proxy = S3Proxy(place.s3.endpoint_url)
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()

    def echoing(request: Request, passing: Any) -> Response:
        """A server that repeats what it was sent, as S3 does when a signature does not match."""
        sent = "".join(f"{name}: {value}\n" for name, value in request.headers)
        parts = f"<Message>{sent}</Message><CanonicalRequest>{sent}</CanonicalRequest>"
        body = f"<Error><Code>InternalError</Code>{parts}</Error>"
        return Response(500, [("Content-Type", "application/xml")], body.encode())

    cases: list[dict[str, str]] = [
        {},
        {"endpoint_url": f"http://127.0.0.1:{port}"},
        {"endpoint_url": f"https://127.0.0.1:{port}"},
        {"endpoint_url": f"http://user:{secret}@127.0.0.1:{port}"},
        {"endpoint_url": f"http://127.0.0.1:{port}/?key={secret}"},
        {"endpoint_url": proxy.url},
        {"proxy_url": f"http://user:{quote(secret, safe='')}@127.0.0.1:{port}"},
        {"proxy_url": f"nonsense://{secret}"},
        {"region": secret},
        {"request_timeout": secret},
        {"addressing_style": secret},
        {"ca_bundle": "/missing"},
    ]
    armed = Armed("GET", echoing, times=10_000)
    proxy.armed = armed
    for case in cases:

        def export(case: dict[str, str] = case) -> Any:
            exporter = ParquetAnalyticsExporter(place.url, source=views(), storage_options=options | case)
            told.add(exporter, exporter._store)
            return exporter.export_daily_pageviews(DAY)

        def query(case: dict[str, str] = case) -> Any:
            querier = ParquetAnalyticsQuerier(place.url, storage_options=options | case)
            told.add(querier)
            return querier.top_pages("docs", since=DAY, until=DAY)

        tried(told, export)
        tried(told, query)
    assert armed.hits
    for url in (f"s3://key:{secret}@bucket/x", f"s3://bucket/x?secret={secret}", f"https://u:{secret}@host/x"):
        tried(told, lambda url=url: ParquetAnalyticsExporter(url, source=views()).export_daily_pageviews(DAY))
    proxy.close()
    assert threading.active_count() < 100
    told.check(secret, TOKEN)


def test_the_keys_of_a_django_storage_are_not_told(place: Place, told: Told) -> None:
    from storages.backends.s3 import S3Storage

    secret = "cAnArYdJaNgO/99+"
    storage = S3Storage(
        bucket_name=place.bucket,
        endpoint_url=place.s3.endpoint_url,
        region_name="us-east-1",
        access_key=place.s3.admin.access_key_id,
        secret_key=secret,
        security_token=TOKEN,
    )
    exporter, querier = ParquetAnalyticsExporter(storage, source=views()), ParquetAnalyticsQuerier(storage)
    told.add(exporter, querier, exporter._store)
    for _ in range(2):
        tried(told, lambda: exporter.export_daily_pageviews(DAY))
        tried(told, lambda: exporter.verify(DAY))
        tried(told, lambda: querier.top_pages("docs", since=DAY, until=DAY))
    told.check(secret, TOKEN)


def test_text_that_is_not_unicode_is_refused_without_being_repeated(told: Told) -> None:
    # What Python makes of a byte in the environment that is not UTF-8.
    secret = "cAnArYbYtE"
    given = secret + os.fsdecode(b"\xe9")
    url = f"postgresql://u:{given}@127.0.0.1:1/d"
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    calls: list[Callable[[], Any]] = [
        lambda: PostgresSource(url),
        lambda: ParquetAnalyticsExporter("memory://text", source=url).export_daily_pageviews(DAY),
        lambda: ParquetAnalyticsExporter("memory://text", source="postgresql://h/d").delete_exported_pageviews(
            DAY, database=url
        ),
        lambda: ParquetAnalyticsExporter(f"s3://u:{given}@bucket", source=views()),
        *(
            lambda name=name: ParquetAnalyticsQuerier("s3://b", storage_options=keys | {name: given})
            for name in ("secret_access_key", "session_token", "proxy_url")
        ),
    ]
    for call in calls:
        tried(told, call)
    told.check(secret)

"""Exceptions keep their attributes through pickle, and no secret gets into one, a log line, a repr or a traceback."""

from __future__ import annotations

import contextlib
import datetime
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import parquet_analytics
import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, PostgresSource, exceptions
from parquet_analytics.exceptions import BadRow, InvalidInput, LocalFileError, ParquetAnalyticsError

from tests.archives import DAY, Place, views
from tests.services import Postgres, S3Identity

CLASSES = [getattr(exceptions, name) for name in exceptions.__all__]
ATTRIBUTES: dict[str, Any] = {
    "day": datetime.date(2026, 7, 1),
    "key": "a/key",
    "row_id": 7,
    "column": "path",
    "sqlstate": "57014",
    "run_id": "a run",
    "retryable": True,
}
CANARY = "canary-2f9c"


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_exceptions_survive_pickle_with_their_attributes(kind: type[ParquetAnalyticsError], protocol: int) -> None:
    error = kind("what happened", **ATTRIBUTES)
    error.add_note("noted")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert str(copy) == str(error) == "what happened"
    assert copy.args == error.args == ("what happened",)
    assert {name: getattr(copy, name) for name in ATTRIBUTES} == ATTRIBUTES
    assert copy.__notes__ == ["noted"]


def test_all_are_under_one_base_and_builtins_where_apt() -> None:
    assert len(CLASSES) > 15
    assert all(issubclass(kind, ParquetAnalyticsError) for kind in CLASSES)
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(LocalFileError, OSError)
    plain = ParquetAnalyticsError("x")
    assert {name: getattr(plain, name) for name in ATTRIBUTES} == dict.fromkeys(ATTRIBUTES) | {"retryable": False}


def test_an_exception_from_the_core_survives_pickle_too(place: Place) -> None:
    with pytest.raises(BadRow) as caught:
        place.exporter(views(view_count=[1, -1, 1])).export_daily_pageviews(DAY)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (BadRow, str(caught.value))
    assert (copy.day, copy.row_id, copy.column, copy.retryable) == (DAY, 2, "view_count", False)


def _urls(postgres: Postgres) -> dict[str, str]:
    server = psycopg.conninfo.conninfo_to_dict(postgres.url)
    host, port = server["host"], server["port"]
    return {
        "wrong password": f"postgresql://postgres:{CANARY}@{host}:{port}/postgres",
        "in key/value form": f"host={host} port={port} user=postgres password={CANARY} dbname=postgres",
        "no such database": postgres.database_url("missing").replace(postgres.password, f"{CANARY}"),
        "a port that is none": f"postgresql://u:{CANARY}@{host}:99999/d",
        "a mode that is none": f"postgresql://u:{CANARY}@{host}:{port}/d?sslmode=sometimes",
        "an unknown setting": f"postgresql://u:{CANARY}@{host}:{port}/d?frobnicate={CANARY}",
        "an unknown setting in key/value form": f"host={host} password={CANARY} frobnicate={CANARY}",
        "an open quote": f"host={host} password='{CANARY}",
        "a percent that is none": f"postgresql://u:%zz{CANARY}@{host}/d",
        "another scheme": f"mysql://u:{CANARY}@{host}/d",
        "no host there": f"postgresql://u:{CANARY}@127.0.0.1:1/d",
        "a password with an at": f"postgresql://u:x@{CANARY}@{host}:{port}/d",
        "a password in the query": f"postgresql://u@{host}:{port}/d?password={CANARY}",
        "a certificate that is not there": f"postgresql://u:{CANARY}@{host}:{port}/d?sslmode=verify-full&sslrootcert=/no",
    }


def _told(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """Everything that an error tracker would keep, without the local variables of this test."""
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error) + repr(vars(error))
    frame = error.__traceback__
    while frame is not None:
        if parquet_analytics.__name__ in frame.tb_frame.f_globals.get("__name__", ""):
            # Objects of ours in local variables are printed by error trackers.
            ours = (
                value for value in frame.tb_frame.f_locals.values() if "parquet_analytics" in type(value).__module__
            )
            with contextlib.suppress(AttributeError):  # one that is not wholly built yet
                told += "".join(map(repr, ours))
        frame = frame.tb_next
    return told + "\n".join(record.getMessage() for record in caplog.records if "parquet" in record.name)


@pytest.mark.parametrize(
    "name",
    [
        "wrong password",
        "in key/value form",
        "no such database",
        "a port that is none",
        "a mode that is none",
        "an unknown setting",
        "an unknown setting in key/value form",
        "an open quote",
        "a percent that is none",
        "another scheme",
        "no host there",
        "a password with an at",
        "a password in the query",
        "a certificate that is not there",
    ],
)
def test_no_password_is_told(name: str, postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    url = _urls(postgres)[name]
    exporter = ParquetAnalyticsExporter("memory://secrets", source=url)
    with caplog.at_level(logging.DEBUG), pytest.raises(ParquetAnalyticsError) as caught:
        exporter.export_daily_pageviews(DAY)
    assert CANARY not in _told(caught.value, caplog)
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(exporter)
    assert CANARY not in pickle.dumps(caught.value).decode("latin1")


def test_a_source_shows_its_place_and_not_its_password(postgres: Postgres) -> None:
    shown = repr(PostgresSource(postgres.url))
    assert postgres.password not in shown
    assert str(postgres.port) in shown


@pytest.mark.parametrize(
    "ask",
    [
        lambda place, options: place(**options),
        lambda place, options: place(**options | {"endpoint_url": f"https://u:{CANARY}@127.0.0.1:1"}),
        lambda place, options: place(**options | {"endpoint_url": f"https://127.0.0.1:1/?token={CANARY}"}),
        lambda place, options: place(**options | {"allow_http": CANARY}),
        lambda place, options: place(**options | {"secret_key": CANARY}),
        lambda place, options: place(**options | {"session_token": CANARY}),
        lambda place, options: place(**options | {"proxy_url": f"http://u:{CANARY}@127.0.0.1:1", "max_retries": "0"}),
    ],
)
def test_no_key_of_a_store_is_told(ask: Callable[..., Any], place: Place, caplog: pytest.LogCaptureFixture) -> None:
    identity = S3Identity(place.s3.admin.access_key_id, CANARY)

    def export_and_query(**options: str) -> None:
        for kind in (ParquetAnalyticsExporter, ParquetAnalyticsQuerier):
            settings = {"source": views()} if kind is ParquetAnalyticsExporter else {}
            ours = kind(place.url, storage_options=options, **settings)
            assert CANARY not in repr(ours)
            run = ours.export_daily_pageviews if settings else ours.top_pages
            with pytest.raises(ParquetAnalyticsError) as caught:
                run(DAY if settings else "docs")
            assert CANARY not in _told(caught.value, caplog)
        raise caught.value

    with caplog.at_level(logging.DEBUG), pytest.raises(ParquetAnalyticsError) as caught:
        ask(export_and_query, place.options(identity))
    assert CANARY not in _told(caught.value, caplog)

"""Which table a day belongs to: only that one is merged into it, and only its rows are deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from parquet_analytics import PostgresSource
from parquet_analytics.exceptions import ConfigurationError, DeletionRefused, StaleSnapshot

from tests.archives import DAY, KEY, Place, execute, rows_of, saying
from tests.services import Postgres, Standby
from tests.test_export import ADD
from tests.test_merge import LATE, counts, metadata, stored

CHANGE = "UPDATE analytics_pageview SET view_count = {} WHERE id = 1"


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD)
    return database


@pytest.fixture
def role(postgres: Postgres, filled: str) -> Iterator[str]:
    """The URL of a user of `filled` who may do everything with the tables, and nothing else."""
    name = filled.rsplit("/", 1)[1] + "_role"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{postgres.password}'")
    execute(
        filled,
        f"GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE ON SCHEMA public TO {name}",
    )
    yield postgres.database_url(filled.rsplit("/", 1)[1], user=name)
    execute(filled, f"DROP OWNED BY {name}")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP ROLE {name}")


def other_schema(url: str, schema: str) -> PostgresSource:
    """Another tenant's tables in the same database, with a row of its own."""
    execute(
        url,
        f"CREATE SCHEMA {schema}",
        *(
            f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)"
            for table in ("projects_project", "builds_version", "analytics_pageview")
        ),
        f"INSERT INTO {schema}.projects_project (id, name, slug) VALUES (7, 'Other', 'other')",
        f"INSERT INTO {schema}.analytics_pageview (id, path, view_count, date, status, project_id) "
        "VALUES (70, '/other.html', 5, '2026-07-01', 200, 7)",
    )
    return PostgresSource(url, schema=schema)


def test_another_schemas_table_is_refused_by_name(place: Place, filled: str) -> None:
    tenant = other_schema(filled, "tenant")
    ours = place.exporter(filled)
    ours.export_daily_pageviews(DAY)
    before = place.read(KEY)
    theirs = place.exporter(tenant)
    for arguments in ({}, {"replace": True}, {"discard_stored": True}):
        with pytest.raises(
            StaleSnapshot, match=saying("2026-07-01", "public.analytics_pageview", "tenant.analytics_pageview", KEY)
        ):
            theirs.export_daily_pageviews(DAY, **arguments)
    with pytest.raises(DeletionRefused, match=saying("public.analytics_pageview", "tenant.analytics_pageview")):
        theirs.delete_exported_pageviews(DAY)
    assert place.read(KEY) == before
    assert rows_of(filled, "SELECT count(*) FROM tenant.analytics_pageview") == [(1,)]
    # Said to be the same data on purpose, it is.
    result = theirs.export_daily_pageviews(DAY, accept_moved_database=True)
    assert (result["added"], result["kept"]) == (1, 3)


def test_a_table_that_was_renamed_is_the_same_and_one_made_anew_is_not(place: Place, filled: str) -> None:
    place.exporter(filled).export_daily_pageviews(DAY)
    execute(filled, "ALTER TABLE analytics_pageview RENAME TO views")
    renamed = place.exporter(PostgresSource(filled, table="views"))
    assert renamed.export_daily_pageviews(DAY)["outcome"] == "unchanged"
    execute(filled, "CREATE TABLE analytics_pageview (LIKE views INCLUDING ALL)", LATE)
    with pytest.raises(StaleSnapshot, match=saying("another table", "public.views", "public.analytics_pageview")):
        place.exporter(filled).export_daily_pageviews(DAY)
    assert renamed.delete_exported_pageviews(DAY)["deleted"] == 3


@pytest.mark.parametrize("search_path", ["tenant", "pg_temp, tenant, public"])
def test_a_search_path_that_finds_another_table_is_noticed(place: Place, filled: str, search_path: str) -> None:
    other_schema(filled, "tenant")
    place.exporter(filled).export_daily_pageviews(DAY)
    options = search_path.replace(" ", "%5C%20")
    other = f"{filled}?options=-c%20search_path%3D{options}"
    with pytest.raises(StaleSnapshot, match=saying("tenant.analytics_pageview")):
        place.exporter(other).export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("tenant.analytics_pageview")):
        place.exporter(other).delete_exported_pageviews(DAY)


def test_a_move_is_forgiven_and_an_older_snapshot_of_the_same_database_never(
    place: Place, filled: str, standby: Standby
) -> None:
    standby.catch_up()
    replica = place.exporter(standby.database_url(filled))
    with standby.held_back():
        execute(filled, CHANGE.format(99))
        primary = place.exporter(filled)
        primary.export_daily_pageviews(DAY)
        assert primary.delete_exported_pageviews(DAY)["deleted"] == 3
        for arguments in ({}, {"replace": True}, {"discard_stored": True}):
            with pytest.raises(StaleSnapshot, match="older state"):
                replica.export_daily_pageviews(DAY, accept_moved_database=True, **arguments)
    assert counts(stored(place)) == {1: 99, 2: 4, 3: 1}


@pytest.fixture(scope="module")
def promoted(postgres: Postgres) -> Iterator[Any]:
    """Makes a database, clones the whole server, and lets the clone live a life of its own."""
    url = postgres.create_database()
    execute(url, ADD)
    clone = Standby.start(postgres, "promoted")
    clone.catch_up()
    before = clone.database_url(url)
    yield url, clone, before
    clone.stop()
    postgres.drop_database(url)


def test_a_promoted_clone_is_not_the_database_itself(place: Place, promoted: Any) -> None:
    original, clone, copy = promoted
    place.exporter(original).export_daily_pageviews(DAY)
    before = place.read(KEY)
    clone.promote()
    execute(copy, CHANGE.format(1))
    for arguments in ({}, {"replace": True}):
        with pytest.raises(
            StaleSnapshot, match=saying("promoted", "timeline 1", "timeline 2", "accept_moved_database=True")
        ):
            place.exporter(copy).export_daily_pageviews(DAY, **arguments)
    with pytest.raises(DeletionRefused, match=saying("timeline 1", "timeline 2")):
        place.exporter(copy).delete_exported_pageviews(DAY)
    assert place.read(KEY) == before
    assert rows_of(copy, "SELECT count(*) FROM analytics_pageview WHERE date = '2026-07-01'") == [(3,)]
    # After a failover that was meant, the day is said to have moved, and belongs to the new primary.
    assert place.exporter(copy).export_daily_pageviews(DAY, accept_moved_database=True)["changed"] == 1
    assert place.exporter(copy).export_daily_pageviews(DAY)["outcome"] == "unchanged"
    with pytest.raises(StaleSnapshot, match="timeline"):
        place.exporter(original).export_daily_pageviews(DAY)


@pytest.mark.parametrize("function", ["pg_control_system()", "pg_control_checkpoint(), pg_walfile_name(pg_lsn)"])
def test_a_server_that_does_not_say_which_it_is_is_refused_with_the_grant_or_named(
    place: Place, filled: str, role: str, function: str
) -> None:
    user = role.split("//")[1].split(":")[0]
    execute(filled, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    try:
        missing = function.split(",")[0]
        grant = saying(f"GRANT EXECUTE ON FUNCTION {missing}", user, "database_id")
        with pytest.raises(ConfigurationError, match=grant):
            place.exporter(role).export_daily_pageviews(DAY)
        assert place.keys() == []
        named = place.exporter(PostgresSource(role, database_id="production"))
        named.export_daily_pageviews(DAY)
        with pytest.raises(ConfigurationError, match=grant):
            place.exporter(role).delete_exported_pageviews(DAY)
        assert metadata(place)["position"].startswith("database=name:production/")
        with pytest.raises(StaleSnapshot, match="accept_moved_database"):
            place.exporter(PostgresSource(role, database_id="staging")).export_daily_pageviews(DAY)
        assert named.delete_exported_pageviews(DAY)["deleted"] == 3
    finally:
        execute(filled, f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")
    for name in ("", "a b", "x" * 101, "pro/d"):
        with pytest.raises(ConfigurationError, match="database_id"):
            PostgresSource(role, database_id=name)


def test_rows_that_a_policy_hides_make_no_whole_day(place: Place, filled: str, role: str) -> None:
    user = role.split("//")[1].split(":")[0]
    execute(
        filled,
        "ALTER TABLE analytics_pageview ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY large_ones ON analytics_pageview TO {user} USING (view_count > 5)",
    )
    with pytest.raises(ConfigurationError, match=saying("row-level security", "analytics_pageview", user, "BYPASSRLS")):
        place.exporter(role).export_daily_pageviews(DAY)
    assert place.keys() == []
    # The superuser sees all of them, as the owner does.
    place.exporter(filled).export_daily_pageviews(DAY)
    with pytest.raises(ConfigurationError, match="row-level security"):
        place.exporter(role).delete_exported_pageviews(DAY)
    with pytest.raises(ConfigurationError, match="row-level security"):
        place.exporter(role).verify(DAY, against="database")
    assert rows_of(filled, "SELECT count(*) FROM analytics_pageview WHERE date = '2026-07-01'") == [(3,)]


def test_a_policy_behind_a_view_is_an_error_too(place: Place, filled: str, role: str) -> None:
    user = role.split("//")[1].split(":")[0]
    execute(
        filled,
        "ALTER TABLE analytics_pageview ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY large_ones ON analytics_pageview TO {user} USING (view_count > 5)",
        "CREATE VIEW seen WITH (security_invoker = true) AS SELECT * FROM analytics_pageview",
        f"GRANT SELECT ON seen TO {user}",
    )
    with pytest.raises(Exception, match=saying("row-level security", "analytics_pageview")):
        place.exporter(PostgresSource(role, table="seen")).export_daily_pageviews(DAY)
    assert place.keys() == []


def test_what_was_seen_unchanged_is_not_undone_by_one_who_saw_less(place: Place, filled: str, standby: Standby) -> None:
    primary = place.exporter(filled)
    primary.export_daily_pageviews(DAY)
    execute(filled, CHANGE.format(6))
    standby.catch_up()
    replica = place.exporter(standby.database_url(filled))
    with standby.held_back():
        execute(filled, CHANGE.format(10))
        assert primary.export_daily_pageviews(DAY)["outcome"] == "unchanged"
        with pytest.raises(StaleSnapshot, match="older state"):
            replica.export_daily_pageviews(DAY)
    assert counts(stored(place))[1] == 10


def test_a_deletion_is_not_undone_by_one_who_saw_less(place: Place, filled: str, standby: Standby) -> None:
    primary = place.exporter(filled)
    primary.export_daily_pageviews(DAY)
    execute(filled, CHANGE.format(6))
    standby.catch_up()
    replica = place.exporter(standby.database_url(filled))
    with standby.held_back():
        execute(filled, CHANGE.format(10))
        deleted = primary.delete_exported_pageviews(DAY)
        assert deleted["deleted"] == 3
        with pytest.raises(StaleSnapshot, match="older state"):
            replica.export_daily_pageviews(DAY)
    assert counts(stored(place)) == {1: 10, 2: 4, 3: 1}
    assert primary.verify(DAY)["etag"] == deleted["etag"]

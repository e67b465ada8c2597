"""What would go with the rows that are deleted: columns that no file holds, and rows of other tables."""

from __future__ import annotations

from typing import Any

import pytest
from parquet_analytics import PostgresSource
from parquet_analytics.exceptions import DeletionRefused, InvalidInput

from tests.archives import DAY, KEY, Place, execute, rows_of, saying
from tests.test_delete import left
from tests.test_export import ADD

# Another table that refers to page views; %s is what becomes of its rows.
REFERS = """
    CREATE TABLE bookmark (id integer PRIMARY KEY, view bigint DEFAULT 4
                           CONSTRAINT of_view REFERENCES analytics_pageview %s);
    INSERT INTO bookmark VALUES (1, 1), (2, 4)
"""
NOTED = "SELECT id, view FROM bookmark ORDER BY id"

PARTITIONED = [
    "ALTER TABLE analytics_pageview RENAME TO before",
    "CREATE TABLE analytics_pageview (LIKE before INCLUDING DEFAULTS) PARTITION BY RANGE (date)",
    "ALTER TABLE analytics_pageview ADD PRIMARY KEY (id, date)",
    "CREATE TABLE june PARTITION OF analytics_pageview FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')",
    "CREATE TABLE july PARTITION OF analytics_pageview FOR VALUES FROM ('2026-07-01') TO ('2026-08-01')",
    "INSERT INTO analytics_pageview SELECT * FROM before",
]


@pytest.fixture
def filled(database: str) -> str:
    execute(database, ADD, "UPDATE analytics_pageview SET date = '2026-06-30' WHERE id = 4")
    return database


@pytest.mark.parametrize(
    ("rule", "after"),
    [
        ("ON DELETE CASCADE", [(2, 4)]),
        ("ON DELETE SET NULL", [(1, None), (2, 4)]),
        ("ON DELETE SET DEFAULT", [(1, 4), (2, 4)]),
    ],
)
def test_what_refers_to_the_rows_is_not_deleted_or_changed_unasked(
    place: Place, filled: str, rule: str, after: list[Any]
) -> None:
    execute(filled, REFERS % rule)
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    before = place.read(KEY)
    with pytest.raises(
        DeletionRefused, match=saying("2026-07-01", "public.bookmark", "of_view", rule, "allow_cascades=True")
    ):
        exporter.delete_exported_pageviews(DAY)
    assert (left(filled), rows_of(filled, NOTED), place.read(KEY)) == ([1, 2, 3, 4], [(1, 1), (2, 4)], before)
    assert exporter.delete_exported_pageviews(DAY, allow_cascades=True)["deleted"] == 3
    assert rows_of(filled, NOTED) == after


@pytest.mark.parametrize("rule", ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED"])
def test_a_key_that_holds_rows_back_is_no_effect(place: Place, filled: str, rule: str) -> None:
    execute(filled, REFERS % rule, "DELETE FROM bookmark WHERE id = 1")
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3
    held = ["public.bookmark (constraint of_view)"]
    assert PostgresSource(filled).effects() == {"columns": [], "others": [], "holding": held}


def test_a_key_that_nobody_looks_after_would_dangle(place: Place, filled: str) -> None:
    execute(filled, REFERS % "", "ALTER TABLE analytics_pageview DISABLE TRIGGER ALL")
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("public.bookmark", "of_view", "not enforced")):
        exporter.delete_exported_pageviews(DAY)
    assert left(filled) == [1, 2, 3, 4]


@pytest.mark.parametrize("referred", ["analytics_pageview", "july"])
def test_keys_to_a_partition_are_seen(place: Place, filled: str, referred: str) -> None:
    execute(
        filled,
        *PARTITIONED,
        f"CREATE TABLE bookmark (view bigint, day date, CONSTRAINT of_view FOREIGN KEY (view, day)"
        f" REFERENCES {referred} (id, date) ON DELETE CASCADE)",
        "INSERT INTO bookmark VALUES (1, '2026-07-01')",
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("public.bookmark", "of_view", "CASCADE")):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM bookmark") == [(1,)]
    assert len(PostgresSource(filled).effects()["others"]) == 1


def test_rows_of_the_table_itself_that_refer_to_others_are_seen(place: Place, filled: str) -> None:
    execute(filled, "ALTER TABLE analytics_pageview ADD first bigint REFERENCES analytics_pageview ON DELETE CASCADE")
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("public.analytics_pageview loses rows")):
        exporter.delete_exported_pageviews(DAY, lose_columns=["first"])


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TRIGGER noted AFTER DELETE ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION note()",
        "CREATE TRIGGER noted AFTER INSERT OR DELETE ON analytics_pageview EXECUTE FUNCTION note()",
        "CREATE RULE noted AS ON DELETE TO analytics_pageview DO ALSO INSERT INTO note VALUES (old.id)",
    ],
)
def test_triggers_and_rules_on_deletion_are_effects(place: Place, filled: str, made: str) -> None:
    execute(
        filled,
        "CREATE TABLE note (id bigint)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO note VALUES (1); RETURN NULL; END $$",
        made,
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("noted", "public.analytics_pageview", "allow_cascades=True")):
        exporter.delete_exported_pageviews(DAY)
    assert rows_of(filled, "SELECT count(*) FROM note") == [(0,)]
    assert left(filled) == [1, 2, 3, 4]
    assert exporter.delete_exported_pageviews(DAY, allow_cascades=True)["deleted"] == 3


def test_triggers_that_deletion_does_not_fire_are_none(place: Place, filled: str) -> None:
    execute(
        filled,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$",
        "CREATE TRIGGER counted BEFORE INSERT OR UPDATE ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION note()",
        "CREATE TRIGGER off AFTER DELETE ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION note()",
        "ALTER TABLE analytics_pageview DISABLE TRIGGER off",
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    assert exporter.delete_exported_pageviews(DAY)["deleted"] == 3


def test_columns_that_no_file_holds_are_not_lost_unasked(place: Place, filled: str) -> None:
    execute(
        filled,
        "ALTER TABLE analytics_pageview ADD referrer text DEFAULT 'none', ADD \"user\" int,"
        " ADD shown text GENERATED ALWAYS AS (path || '?') STORED, ADD gone int",
        "ALTER TABLE analytics_pageview DROP gone",
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    before = place.read(KEY)
    for named in ([], ["user"], ["Referrer", "user"]):
        with pytest.raises(
            DeletionRefused, match=saying("2026-07-01", "analytics_pageview", "referrer", "lose_columns=")
        ) as caught:
            exporter.delete_exported_pageviews(DAY, lose_columns=named)
        assert ('"user"' in str(caught.value)) == ("user" not in named)
        assert "shown" not in str(caught.value)
    assert (left(filled), place.read(KEY)) == ([1, 2, 3, 4], before)
    with pytest.raises(InvalidInput, match="lose_columns"):
        exporter.delete_exported_pageviews(DAY, lose_columns="referrer")
    assert exporter.delete_exported_pageviews(DAY, lose_columns=("referrer", "user"))["deleted"] == 3


def test_a_column_that_is_not_mapped_is_held_by_no_file(place: Place, filled: str) -> None:
    exporter = place.exporter(PostgresSource(filled, columns={"full_path": None}))
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match="full_path"):
        exporter.delete_exported_pageviews(DAY)
    assert exporter.delete_exported_pageviews(DAY, lose_columns=["full_path"])["deleted"] == 3


def test_a_session_that_fires_no_triggers_leaves_rows_that_refer_to_nothing(place: Place, filled: str) -> None:
    """`session_replication_role` takes foreign keys out of force, and fires other triggers."""
    execute(filled, REFERS % "")
    replica = filled + "?options=-c%20session_replication_role%3Dreplica"
    exporter = place.exporter(replica)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("public.bookmark", "of_view", "not enforced")):
        exporter.delete_exported_pageviews(DAY)
    assert left(filled) == [1, 2, 3, 4]
    execute(
        filled,
        "DROP TABLE bookmark",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN old; END $$",
        "CREATE TRIGGER usual AFTER DELETE ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION note()",
        "CREATE TRIGGER there AFTER DELETE ON analytics_pageview FOR EACH ROW EXECUTE FUNCTION note()",
        "ALTER TABLE analytics_pageview ENABLE REPLICA TRIGGER there",
    )
    for url, fires, rests in ((filled, "usual", "there"), (replica, "there", "usual")):
        [other] = PostgresSource(url).effects()["others"]
        assert fires in other
        assert rests not in other


def test_a_key_that_is_not_enforced_in_one_partition_is_seen(place: Place, filled: str) -> None:
    execute(
        filled,
        *PARTITIONED,
        "CREATE TABLE bookmark (view bigint, day date, CONSTRAINT of_view FOREIGN KEY (view, day)"
        " REFERENCES analytics_pageview (id, date))",
        "INSERT INTO bookmark VALUES (1, '2026-07-01')",
        "ALTER TABLE july DISABLE TRIGGER ALL",
    )
    exporter = place.exporter(filled)
    exporter.export_daily_pageviews(DAY)
    with pytest.raises(DeletionRefused, match=saying("public.bookmark", "of_view", "not enforced")):
        exporter.delete_exported_pageviews(DAY)
    assert left(filled) == [1, 2, 3, 4]

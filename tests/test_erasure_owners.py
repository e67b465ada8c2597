"""Ids of projects mean something in one database: the list of erased projects and the stored days say in which, and
another one that has the same place by mistake changes nothing."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from parquet_analytics import ParquetAnalyticsExporter, PostgresSource
from parquet_analytics.exceptions import ConfigurationError, ErasureRefused, InvalidInput, StaleSnapshot

from tests.archives import DAY, KEY, Place, execute, saying, views
from tests.services import Postgres
from tests.test_export import ADD
from tests.test_merge import stored

LIST = "analytics/pageviews/_erased/projects.json"
NEXT = "2026-07-02"
LATER = (
    "INSERT INTO analytics_pageview (id, path, full_path, view_count, date, status, project_id) "
    "VALUES (7, '/', '/', 5, '2026-07-02', 200, 7)"
)


@pytest.fixture
def ours(database: str) -> str:
    execute(database, ADD)
    return database


@pytest.fixture
def theirs(postgres: Postgres) -> Iterator[str]:
    """Another site's database, in which the same ids are other projects."""
    url = postgres.create_database()
    execute(url, ADD, "UPDATE projects_project SET slug = 'theirs-' || id", LATER)
    yield url
    postgres.drop_database(url)


def project_of(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT min(project_id) FROM analytics_pageview").fetchone()
    assert found is not None
    return int(found[0])


def listed(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.read(LIST))
    return found


def everything(place: Place) -> dict[str, bytes]:
    return {key: place.read(key) for key in place.keys()}  # noqa: SIM118


def test_the_list_says_whose_ids_it_holds(place: Place, ours: str) -> None:
    exporter = place.exporter(ours)
    exporter.export_daily_pageviews(DAY)
    assert exporter.erase_project(99, "gone") is True
    assert listed(place)["owners"] == [PostgresSource(ours).identity()]
    assert exporter.erase_project(98) is True
    assert len(listed(place)["owners"]) == 1


@pytest.mark.parametrize("with_list", [False, True])
def test_another_database_at_the_same_place_erases_nothing(
    place: Place, ours: str, theirs: str, with_list: bool
) -> None:
    exporter, other = place.exporter(ours), place.exporter(theirs)
    exporter.export_daily_pageviews(DAY, per_project=True)
    if with_list:
        exporter.erase_project(99)
    before = everything(place)
    with pytest.raises(StaleSnapshot):
        other.export_daily_pageviews(DAY)
    number = project_of(theirs)
    refusal = saying(LIST if with_list else KEY, "nothing was erased", "accept_moved_database", "prefix")
    for erase in (
        lambda: other.erase_project(number, "theirs"),
        lambda: other.erase_projects({number: None, 5: None}),
        lambda: place.exporter(views()).erase_project(number),
        lambda: place.exporter(views()).erase_project(number, owner=theirs),
        lambda: exporter.erase_project(number, owner=PostgresSource(theirs).identity()),
        lambda: other.erase_from_day(DAY, slugs=["docs"]),
        lambda: place.exporter(views()).erase_from_day(DAY),
        other.check_erasure,
    ):
        with pytest.raises(ErasureRefused, match=refusal) as caught:
            erase()
        assert caught.value.retryable is False
        assert everything(place) == before
    if with_list:
        with pytest.raises(ErasureRefused):
            other.unerase_projects([99])
        assert everything(place) == before
    exporter.check_erasure()
    assert exporter.erase_project(number) is True


def test_a_list_of_old_belongs_to_whom_the_days_belong(place: Place, ours: str, theirs: str) -> None:
    place.exporter(ours).export_daily_pageviews(DAY)
    old = b'{"format":1,"projects":[{"project_id":5,"slug":"x","erased_at":"2026-01-01T00:00:00Z"}]}'
    place.write(LIST, old)
    with pytest.raises(ErasureRefused, match=saying(KEY)):
        place.exporter(theirs).erase_project(1)
    assert place.read(LIST) == old
    assert place.exporter(ours).erase_project(6) is True
    assert listed(place)["owners"] == [PostgresSource(ours).identity()]
    assert listed(place)["projects"][0] == {"project_id": 5, "slug": "x", "erased_at": "2026-01-01T00:00:00Z"}


def test_one_day_of_another_database_is_enough_to_refuse(place: Place, ours: str, theirs: str) -> None:
    """Whichever of the two began it: both sites export days that the other has not."""
    place.exporter(ours).export_daily_pageviews(DAY)
    place.exporter(theirs).export_daily_pageviews(NEXT)
    for url, key in ((ours, NEXT), (theirs, str(DAY))):
        with pytest.raises(ErasureRefused, match=saying(f"pageviews_{key}")):
            place.exporter(url).erase_project(1)
    assert len(place.keys()) == 2


def test_a_move_that_is_acknowledged_goes_on_with_the_same_list(place: Place, ours: str, theirs: str) -> None:
    """As after a failover, or a restoration: `theirs` is `ours` from now on."""
    place.exporter(ours).export_daily_pageviews(DAY)
    place.exporter(ours).erase_project(99)
    moved = place.exporter(theirs)
    number = project_of(theirs)
    assert moved.erase_project(number, accept_moved_database=True) is True
    owners = [PostgresSource(url).identity() for url in (ours, theirs)]
    assert listed(place)["owners"] == owners
    # Said once, it holds: also of the days that are from before.
    assert moved.erase_project(97) is True
    assert moved.erase_from_day(DAY)["outcome"] == "merged"
    assert stored(place).num_rows < 3
    # The old one is not the present one any more.
    with pytest.raises(ErasureRefused):
        place.exporter(ours).erase_project(96)
    assert listed(place)["owners"] == owners
    # And back.
    assert place.exporter(ours).erase_projects({}, accept_moved_database=True) == []
    assert listed(place)["owners"] == owners[::-1]
    assert place.exporter(ours).erase_project(96) is True


def test_who_has_no_database_can_acknowledge_too(place: Place, ours: str) -> None:
    """A source of rows that cannot say whose they are: the list stays its owner's."""
    place.exporter(ours).export_daily_pageviews(DAY)
    place.exporter(ours).erase_project(99)
    nobody = place.exporter(views())
    with pytest.raises(ErasureRefused, match="no database says"):
        nobody.erase_project(98)
    assert nobody.erase_project(98, accept_moved_database=True) is True
    assert listed(place)["owners"] == [PostgresSource(ours).identity()]
    with pytest.raises(ErasureRefused, match="no database says"):
        nobody.erase_project(97)


def test_days_alone_can_be_acknowledged_too(place: Place, ours: str, theirs: str) -> None:
    place.exporter(ours).export_daily_pageviews(DAY)
    assert place.exporter(theirs).erase_project(99, accept_moved_database=True) is True
    assert listed(place)["owners"] == [PostgresSource(url).identity() for url in (ours, theirs)]
    assert place.exporter(theirs).erase_from_day(DAY)["outcome"] == "unchanged"


def test_without_any_database_only_what_names_none_is_erased(place: Place, ours: str) -> None:
    arrow = place.exporter(views())
    arrow.export_daily_pageviews(DAY)
    assert arrow.erase_project(99) is True
    assert "owners" not in listed(place)
    assert arrow.erase_project(7) is True
    assert arrow.erase_from_day(DAY)["total_records"] == 0
    # Whoever has a database takes such a list over.
    assert place.exporter(ours).erase_project(98) is True
    with pytest.raises(ErasureRefused, match=saying("owner=")):
        arrow.erase_project(97)
    assert arrow.erase_project(97, owner=ours) is True


def test_an_export_leaves_out_nothing_by_another_databases_list(place: Place, ours: str, theirs: str) -> None:
    """The list was begun before either had a day."""
    number = project_of(ours)
    place.exporter(theirs).erase_project(number)
    for arguments in ({}, {"replace": True}, {"discard_stored": True}, {"per_project": True}):
        with pytest.raises(StaleSnapshot, match=saying(LIST, "belongs to", "accept_moved_database")):
            place.exporter(ours).export_daily_pageviews(DAY, **arguments)
    with pytest.raises(StaleSnapshot, match=saying(LIST)):
        place.exporter(views(project_id=[number] * 3)).export_daily_pageviews(DAY)
    assert place.keys() == [LIST]
    # Where none of its rows is concerned there is nothing to be wrong about.
    place.exporter(theirs).unerase_projects([number])
    place.exporter(theirs).erase_project(-12345)
    assert place.exporter(ours).export_daily_pageviews(DAY)["total_records"] == 3


def test_after_a_move_that_is_acknowledged_erased_rows_stay_out(place: Place, ours: str, theirs: str) -> None:
    number = project_of(ours)
    place.exporter(theirs).erase_project(number)
    result = place.exporter(ours).export_daily_pageviews(DAY, accept_moved_database=True, allow_empty=True)
    assert result["total_records"] < 3


def test_a_day_is_written_anew_only_by_its_own_database(place: Place, ours: str, theirs: str) -> None:
    """Also when the day came after the list was begun."""
    place.exporter(ours).erase_project(project_of(ours))
    place.exporter(theirs).export_daily_pageviews(NEXT, accept_moved_database=True, allow_empty=True)
    before = everything(place)
    with pytest.raises(ErasureRefused, match=saying(f"pageviews_{NEXT}")):
        place.exporter(ours).erase_from_day(NEXT)
    assert everything(place) == before


def test_nothing_of_another_databases_day_goes_not_even_own_copies(place: Place, ours: str, theirs: str) -> None:
    """Erasing a day drops copies first; whose the day is, is looked at before."""
    execute(ours, LATER)
    exporter = place.exporter(ours)
    exporter.export_daily_pageviews(NEXT, per_project=True)
    copies = {key: place.read(key) for key in place.keys() if "/project/" in key}  # noqa: SIM118
    exporter.erase_project(7)
    place.exporter(theirs).export_daily_pageviews(NEXT, accept_moved_database=True, allow_empty=True)
    for key, body in copies.items():
        place.write(key, body)
    before = everything(place)
    slugs = {key.split("/project/")[1].split("/")[0] for key in copies}
    with pytest.raises(ErasureRefused, match=saying(f"pageviews_{NEXT}")):
        exporter.erase_from_day(NEXT, slugs=slugs)
    assert everything(place) == before
    assert exporter.days_with_erased_copies([NEXT], slugs) == [datetime.date.fromisoformat(NEXT)]


def test_copies_of_another_database_stay(place: Place, ours: str, theirs: str) -> None:
    number = project_of(ours)
    place.exporter(theirs).export_daily_pageviews(NEXT, per_project=True)
    copies = [key for key in place.keys() if "/project/" in key]  # noqa: SIM118
    slug = copies[0].split("/project/")[1].split("/")[0]
    day = KEY.replace("07/01", "07/02").replace("07-01", "07-02")
    place.s3.client().delete_object(Bucket=place.bucket, Key=f"{place.location}/{day}")
    exporter = place.exporter(ours)
    exporter.erase_project(number)
    with pytest.raises(ErasureRefused, match=saying("project/", slug)):
        exporter.erase_from_day(NEXT, slugs=[slug])
    assert set(copies) < set(place.keys())


def test_owners_are_databases() -> None:
    exporter = ParquetAnalyticsExporter("memory://owners", source=views())
    with pytest.raises(InvalidInput, match="owner"):
        exporter.erase_project(1, owner=5)
    with pytest.raises(ConfigurationError):
        exporter.erase_project(1, owner=" ")
    for owner in ({}, {"database": None}):
        with pytest.raises(InvalidInput, match="database"):
            exporter.erase_project(1, owner=owner)
    named = {"database": "name:a/1", "timeline": None, "relation": None, "table": None}
    assert exporter.erase_project(1, owner=named) is True
    with pytest.raises(ErasureRefused):
        exporter.erase_project(2, owner=named | {"database": "name:b/1"})

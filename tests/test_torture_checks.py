"""The random test is worth what its checks notice: each kind of loss, made by hand, has to be found."""

from __future__ import annotations

import datetime
import hashlib
import io
from collections.abc import Callable, Iterator
from random import Random

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.services import S3, Postgres
from tests.torture.archive import copy_key
from tests.torture.invariant import Violation
from tests.torture.player import Player

DAY = datetime.date(2024, 1, 1)
NEXT = datetime.date(2024, 1, 2)
KEY = "analytics/pageviews/2024/01/01/pageviews_2024-01-01.parquet"
SORTING = [pq.SortingColumn(place, nulls_first=True) for place in (2, 9, 5, 4, 0)]


@pytest.fixture
def player(postgres: Postgres, s3: S3) -> Iterator[Player]:
    with Player.on_s3(postgres, s3) as player:
        player.site.insert(Random(0), DAY, 40)
        player.look()
        assert player.export(DAY).done
        player.look()
        yield player


class Vandal:
    """Does by hand what no export and no deletion may ever do."""

    def __init__(self, player: Player, s3: S3) -> None:
        self.player = player
        self.site = player.site
        self.client = s3.client()
        self.bucket = s3.bucket
        self.root = player.url.removeprefix(f"s3://{s3.bucket}/")

    def table(self) -> pa.Table:
        return pq.read_table(io.BytesIO(self.read()))

    def read(self) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=f"{self.root}/{KEY}")["Body"].read()

    def put(self, body: bytes, key: str = KEY, rows: int = 40) -> None:
        about = {"run_id": "x", "rows": str(rows), "sha256": hashlib.sha256(body).hexdigest()}
        metadata = {f"parquet_analytics.{name}": value for name, value in about.items()}
        self.client.put_object(Bucket=self.bucket, Key=f"{self.root}/{key}", Body=body, Metadata=metadata)

    def store(self, table: pa.Table, *, views: int | None = None, rows: int | None = None) -> None:
        """The rows as a file that is right in everything else."""
        about = {
            "format": "1",
            "day": DAY.isoformat(),
            "run_id": "x",
            "rows": str(table.num_rows),
            "views": str(pc.sum(table["view_count"]).as_py() if views is None else views),
        }
        table = table.replace_schema_metadata({f"parquet_analytics.{name}": value for name, value in about.items()})
        sink = io.BytesIO()
        pq.write_table(table, sink, sorting_columns=SORTING)
        self.put(sink.getvalue(), rows=rows or table.num_rows)

    def drop(self, *ids: int) -> None:
        self.site.connection.execute("DELETE FROM analytics_pageview WHERE id = ANY(%s)", (list(ids),))

    def changed(self, table: pa.Table, column: str, change: Callable[[pa.Array], pa.Array]) -> pa.Table:
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(place), change(table[column]).cast(table.schema.types[place]))


def late_row_deleted(vandal: Vandal) -> None:
    vandal.drop(*vandal.site.insert(Random(1), DAY, 1))


def changed_row_deleted(vandal: Vandal) -> None:
    vandal.site.count_views(Random(1), [5])
    vandal.drop(5)


def row_changed_in_the_database(vandal: Vandal) -> None:
    vandal.site.connection.execute("UPDATE analytics_pageview SET view_count = view_count + 1 WHERE id = 5")


def row_invented_in_the_database(vandal: Vandal) -> None:
    vandal.site.connection.execute(
        "INSERT INTO analytics_pageview (path, view_count, date, status, project_id) VALUES ('/', 1, %s, 200, 1)",
        (DAY,),
    )


def row_brought_back(vandal: Vandal) -> None:
    [row] = [row for id, row in vandal.player.seen.table.items() if id == 5]
    vandal.site.delete([5])
    vandal.site.reuse_id(row)


def stored_row_dropped(vandal: Vandal) -> None:
    vandal.store(vandal.table().slice(1))


def deleted_row_dropped_from_the_file(vandal: Vandal) -> None:
    table = vandal.table()
    [first, *_] = table["id"].to_pylist()
    vandal.drop(first)
    vandal.store(table.slice(1))


def row_twice_in_the_file(vandal: Vandal) -> None:
    table = vandal.table()
    vandal.store(pa.concat_tables([table.slice(0, 1), table]))


def row_invented_in_the_file(vandal: Vandal) -> None:
    table = vandal.table()
    vandal.store(vandal.changed(table, "view_count", lambda views: pc.add(views.cast(pa.int64()), 1).cast(pa.int32())))


def older_state(vandal: Vandal) -> None:
    older = vandal.table()
    vandal.site.count_views(Random(1), [5])
    vandal.player.look()
    assert vandal.player.export(DAY, replace=True).done
    vandal.player.look()
    vandal.store(older)


def wrong_slug(vandal: Vandal) -> None:
    table = vandal.table()
    slugs = pa.array([*table["project_slug"].to_pylist()[:-1], "zzz"])
    vandal.store(vandal.changed(table, "project_slug", lambda _: slugs))


def moved_row_in_both_files(vandal: Vandal) -> None:
    vandal.site.move_rows([5], NEXT)
    vandal.player.look()
    assert vandal.player.export(NEXT).done
    vandal.player.look()
    vandal.drop(5)


def erased_row_left(vandal: Vandal) -> None:
    vandal.site.erase(1)
    vandal.player.invariant.swept.add(1)


def copy_removed(vandal: Vandal) -> None:
    assert vandal.player.export(DAY, per_project=True).done
    vandal.player.look()
    slug = vandal.site.slugs[1][-1]
    vandal.client.delete_object(Bucket=vandal.bucket, Key=f"{vandal.root}/{copy_key(slug, DAY)}")


def unsorted(vandal: Vandal) -> None:
    vandal.store(vandal.table().sort_by("id"))


def wrong_views(vandal: Vandal) -> None:
    vandal.store(vandal.table(), views=1)


def wrong_rows(vandal: Vandal) -> None:
    vandal.store(vandal.table(), rows=39)


def truncated(vandal: Vandal) -> None:
    vandal.put(vandal.read()[:-100])


def foreign_object(vandal: Vandal) -> None:
    vandal.put(vandal.read(), f"{KEY}.part")


def object_removed(vandal: Vandal) -> None:
    vandal.client.delete_object(Bucket=vandal.bucket, Key=f"{vandal.root}/{KEY}")


def temporary_file_left(vandal: Vandal) -> None:
    (vandal.player.invariant.temporary / "spool").touch()  # type: ignore[operator]


SABOTAGE: dict[Callable[[Vandal], None], str] = {
    late_row_deleted: "1 rows are lost",
    changed_row_deleted: "1 rows are lost",
    row_changed_in_the_database: "that somebody else changed",
    row_invented_in_the_database: "that the application did not leave",
    row_brought_back: "that the application did not leave",
    stored_row_dropped: "lacks rows that were stored",
    deleted_row_dropped_from_the_file: "lacks rows that were stored",
    row_twice_in_the_file: "holds ids twice",
    row_invented_in_the_file: "rows that never were",
    older_state: "older state",
    wrong_slug: "names 'zzz'",
    moved_row_in_both_files: "1 rows are in more than one file",
    erased_row_left: "rows of erased projects: \\[1\\]",
    copy_removed: "objects are gone",
    unsorted: "is not sorted",
    wrong_views: "says views 1",
    wrong_rows: "object metadata rows 39",
    truncated: "cannot be read",
    foreign_object: "none of the keys",
    object_removed: "objects are gone",
    temporary_file_left: "left in the temporary folder",
}


@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda sabotage: sabotage.__name__.replace("_", " "))
def test_every_kind_of_loss_is_noticed(sabotage: Callable[[Vandal], None], player: Player, s3: S3) -> None:
    sabotage(Vandal(player, s3))
    with pytest.raises(Violation, match=SABOTAGE[sabotage]):
        player.look()


def test_what_is_allowed_is_no_violation(player: Player, s3: S3) -> None:
    vandal = Vandal(player, s3)
    vandal.drop(1, 2, 3)  # stored as they are
    vandal.site.insert(Random(1), DAY, 3)
    vandal.site.count_views(Random(1), [4, 5])
    vandal.site.delete([6])
    vandal.site.rename(Random(1), 1)
    vandal.store(vandal.table())
    player.look()
    assert len(player.seen.stored(DAY)) == 40
    assert len(player.seen.of(DAY)) == 39
    assert player.deleted == 3


def test_what_has_moved_and_what_is_erased_may_leave_a_file(player: Player, s3: S3) -> None:
    vandal = Vandal(player, s3)
    gone = {id for id, row in player.seen.table.items() if row.project_id == 1}
    moved = min(player.seen.table.keys() - gone)
    vandal.site.move_rows([moved], NEXT)
    vandal.site.erase(1)
    table = vandal.table()
    left = [id not in gone and id != moved for id in table["id"].to_pylist()]
    vandal.store(table.filter(pa.array(left)))
    player.look()
    assert player.seen.stored(DAY).keys() == player.seen.of(DAY).keys()

"""Values that tools trip over: stored and read back equal, as psycopg and pyarrow see them, or refused by name."""

from __future__ import annotations

import datetime
import io
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_analytics import PostgresSource
from parquet_analytics.exceptions import BadRow, DayHasNoRows, InvalidInput, ParquetAnalyticsError, SourceSchemaError
from psycopg import sql

from tests.archives import DAY, KEY, SCHEMA, Place, execute, rows_of, saying, views
from tests.services import Postgres

INT16, INT32, INT64 = 2**15, 2**31, 2**63
LONGEST = 2**18 - 1  # bytes of a path
LONGEST_SLUG = 2**12 - 1

# The tables of Read the Docs with every limit taken away that the file has not.
LOOSE = """
    CREATE TABLE wild (id bigint, project_id bigint, version_id bigint, path text, full_path text,
                       view_count bigint, date date, status bigint);
    CREATE TABLE wild_projects (id bigint, slug text);
    CREATE TABLE wild_versions (id bigint, slug text);
"""
COLUMNS = ["id", "project_id", "version_id", "path", "full_path", "view_count", "date", "status"]

NASTY = [
    "",
    " ",
    "'",
    '"',
    "`",
    "''; DROP TABLE analytics_pageview; --",
    "%",
    "_",
    "*",
    "?[!a]{b,c}",
    "../../etc/passwd",
    "a/../b",
    "\\",
    "\\\\",
    "\\N",
    "\\.",
    "a\n\\.\nb",
    "\\x00",
    "\\u0000",
    "PGCOPY\n\u00ff\r\n",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\x01\x02\x1f\x7f",
    "\u0080\u0085\u009f",
    "NULL",
    "null",
    "NaN",
    "None",
    "infinity",
    "$1",
    "${jndi:ldap://x}",
    "{0}",
    "%s%n",
    "<script>alert(1)</script>",
    "&amp;",
    "\u2028\u2029",
    "\ufeff",
    "\u200b\u200d\u00ad",
    "\u202e\u2066",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\ufdd0\ufdef",
    "\ue000\uf8ff",
    "\U000f0000\U0010fffd",
    "\U0001fffe\U0001ffff\U0010fffe\U0010ffff",
    "\U0001f469\u200d\U0001f4bb",
    "\u0301",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324",
    "PAR1",
    "日本語",
    "ß",
    "ı",
    "\u1e9b\u0323",
]
# Equal to people, to Unicode's normal forms and to some file systems, but other bytes.
TWINS = [
    "\u00e9",
    "e\u0301",
    "\u212b",
    "\u00c5",
    "A\u030a",
    "\ufb01",
    "fi",
    "K",
    "\u212a",
    "ﬃ",
    "\uac00",
    "\u1100\u1161",
]


def characters(rng: random.Random, count: int) -> str:
    """Of every plane alike, assigned or not."""
    text = []
    while len(text) < count:
        point = rng.randrange(17) << 16 | rng.randrange(0x10000)
        if point and not 0xD800 <= point < 0xE000:  # PostgreSQL has no U+0000, and Unicode text no surrogates
            text.append(chr(point))
    return "".join(text)


def hostile(rng: random.Random) -> str:
    return rng.choice(
        [
            lambda: rng.choice(NASTY),
            lambda: rng.choice(TWINS),
            lambda: "/" + rng.choice(NASTY) + rng.choice(TWINS) + rng.choice(NASTY),
            lambda: characters(rng, rng.randrange(1, 20)),
            lambda: unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKD"]), characters(rng, 10)),
            lambda: "/en/latest/" + characters(rng, 3),
        ]
    )()


def numbers(least: int, most: int) -> list[int]:
    return [least, most, *(number for number in (-1, 0, 1) if least <= number <= most)]


Row = tuple[Any, ...]


class Wild:
    """A day of hostile rows, and what is to become of them."""

    def __init__(self, seed: int, rows: int, bad: int) -> None:
        self.rng = rng = random.Random(seed)
        slugs = dict.fromkeys([*TWINS, *NASTY[1:], *(characters(rng, 1 + n) for n in range(40)), "x" * LONGEST_SLUG])
        self.projects = dict(zip([-INT32, INT32 - 1, 0, -1, *range(1, len(slugs))], slugs, strict=False))
        self.versions = dict(zip([INT32 - 1, -INT32, *range(300)], ["", *slugs, *slugs], strict=False))
        ids = [-INT64, INT64 - 1, 0, -1, *rng.sample(range(1, 10**12), rows + bad - 4)]
        rng.shuffle(ids)
        self.good = [self.row(key) for key in ids[bad:]]
        # Every one breaks one rule.
        broken: list[tuple[str, Callable[[], Any]]] = [
            ("project_id", lambda: rng.choice([None, INT32, -INT32 - 1, INT64 - 1, -INT64])),
            ("version_id", lambda: rng.choice([INT32, -INT32 - 1, INT64 - 1, -INT64])),
            ("path", lambda: rng.choice([None, "x" * (LONGEST + 1), "é" * (LONGEST // 2 + 1)])),
            ("full_path", lambda: "/" + "\U0001f600" * (LONGEST // 4) + "abc"),
            ("view_count", lambda: rng.choice([None, -1, INT32, -INT32, INT64 - 1, -INT64])),
            ("status", lambda: rng.choice([None, -1, INT16, INT32, -INT16, INT64 - 1, -INT64])),
        ]
        self.bad: dict[int, str] = {}
        self.bad_rows = []
        for number, key in enumerate(ids[:bad]):
            column, value = broken[number % len(broken)]
            row = list(self.row(key))
            row[COLUMNS.index(column)] = value()
            self.bad[key] = column
            self.bad_rows.append(tuple(row))
        # Long ones, twice each: once as they are and once with another end.
        for number, text in enumerate(["é" * 2048, "\U0010ffff" * 4096, "\\" * 100_000, characters(rng, 25_000)]):
            for end in "ab":
                row = list(self.good[2 * number + (end == "b")])
                row[3:5] = text + end, text if end == "a" else None
                self.good[2 * number + (end == "b")] = tuple(row)
        longest = list(self.good[-1])
        longest[3] = "/" * LONGEST
        self.good[-1] = tuple(longest)

    def row(self, key: int) -> Row:
        rng = self.rng
        return (
            key,
            rng.choice(list(self.projects)),
            rng.choice([None, *self.versions]),
            hostile(rng),
            rng.choice([None, hostile(rng)]),
            rng.choice(numbers(0, INT32 - 1)),
            DAY,
            rng.choice([*numbers(0, INT16 - 1), 200, 404]),
        )

    def load(self, database: str, *, bad: bool) -> None:
        rows = self.good + (self.bad_rows if bad else [])
        self.rng.shuffle(rows)
        with psycopg.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(LOOSE)
            for table, slugs in (("wild_projects", self.projects), ("wild_versions", self.versions)):
                with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
                    for item in slugs.items():
                        copy.write_row(item)
            with cursor.copy("COPY wild FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)

    def source(self, database: str) -> PostgresSource:
        return PostgresSource(database, table="wild", projects_table="wild_projects", versions_table="wild_versions")


def in_database(database: str, ids: list[int]) -> list[Row]:
    """The ten columns as PostgreSQL has them, in the order that a file promises."""
    return rows_of(
        database,
        """
        SELECT v.id, v.project_id, p.slug, v.version_id, b.slug, v.path, v.full_path, v.view_count, v.date, v.status
        FROM wild v JOIN wild_projects p ON p.id = v.project_id LEFT JOIN wild_versions b ON b.id = v.version_id
        WHERE v.date = %s AND v.id = ANY(%s)
        ORDER BY p.slug COLLATE "C", v.status, v.path COLLATE "C", b.slug COLLATE "C" NULLS FIRST, v.id
        """,
        (DAY, ids),
    )


def stored(place: Place, key: str = KEY) -> pa.Table:
    table = pq.read_table(io.BytesIO(place.read(key)))
    assert table.schema.equals(SCHEMA)
    table.validate(full=True)
    return table


def rows(table: pa.Table) -> list[Row]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def check_equal(found: list[Row], expected: list[Row]) -> None:
    assert len(found) == len(expected)
    different = [number for number, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
    assert not different, f"row {different[0]}: {found[different[0]]!r:.500} instead of {expected[different[0]]!r:.500}"


def check_hostile_rows(seed: int, count: int, place: Place, database: str) -> None:
    wild = Wild(seed, count, bad=90)
    wild.load(database, bad=True)
    exporter = place.exporter(wild.source(database))
    with pytest.raises(BadRow) as caught:
        exporter.export_daily_pageviews(DAY)
    assert wild.bad[caught.value.row_id] == caught.value.column
    assert str(caught.value.row_id) in str(caught.value)
    assert len(str(caught.value)) < 500, "the value itself is in the message"
    assert place.keys() == []

    result = exporter.export_daily_pageviews(DAY, on_bad_row="leave")
    assert {row["id"]: row["column"] for row in result["left_rows"]} == wild.bad
    assert result["left"] == len(wild.bad)
    assert all(row["column"] in row["reason"] and len(row["reason"]) < 500 for row in result["left_rows"])
    ids = [row[0] for row in wild.good]
    expected = in_database(database, ids)
    assert len(expected) == len(ids)
    found = rows(stored(place))
    check_equal(found, expected)
    # Python's own bytes agree with the order that PostgreSQL and the file have.
    key = lambda row: (row[2].encode(), row[9], row[5].encode(), row[4] is not None, (row[4] or "").encode(), row[0])  # noqa: E731
    assert found == sorted(found, key=key)
    assert exporter.export_daily_pageviews(DAY, on_bad_row="leave")["outcome"] == "unchanged"

    querier = place.querier()
    refusals: list[str] = []
    for project, slug in wild.projects.items():
        of_project = [row for row in expected if row[1] == project]
        check_equal(rows(querier.query_pageviews(None, DAY, DAY, project_id=project)), of_project)
        views: Counter[str] = Counter()
        for row in of_project:
            views[row[5]] += row[7]
        top = querier.top_pages(None, DAY, DAY, project_id=project, limit=10_000, status=None).to_pylist()
        assert Counter({row["path"]: row["count"] for row in top}) == views
        assert [row["count"] for row in top] == sorted(views.values(), reverse=True)
        # A slug that could mean something in a key is refused; any other is just text.
        try:
            by_slug = querier.query_pageviews(slug, DAY, DAY)
        except InvalidInput:
            refusals.append(slug)
        else:
            check_equal(rows(by_slug), of_project)
    assert 20 < len(refusals) < len(wild.projects) - 20
    assert not set(refusals) & set(TWINS)
    path = expected[len(expected) // 2][5]
    [count] = querier.sql(
        "SELECT count(*) AS n FROM pageviews WHERE path = ?", [path], since=DAY, until=DAY
    ).to_pylist()
    assert count["n"] == sum(row[5] == path for row in expected)


def test_hostile_rows_are_stored_and_read_back_equal_or_refused_by_row_and_column(place: Place, database: str) -> None:
    check_hostile_rows(1, 3_000, place, database)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 22))
def test_hostile_rows_of_any_seed(seed: int, place: Place, database: str) -> None:
    check_hostile_rows(seed, 10_000, place, database)


def test_every_plane_and_every_kind_of_character_is_among_the_hostile_rows() -> None:
    wild = Wild(1, 3_000, bad=90)
    text = "".join(f"{row[3]}{row[4]}" for row in wild.good) + "".join(wild.projects.values())
    assert {ord(character) >> 16 for character in text} == set(range(17))
    kinds = {unicodedata.category(character) for character in text}
    assert {"Cc", "Cf", "Cn", "Co", "Ll", "Lo", "Lu", "Mn", "Nd", "Sm", "So", "Zl", "Zp", "Zs"} <= kinds
    assert all(twin in text for twin in TWINS)
    assert len({unicodedata.normalize("NFKC", twin) for twin in TWINS}) == len(TWINS) // 2
    assert len(wild.projects) > 100
    assert len(set(wild.bad.values())) == 6


def test_hostile_rows_of_a_stream_are_stored_and_read_back_equal(place: Place) -> None:
    wild = Wild(5, 3_000, bad=0)
    # What PostgreSQL cannot hold, Arrow can.
    zero = list(wild.good[0])
    zero[3:5] = "/\0a\0", "\0"
    wild.good[0] = tuple(zero)
    columns = dict(zip(COLUMNS, zip(*wild.good, strict=True), strict=True))
    columns["project_slug"] = tuple(wild.projects[project] for project in columns["project_id"])
    columns["version_slug"] = tuple(wild.versions.get(version) for version in columns["version_id"])
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in SCHEMA})
    place.exporter(table.select(random.Random(5).sample(SCHEMA.names, 10))).export_daily_pageviews(DAY)
    by_id = {row[0]: row for row in rows(table)}
    found = rows(stored(place))
    assert len(found) == len(by_id)
    check_equal(found, [by_id[row[0]] for row in found])


@pytest.mark.parametrize("on_bad_row", ["fail", "leave"])
@pytest.mark.parametrize("key", [0, -1, INT64 - 1, -INT64])
def test_an_id_that_repeats_in_a_table_without_a_key_is_refused_by_name(
    on_bad_row: str, key: int, place: Place, database: str
) -> None:
    wild = Wild(3, 50, bad=0)
    twin = wild.row(key)
    wild.good = [row for row in wild.good if row[0] != key] + [twin, (*twin[:3], "/other", *twin[4:])]
    wild.load(database, bad=False)
    with pytest.raises(BadRow, match=saying(str(key), "id", "unique")) as caught:
        place.exporter(wild.source(database)).export_daily_pageviews(DAY, on_bad_row=on_bad_row)
    assert (caught.value.row_id, caught.value.column) == (key, "id")
    assert place.keys() == []


def test_rows_at_infinite_and_extreme_dates_are_in_no_days_file(place: Place, database: str) -> None:
    wild = Wild(4, 30, bad=0)
    strange = ["infinity", "-infinity", "4714-11-24 BC", "0001-01-01", "5874897-12-31", "10000-01-01", "2026-07-02"]
    for number, date in enumerate(strange):
        wild.good.append((*wild.row(10**15 + number)[:6], date, 200))
    wild.load(database, bad=False)
    exporter = place.exporter(wild.source(database))
    result = exporter.export_daily_pageviews(DAY)
    assert result["total_records"] == 30
    ids = [row[0] for row in wild.good]
    check_equal(rows(stored(place)), in_database(database, ids))
    # The first day that a key can have, as an export of its own.
    first = exporter.export_daily_pageviews("0001-01-01")
    [row] = rows(stored(place, "analytics/pageviews/0001/01/01/pageviews_0001-01-01.parquet"))
    assert (first["total_records"], row[0], row[8]) == (1, 10**15 + 3, datetime.date(1, 1, 1))
    assert len(place.keys()) == 2


@pytest.fixture
def without_encoding(postgres: Postgres) -> Iterator[str]:
    """A database that takes any bytes as text, with the loose tables."""
    name = "sql_ascii"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    url = postgres.database_url(name)
    execute(
        url, LOOSE, "INSERT INTO wild_projects VALUES (7, 'docs')", "INSERT INTO wild_versions VALUES (5, 'latest')"
    )
    yield url
    postgres.drop_database(url)


NOT_UTF8 = [
    b"/caf\xe9",
    b"\x80",
    b"\xff",
    b"\xc0\xaf",  # overlong
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",  # a surrogate
    b"\xed\xa0\xbd\xed\xb8\x80",  # a pair of them
    b"\xf4\x90\x80\x80",  # beyond U+10FFFF
    b"\xf8\x88\x80\x80\x80",
    b"/a\xe2\x82",  # cut off
    b"\xe2\x82/a",
    b"/" * 100_000 + b"\xfe",
    "/ü".encode("latin-1"),
    "/あ".encode("shift-jis"),
]
FINE = ["/", "", "/é", "/e\u0301", "/\uffff", "/\U0010ffff", "/日本\U0001f600", "/" + "\U0001f600" * 4096, "\x7f\x01"]


def test_invalid_utf8_of_a_database_without_encoding_is_refused_and_the_rest_read_back_equal(
    place: Place, without_encoding: str
) -> None:
    values = [(b"/bad", bad) for bad in NOT_UTF8] + [(bad, b"/bad") for bad in NOT_UTF8]
    values += [(fine.encode(), fine.encode()[::-1] if fine.isascii() else None) for fine in FINE]
    with psycopg.connect(without_encoding) as connection, connection.cursor() as cursor:
        for key, (path, full_path) in enumerate(values, 1):
            # The server takes a backslash and hexadecimal digits for a byte.
            texts = [
                "NULL" if text is None else "E'" + "".join(f"\\x{byte:02x}" for byte in text) + "'"
                for text in (path, full_path)
            ]
            cursor.execute(f"INSERT INTO wild VALUES ({key}, 7, 5, {texts[0]}, {texts[1]}, 1, '{DAY}', 200)".encode())
    source = PostgresSource(
        without_encoding, table="wild", projects_table="wild_projects", versions_table="wild_versions"
    )
    exporter = place.exporter(source)
    bad = {key: "full_path" if key <= len(NOT_UTF8) else "path" for key in range(1, 2 * len(NOT_UTF8) + 1)}
    with pytest.raises(BadRow, match="UTF-8") as caught:
        exporter.export_daily_pageviews(DAY)
    assert bad[caught.value.row_id] == caught.value.column
    assert place.keys() == []

    result = exporter.export_daily_pageviews(DAY, on_bad_row="leave")
    assert {row["id"]: row["column"] for row in result["left_rows"]} == bad
    found = {row[0]: (row[5].encode(), None if row[6] is None else row[6].encode()) for row in rows(stored(place))}
    assert found == {key: value for key, value in enumerate(values, 1) if key not in bad}
    assert len(found) == len(FINE)


@pytest.mark.parametrize("table", ["wild_projects", "wild_versions"])
@pytest.mark.parametrize("on_bad_row", ["fail", "leave"])
def test_a_slug_that_is_not_utf8_is_refused_with_its_table_and_id(
    table: str, on_bad_row: str, place: Place, without_encoding: str
) -> None:
    execute(
        without_encoding,
        f"INSERT INTO wild VALUES (1, 7, 5, '/', NULL, 1, '{DAY}', 200)",
        rf"UPDATE {table} SET slug = E'd\xf6cs'",
    )
    source = PostgresSource(
        without_encoding, table="wild", projects_table="wild_projects", versions_table="wild_versions"
    )
    with pytest.raises(SourceSchemaError, match=saying(table, "UTF-8", "7" if table == "wild_projects" else "5")):
        place.exporter(source).export_daily_pageviews(DAY, on_bad_row=on_bad_row)
    assert place.keys() == []


@pytest.mark.parametrize("slug", [None, "x" * (LONGEST_SLUG + 1)])
def test_a_slug_that_cannot_be_stored_is_refused_with_its_project(
    slug: str | None, place: Place, database: str
) -> None:
    wild = Wild(6, 20, bad=0)
    wild.projects = dict.fromkeys(wild.projects, "docs") | {wild.good[0][1]: slug}
    wild.load(database, bad=False)
    with pytest.raises(ParquetAnalyticsError, match=saying("slug", str(wild.good[0][1]))) as caught:
        place.exporter(wild.source(database)).export_daily_pageviews(DAY)
    assert len(str(caught.value)) < 500
    assert place.keys() == []


def test_many_long_paths_are_stored_within_bounds_and_read_back_equal(place: Place, database: str) -> None:
    """Two thousand paths of 60 kB, 120 MB in all, in one project: more than a batch takes."""
    execute(
        database,
        LOOSE,
        "INSERT INTO wild_projects VALUES (7, 'docs')",
        "INSERT INTO wild SELECT i, 7, NULL, '/' || i || repeat('/x', 30000) || i, NULL, 1, '2026-07-01', 200 "
        "FROM generate_series(1, 2000) i",
    )
    source = PostgresSource(database, table="wild", projects_table="wild_projects", versions_table=None)
    result = place.exporter(source).export_daily_pageviews(DAY)
    assert result["total_records"] == 2_000
    sums = "SELECT count(*), sum(length(path)), count(DISTINCT md5(path)) FROM"
    [expected] = rows_of(database, f"{sums} wild")
    lengths = 0
    biggest = 0
    for batch in place.querier().iter_pageviews("docs", DAY, DAY):
        lengths += sum(len(path) for path in batch["path"].to_pylist())
        biggest = max(biggest, batch.nbytes)
    assert expected[:2] == (2_000, lengths)
    assert biggest < 40_000_000
    table = stored(place)
    assert {row["id"]: row["path"] for row in table.select(["id", "path"]).to_pylist()} == {
        number: f"/{number}{'/x' * 30_000}{number}" for number in range(1, 2_001)
    }


@pytest.mark.parametrize("column", ["project_slug", "version_slug", "path", "full_path"])
def test_a_text_that_is_too_long_in_a_stream_is_refused_by_row_and_column(column: str, place: Place) -> None:
    most = LONGEST_SLUG if column.endswith("slug") else LONGEST
    fits = [*views()[column].to_pylist()[:1], "é" * (most // 2) + "x", None if column == "full_path" else "x"]
    place.exporter(views(**{column: fits})).export_daily_pageviews("2026-07-01")
    assert sorted(map(str, stored(place)[column].to_pylist())) == sorted(map(str, fits))
    with pytest.raises(BadRow, match=saying("id 3", column, str(most))) as caught:
        place.exporter(views(**{column: [*fits[:2], "é" * (most // 2 + 1)]})).export_daily_pageviews(DAY)
    assert (caught.value.row_id, caught.value.column) == (3, column)
    assert len(str(caught.value)) < 500


def test_a_table_with_nothing_but_infinite_dates_has_no_earlier_day(place: Place, database: str) -> None:
    wild = Wild(7, 20, bad=0)
    wild.good = [(*row[:6], date, 200) for row, date in zip(wild.good[:2], ["infinity", "-infinity"], strict=True)]
    wild.load(database, bad=False)
    with pytest.raises(DayHasNoRows):
        place.exporter(wild.source(database)).export_daily_pageviews(DAY)
    assert place.keys() == []

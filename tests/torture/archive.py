"""Reads what is stored with boto3 and pyarrow, and checks each object by itself: whole, ours, sorted, and saying the
truth about itself."""

from __future__ import annotations

import datetime
import hashlib
import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.archives import SCHEMA
from tests.torture.site import Row, Rows

PREFIX = "analytics/pageviews/"
_NAME = r"(?P<folder>\d{4}/\d{2}/\d{2})/pageviews_(?P<day>\d{4}-\d{2}-\d{2})\.parquet"
DAY_KEY = re.compile(PREFIX + _NAME)
COPY_KEY = re.compile(PREFIX + r"(?P<scope>project|org)/(?P<slug>[^/]+)/" + _NAME)
# The objects that are no files: a deletion tries on the first whether the store heeds conditions, the others list the
# days of which rows were deleted, and the projects that were erased.
PROBE_KEY = PREFIX + "_derived/conditional-write-probe"
ERASED_KEY = PREFIX + "_erased/projects.json"
OTHER_KEYS = {PROBE_KEY, PREFIX + "_derived/manifest.json", PREFIX + "_deleted/days.json", ERASED_KEY}


def copy_key(slug: str, day: datetime.date) -> str:
    return f"{PREFIX}project/{slug}/{day:%Y/%m/%d}/pageviews_{day}.parquet"


class Broken(AssertionError):
    """An object that should not be there, or not like this."""


@dataclass(frozen=True)
class File:
    """A day's file or a copy, decoded."""

    key: str
    day: datetime.date
    etag: str
    run_id: str
    rows: Rows
    slugs: dict[int, tuple[str, str | None]]  # of project and version, by the row's id
    remaining: str | None  # what it says of rows that a deletion has left in the table; None before any

    @property
    def undecided(self) -> bool:
        """Whether a deletion was broken off, so that it is not known which of its rows the table has."""
        return self.remaining is not None and self.remaining.startswith(("unknown", "at-most"))

    @property
    def gone(self) -> set[int]:
        """Its rows that have left the table, by what it says."""
        if self.remaining is None or self.remaining == "unknown":
            return set()
        return self.rows.keys() - {int(word) for word in self.remaining.split() if word != "at-most"}

    def __str__(self) -> str:
        return f"{self.key} ({len(self.rows)} rows, run {self.run_id})"


class Archive(ABC):
    """The objects of one place, decoded anew only when their ETag has changed."""

    # Whether the ETags are the store's own, which results name.
    knows_etags = True

    def __init__(self) -> None:
        self._known: dict[str, File] = {}
        self.decoded = 0

    def look(self) -> dict[str, File]:
        """Every object, by its key."""
        seen = {}
        for key, etag in self.listed().items():
            if key in OTHER_KEYS:
                continue
            known = self._known.get(key)
            if known is None or known.etag != etag:
                known = self._known[key] = self.read(key)
                self.decoded += 1
            seen[key] = known
        return seen

    @abstractmethod
    def listed(self) -> dict[str, str]:
        """Key to ETag."""

    @abstractmethod
    def read(self, key: str) -> File: ...

    def unfinished_uploads(self) -> list[str]:
        return []


class Bucket(Archive):
    """A location in a bucket."""

    def __init__(self, client: Any, bucket: str, location: str) -> None:
        super().__init__()
        self._client = client
        self._bucket = bucket
        self._root = f"{location}/"

    def listed(self) -> dict[str, str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._root)
        found = (found for page in pages for found in page.get("Contents", ()))
        return {each["Key"].removeprefix(self._root): each["ETag"] for each in found}

    def read(self, key: str) -> File:
        got = self._client.get_object(Bucket=self._bucket, Key=self._root + key)
        return decode(key, got["Body"].read(), got["ETag"], got["Metadata"])

    def unfinished_uploads(self) -> list[str]:
        found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._root)
        return [upload["Key"] for upload in found.get("Uploads", ())]


class Folder(Archive):
    """A local folder. Names that begin with a dot are no objects; `drafts` are those."""

    knows_etags = False

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def listed(self) -> dict[str, str]:
        files = (path for path in self._root.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(self._root).as_posix(): self._etag(path) for path in files}

    def read(self, key: str) -> File:
        path = self._root / key
        return decode(key, path.read_bytes(), self._etag(path), None)

    def drafts(self) -> list[Path]:
        return [path for path in self._root.rglob(".*") if path.is_file()]

    def _etag(self, path: Path) -> str:
        about = path.stat()
        return f"{about.st_ino} {about.st_mtime_ns} {about.st_size}"


def decode(key: str, body: bytes, etag: str, metadata: dict[str, str] | None) -> File:
    """The file, if there is nothing to say against it. `metadata` is the object's; None where the store keeps none."""
    match = DAY_KEY.fullmatch(key) or COPY_KEY.fullmatch(key)
    if match is None or match["folder"].replace("/", "-") != match["day"]:
        raise Broken(f"{key} is none of the keys that an export writes")
    day = datetime.date.fromisoformat(match["day"])
    try:
        parquet = pq.ParquetFile(io.BytesIO(body))
        table = parquet.read()
    except Exception as error:
        raise Broken(f"{key} cannot be read ({len(body)} bytes): {error}") from error
    if not table.schema.remove_metadata().equals(SCHEMA):
        raise Broken(f"{key} has another schema: {table.schema}")
    listed = table.to_pylist()
    rows = {
        found["id"]: Row(**{name: value for name, value in found.items() if not name.endswith("_slug")})
        for found in listed
    }
    file = File(
        key,
        day,
        etag,
        _said(parquet, "run_id") or "",
        rows,
        {found["id"]: (found["project_slug"], found["version_slug"]) for found in listed},
        _said(parquet, "remaining"),
    )
    _check(file, parquet, listed)
    if metadata is not None:
        _check_object(file, body, metadata, copy=COPY_KEY.fullmatch(key) is not None)
    if (copy := COPY_KEY.fullmatch(key)) and copy["scope"] == "project":
        others = {found["project_slug"] for found in listed} - {copy["slug"]}
        _demand(not others, file, f"holds rows of {others}")
    return file


def _check(file: File, parquet: Any, listed: list[dict[str, Any]]) -> None:
    ids = [found["id"] for found in listed]
    twice = sorted({id for id in ids if ids.count(id) > 1}) if len(set(ids)) < len(ids) else []
    _demand(not twice, file, f"holds ids twice: {twice}")
    _demand(all(row.date == file.day for row in file.rows.values()), file, "holds rows of another day")
    order = [_order(found) for found in listed]
    _demand(order == sorted(order), file, "is not sorted")
    for number in range(parquet.metadata.num_row_groups):
        sorting = [
            (column.column_index, column.descending, column.nulls_first)
            for column in parquet.metadata.row_group(number).sorting_columns
        ]
        _demand(sorting == [(place, False, True) for place in (2, 9, 5, 4, 0)], file, f"says it is sorted by {sorting}")
    views = sum(row.view_count for row in file.rows.values())
    for name, value in (("format", "1"), ("day", file.day), ("rows", len(ids)), ("views", views)):
        _demand(_said(parquet, name) == str(value), file, f"says {name} {_said(parquet, name)} instead of {value}")
    _demand("password" not in str(parquet.metadata.metadata).lower(), file, "names a password")


def _check_object(file: File, body: bytes, metadata: dict[str, str], *, copy: bool) -> None:
    said = {name.removeprefix("parquet_analytics."): value for name, value in metadata.items()}
    truth = {"run_id": file.run_id, "rows": str(len(file.rows))}
    if not copy:
        truth["sha256"] = hashlib.sha256(body).hexdigest()
    for name, value in truth.items():
        _demand(said.get(name) == value, file, f"has the object metadata {name} {said.get(name)} instead of {value}")


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    version = row["version_slug"]
    return (
        row["project_slug"].encode(),
        row["status"],
        row["path"].encode(),
        (version is not None, (version or "").encode()),
        row["id"],
    )


def _said(parquet: Any, name: str) -> str | None:
    value = (parquet.metadata.metadata or {}).get(f"parquet_analytics.{name}".encode())
    return None if value is None else value.decode()


def _demand(holds: bool, file: File, otherwise: str) -> None:
    if not holds:
        raise Broken(f"{file} {otherwise}")

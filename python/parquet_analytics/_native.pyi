"""The compiled core. Its functions take checked values; use the classes of `parquet_analytics` instead."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

__all__ = [
    "Pageviews",
    "PostgresSource",
    "Querier",
    "Sample",
    "Store",
    "__version__",
    "check_day",
    "check_erasure",
    "check_prefix",
    "check_slug",
    "days_with_erased_copies",
    "compact_days",
    "delete_day",
    "erase_from_day",
    "erase_projects",
    "erased_projects",
    "erased_rows",
    "export_day",
    "finish_restoration",
    "parquet_path",
    "plan_export",
    "prepare_restoration",
    "read_for_restoration",
    "stored_days",
    "unerase_projects",
    "verify_day",
]

__version__: str

class _ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

class _ArrowArray(Protocol):
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

class _ArrowSchema(Protocol):
    def __arrow_c_schema__(self) -> object: ...

_Coverage = list[tuple[datetime.date, int | None]]
_Answer = tuple[_ArrowStream, dict[str, int], _Coverage | None]
_Project = tuple[str | None, int | None]
_Versions = Sequence[int | None] | None
_Days = tuple[str, str]
_Extent = tuple[str, str, list[str] | None, object | None, list[int]]

def check_day(text: str) -> str: ...
def check_slug(text: str) -> None: ...
def check_prefix(text: str) -> str: ...
def parquet_path(prefix: str, day: str, organization: str | None, project: str | None) -> str: ...
def plan_export(
    store: Store, source: PostgresSource | Callable[[datetime.date], Any], prefix: str, day: str, allow_open_day: bool
) -> dict[str, Any]: ...
def export_day(
    store: Store,
    source: PostgresSource | Callable[[datetime.date], Any],
    prefix: str,
    day: str,
    *,
    per_project: bool,
    organizations: Mapping[str, Sequence[str]] | None,
    replace: bool,
    discard_stored: bool,
    allow_empty: bool,
    allow_open_day: bool,
    leave_bad_rows: bool,
    on_id_conflict: str,
    expect_stored: bool,
    accept_moved_database: bool,
    progress: Callable[[int, int | None], object] | None,
    count_first: bool,
    sort_memory: int,
    temp_dir: str | None,
    row_group_rows: int,
) -> dict[str, Any]: ...
def verify_day(
    store: Store, prefix: str, day: str, source: PostgresSource | Callable[[datetime.date], Any] | None
) -> dict[str, Any]: ...
def compact_days(
    store: Store,
    prefix: str,
    since: str | None,
    until: str | None,
    *,
    existing: bool,
    temp_dir: str | None,
    progress: Callable[[int, int], object] | None,
) -> list[dict[str, Any]]: ...
def delete_day(
    store: Store,
    source: PostgresSource,
    prefix: str,
    day: str,
    *,
    etag: str | None,
    allow_local: bool,
    accept_moved_database: bool,
    allow_cascades: bool,
    lose_columns: Sequence[str],
    batch_rows: int,
    pause: float,
    max_rows_per_second: float | None,
    max_replica_lag: float | None,
    lock_timeout: float,
    statement_timeout: float,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
def read_for_restoration(
    store: Store,
    prefix: str,
    day: str,
    *,
    source: PostgresSource | None,
    accept_moved_database: bool,
    alive: Callable[[], object],
) -> tuple[dict[str, Any], _ArrowStream]: ...
def prepare_restoration(
    store: Store,
    prefix: str,
    day: str,
    *,
    over: str,
    rows: Callable[[datetime.date], Any] | None,
    sort_memory: int,
    temp_dir: str | None,
    row_group_rows: int,
    alive: Callable[[], object],
) -> dict[str, Any]: ...
def finish_restoration(
    store: Store,
    prefix: str,
    day: str,
    *,
    over: str,
    present: Sequence[int] | None,
    alive: Callable[[], object],
) -> dict[str, Any]: ...
def erase_projects(
    store: Store,
    prefix: str,
    projects: Sequence[tuple[int, str | None]],
    owner: Mapping[str, Any] | None,
    accept_moved_database: bool,
) -> list[int]: ...
def unerase_projects(
    store: Store,
    prefix: str,
    projects: Sequence[int],
    owner: Mapping[str, Any] | None,
    accept_moved_database: bool,
) -> list[int]: ...
def check_erasure(store: Store, prefix: str, owner: Mapping[str, Any] | None, accept_moved_database: bool) -> None: ...
def stored_days(store: Store, prefix: str) -> list[datetime.date]: ...
def erased_rows(
    store: Store, prefix: str, living: set[str] | None, slugs: set[str], most_copies: int
) -> dict[str, Any]: ...
def erased_projects(store: Store, prefix: str) -> list[int]: ...
def days_with_erased_copies(
    store: Store, prefix: str, days: Sequence[str], slugs: Sequence[str], organizations: Sequence[str]
) -> list[datetime.date]: ...
def erase_from_day(
    store: Store,
    prefix: str,
    day: str,
    *,
    slugs: Sequence[str],
    organizations: Mapping[str, Sequence[str]] | None,
    owner: Mapping[str, Any] | None,
    accept_moved_database: bool,
    sort_memory: int,
    temp_dir: str | None,
    row_group_rows: int,
) -> dict[str, Any]: ...

@final
class Store:
    def __new__(
        cls, url: str, options: Mapping[str, str], credentials: object | None = None, *, environment: bool = True
    ) -> Store: ...
    @property
    def url(self) -> str: ...
    def probe(self, prefix: str) -> list[str]: ...

@final
class PostgresSource:
    def __new__(
        cls,
        url: str,
        *,
        schema: str | None = None,
        table: str | None = None,
        projects_table: str | None = None,
        versions_table: str | None = ...,
        columns: Mapping[str, str | None] = ...,
        role: str | None = None,
        primary: str | None = None,
        standby_grace: float = 0.0,
        statement_timeout: float = 1800.0,
        lock_timeout: float = 30.0,
        database_id: str | None = None,
        projects_schema: str | None = None,
        versions_schema: str | None = None,
        relation: int | None = None,
        user: str | None = None,
    ) -> PostgresSource: ...
    def identity(self) -> dict[str, Any]: ...
    def effects(self) -> dict[str, list[str]]: ...
    def organizations(self) -> dict[str, list[str]]: ...
    def at(self, url: str) -> PostgresSource: ...

@final
class Sample:
    def __new__(cls, rows_per_day: int, projects: int, seed: int, growth: float, weekly_rhythm: bool) -> Sample: ...
    def rows(self, day: str) -> int: ...
    def day(self, day: str) -> _ArrowStream: ...
    def projects(self) -> _ArrowArray: ...
    def versions(self) -> _ArrowArray: ...
    def organizations(self) -> _ArrowArray: ...
    def special(self) -> list[str]: ...
    def load_postgres(self, url: str, since: str, until: str, schema: str | None, create_tables: bool) -> int: ...

@final
class Querier:
    def __new__(
        cls,
        store: Store,
        prefix: str,
        *,
        timeout: float | None,
        memory_limit: int,
        threads: int | None,
        max_age: float | None,
        months: bool = True,
        cache: tuple[str, int] | None = None,
    ) -> Querier: ...
    @property
    def url(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    def url_of(self, key: str) -> str: ...
    def top_pages(
        self,
        project: _Project,
        extent: _Extent,
        page: tuple[int, int],
        status: int | None,
        by: str,
        versions: _Versions = None,
    ) -> _Answer: ...
    def daily_totals(
        self, project: _Project, extent: _Extent, status: int | None, fill: bool, versions: _Versions = None
    ) -> _Answer: ...
    def sql(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any],
        extent: _Extent,
        projects: Sequence[str] | None,
        project_id: int | None,
        status: int | None = None,
        versions: _Versions = None,
    ) -> _Answer: ...
    def present(self, days: Sequence[str], fresh: bool) -> list[datetime.date]: ...
    def erased(self) -> list[int]: ...
    def days_with_deleted_rows(self, fresh: bool) -> list[datetime.date]: ...
    def pageviews(
        self,
        project: _Project,
        extent: _Extent,
        status: int | None,
        columns: Sequence[str] | None,
        versions: _Versions = None,
    ) -> Pageviews: ...
    def explain(
        self, project: _Project, days: _Days, status: int | None, columns: Sequence[str]
    ) -> list[dict[str, Any]]: ...

@final
class Pageviews:
    def schema(self) -> _ArrowSchema: ...
    def next_batch(self) -> _ArrowArray | None: ...
    def read_all(self) -> _Answer: ...
    def coverage(self) -> _Coverage | None: ...

"""Which model holds the page views, and where each column comes from in it. Reads no rows and imports no pyarrow, so
that system checks can use it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parquet_analytics.django.days import FIRST
from parquet_analytics.exceptions import ConfigurationError

__all__ = ["FIELDS", "OPTIONAL", "NativeTables", "PageViewMapping", "all_rows", "configured"]

FIELDS: Mapping[str, str] = {
    "id": "pk",
    "project_id": "project_id",
    "project_slug": "project__slug",
    "version_id": "version_id",
    "version_slug": "version__slug",
    "path": "path",
    "full_path": "full_path",
    "view_count": "view_count",
    "date": "date",
    "status": "status",
}
"""Where each column comes from in the model of Read the Docs, as lookups from the page-view model."""

OPTIONAL = frozenset({"version_id", "version_slug", "full_path", "status"})

_TEXTS = frozenset({"project_slug", "version_slug", "path", "full_path"})

# What a file can hold.
_MOST_TEXT, _MOST_SLUG = (1 << 18) - 1, (1 << 12) - 1
_RANGES = {
    "project_id": (-(2**31), 2**31 - 1),
    "version_id": (-(2**31), 2**31 - 1),
    "view_count": (0, 2**31 - 1),
    "status": (0, 2**15 - 1),
}
_NARROW = ("AutoField", "IntegerField", "PositiveIntegerField", "SmallAutoField", "SmallIntegerField")


class NativeTables(NamedTuple):
    """Tables and columns by which PostgreSQL is read without the ORM."""

    table: str
    projects_table: str
    versions_table: str | None
    columns: dict[str, str | None]


@dataclass(frozen=True)
class PageViewMapping:
    """A page-view model and, for each column that it has, the lookup.

    :raises ConfigurationError: from :meth:`of`, for a field that the model lacks.
    """

    model: Any
    lookups: dict[str, str]
    timestamps: bool
    """``date`` is a ``DateTimeField``, which is cut into UTC days."""

    @classmethod
    def of(cls, model: Any, fields: Mapping[str, str | None] | None = None) -> PageViewMapping:
        from django.conf import settings
        from django.db import models

        given = dict(fields or {})
        unknown = sorted(set(given) - set(FIELDS))
        if unknown:
            raise ConfigurationError(f"fields names {', '.join(unknown)}; the columns are {', '.join(FIELDS)}")
        lookups = {}
        timestamps = False
        for column, default in FIELDS.items():
            lookup = given.get(column, default)
            if lookup is None:
                if column not in OPTIONAL:
                    raise ConfigurationError(f"fields[{column!r}] is None, but page views have to have it")
                continue
            field = _follow(model, column, lookup)[-1]
            if column == "id" and getattr(field, "column", None) is None:
                raise ConfigurationError(
                    f"{model._meta.label} has a composite primary key, and a page view's id has to be one whole number "
                    "that no other row has; name such a field in fields['id']"
                )
            if column == "date":
                if not isinstance(field, models.DateField):
                    raise ConfigurationError(
                        f"{model._meta.label}.{lookup} is a {type(field).__name__}; date has to be a DateField, or a "
                        "DateTimeField, which is cut into UTC days"
                    )
                timestamps = isinstance(field, models.DateTimeField)
                if timestamps and not settings.USE_TZ:
                    raise ConfigurationError(
                        f"{model._meta.label}.{lookup} is a DateTimeField, and USE_TZ is False, so its values belong "
                        "to no time zone; set USE_TZ = True, or map a DateField"
                    )
            else:
                _check_kind(model, column, lookup, field)
            lookups[column] = lookup
        return cls(model, lookups, timestamps)

    def of_days(self, since: datetime.date, until: datetime.date) -> dict[str, Any]:
        """Keyword arguments of ``filter`` for the rows of these days, both included."""
        date = self.lookups["date"]
        if not self.timestamps:
            return {date: since} if since == until else {f"{date}__gte": since, f"{date}__lte": until}
        end = until + datetime.timedelta(days=1)
        return {f"{date}__gte": _midnight(since), f"{date}__lt": _midnight(end)}

    def rows(self, database: str) -> Any:
        """All rows of the table. No manager is asked: any that a model has, its base manager too, may hide some."""
        return all_rows(self.model, database)

    def dated(self, rows: Any, since: datetime.date, until: datetime.date) -> Any:
        """Those of the rows that are of these days, both included, for who wants to know which days there are. What
        cannot be read as a day is left out: SQLite takes any text for a date."""
        from django.db import connections

        found = rows.filter(**self.of_days(since, until))
        if connections[found.db].vendor == "sqlite":
            found = found.filter(self._readable())
        return found

    def odd(self, rows: Any, last: datetime.date) -> dict[str, Any]:
        """The rows that are of no day from the first to the last that there can be, by what is wrong with them."""
        from django.db import connections

        date = self.lookups["date"]
        kinds = {
            "without a date": rows.filter(**{f"{date}__isnull": True}),
            f"of days before {FIRST}": rows.filter(**self.earlier_than(FIRST)),
            f"of days after {last}": rows.filter(**self.later_than(last)),
        }
        if connections[rows.db].vendor == "sqlite":
            between = rows.filter(**self.of_days(FIRST, last))
            kinds["with a date that cannot be read"] = between.exclude(self._readable())
        return kinds

    def exact(self, column: str, database: str) -> Any:
        """A column as an expression by which texts are the same when their bytes are, as in files: a collation may call
        others equal, and so may a type."""
        from django.db import connections
        from django.db.models import F, TextField
        from django.db.models.functions import Cast, Collate

        plain = F(self.lookups[column])
        collation = {"postgresql": "C", "sqlite": "BINARY"}.get(connections[database].vendor)
        return plain if column not in _TEXTS or collation is None else Collate(Cast(plain, TextField()), collation)

    def bad(self, database: str, without: Iterable[str] = ()) -> Any:
        """The condition for rows with a value that no file can hold."""
        from django.db import connections
        from django.db.models import Q
        from django.db.models.lookups import GreaterThan

        found = Q()
        for column in self.lookups.keys() - {"id", "date", *without}:
            lookup, field = self.lookups[column], self.field(column)
            if column not in OPTIONAL or column == "status":
                found |= Q(**{f"{lookup}__isnull": True})
            if column == "project_slug":
                found |= Q(**{lookup: ""})
            if column in _RANGES and not (column == "version_id" and _is_narrow(field, connections[database])):
                least, greatest = _RANGES[column]
                found |= Q(**{f"{lookup}__lt": least}) | Q(**{f"{lookup}__gt": greatest})
            most = _MOST_SLUG if column.endswith("_slug") else _MOST_TEXT
            if column in _TEXTS and _may_exceed(field, most):
                found |= Q(GreaterThan(_bytes_of(lookup, connections[database].vendor), most))
        return found

    def _readable(self) -> Any:
        """What SQLite's own functions make the same date of."""
        from django.db.models import F, Func, TextField, Value
        from django.db.models.functions import Cast, Coalesce
        from django.db.models.lookups import Exact

        text = Cast(F(self.lookups["date"]), TextField())
        if self.timestamps:
            text = Func(text, function="substr", template="substr(%(expressions)s, 1, 19)", output_field=TextField())
        same = Func(text, function="datetime" if self.timestamps else "date", output_field=TextField())
        return Exact(Coalesce(same, Value("", output_field=TextField())), text)

    def day_of(self, value: Any) -> datetime.date | None:
        """The UTC day of a value of the model's date."""
        if isinstance(value, datetime.datetime):
            return value.astimezone(datetime.UTC).date()
        return value

    def earlier_than(self, day: datetime.date) -> dict[str, Any]:
        """Keyword arguments of ``filter`` for the rows of days before this one."""
        return {f"{self.lookups['date']}__lt": _midnight(day) if self.timestamps else day}

    def later_than(self, day: datetime.date) -> dict[str, Any]:
        """Keyword arguments of ``filter`` for the rows of days after this one."""
        if self.timestamps:
            return {f"{self.lookups['date']}__gte": _midnight(day + datetime.timedelta(days=1))}
        return {f"{self.lookups['date']}__gt": day}

    def field(self, column: str) -> Any:
        """The model field that a column comes from, or ``None``."""
        lookup = self.lookups.get(column)
        return None if lookup is None else _follow(self.model, column, lookup)[-1]

    def relation(self, column: str) -> Any:
        """The field of the page views' model that is followed to a column in another table, or ``None``."""
        lookup = self.lookups[column]
        return _follow(self.model, column, lookup)[0] if "__" in lookup else None

    @property
    def project_model(self) -> Any:
        """The model that the project's id refers to, or ``None`` when it is a plain number."""
        return self._project[0]

    @property
    def project_key(self) -> Any:
        """The field of the project's model whose values are the ids, or ``None`` when they are plain numbers."""
        return self._project[1]

    @property
    def project_slug(self) -> str | None:
        """The lookup from the project's model to the slug, or ``None`` when it comes from somewhere else."""
        slug, steps = self.lookups["project_slug"].split("__"), self._project[2]
        fields = _follow(self.model, "project_slug", self.lookups["project_slug"])
        return "__".join(slug[len(steps) :]) if steps and len(fields) > len(steps) == _alike(fields, steps) else None

    @property
    def _project(self) -> tuple[Any, Any, list[Any]]:
        """Model, key, and the relations that lead there: to a relation's own column, or to a field behind it."""
        *relations, last = _follow(self.model, "project_id", self.lookups["project_id"])
        behind = getattr(relations[-1], "related_model", None) if relations else None
        if getattr(last, "related_model", None) is None:
            return behind, last if behind is not None else None, relations
        if behind is not None and getattr(last.remote_field, "parent_link", False):
            return behind, last, relations
        return last.related_model, last.target_field, [*relations, last]

    def unheld(self) -> dict[str, Any]:
        """The columns of the model's own table that no file holds, with their fields: they go with deleted rows. A
        generated column is made anew from others."""
        own = {
            field.column
            for column in self.lookups
            if (field := self.field(column)) is not None and "__" not in self.lookups[column]
        }
        return {
            field.column: field
            for field in self.model._meta.local_concrete_fields
            if field.column not in own and not getattr(field, "generated", False)
        }

    def projects_named(self, slugs: Iterable[str], database: str) -> set[int] | None:
        """The ids of the projects with one of these slugs, or ``None`` when only the page views say."""
        relation, slug = self._slug("project")
        if relation is None:
            return None
        found = all_rows(relation.related_model, database).filter(**{f"{slug.name}__in": list(slugs)})
        return set(found.values_list(relation.target_field.attname, flat=True))

    def native_tables(self) -> NativeTables | str:
        """Tables and columns, or the reason why only the ORM can tell what these lookups mean."""
        table = self.model._meta.db_table
        if '"' in table:
            return f"{self.model._meta.label} has quotes in its db_table"
        columns: dict[str, str | None] = {}
        for column in FIELDS:
            if column.endswith("_slug"):
                continue
            field = self.field(column)
            if field is None:
                columns[column] = None
                continue
            if "__" in self.lookups[column] or field.model._meta.db_table != table:
                return f"fields[{column!r}] is in another table than {table}"
            if hasattr(field, "from_db_value"):
                return f"{self.model._meta.label}.{field.name} converts what the database holds"
            columns[column] = field.column
        slugs: dict[str, str | None] = {"project": None, "version": None}
        for what in slugs:
            if what == "version" and not {"version_id", "version_slug"} & self.lookups.keys():
                continue
            relation, slug = self._slug(what)
            if relation is None:
                return f"{what}_slug is not a plain column of the table that {what}_id refers to"
            slugs[what] = relation.related_model._meta.db_table
            columns[f"{what}_key"] = relation.target_field.column
            columns[f"{what}_slug"] = slug.column
        return NativeTables(table, str(slugs["project"]), slugs["version"], columns)

    def _slug(self, what: str) -> tuple[Any, Any]:
        """The relation and the slug's field behind it, when that is all there is to follow."""
        lookup = self.lookups.get(f"{what}_slug")
        fields = [] if lookup is None else _follow(self.model, f"{what}_slug", lookup)
        if len(fields) != 2 or fields[0] != self.field(f"{what}_id"):
            return None, None
        relation, slug = fields
        table = relation.related_model._meta.db_table
        if '"' in table or slug.model._meta.db_table != table or hasattr(slug, "from_db_value"):
            return None, None
        return relation, slug


def all_rows(model: Any, database: str | None) -> Any:
    """The rows of a model's table, whatever its managers hide."""
    from django.db.models import QuerySet

    return QuerySet(model, using=database)


def configured() -> PageViewMapping:
    """The model and fields of the settings.

    :raises ConfigurationError: when there is no such model or field.
    """
    from django.apps import apps
    from django.core.exceptions import ImproperlyConfigured

    from parquet_analytics.django.conf import settings

    try:
        name = settings.MODEL
        model = apps.get_model(name)
        fields = settings.FIELDS
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"no source was given, and Django has no settings here: {error}") from error
    except (LookupError, ValueError) as error:
        raise ConfigurationError(
            f"Django has no model {name!r}; name the page views' model in PARQUET_ANALYTICS['MODEL']: {error}"
        ) from error
    return PageViewMapping.of(model, fields)


def _check_kind(model: Any, column: str, lookup: str, field: Any) -> None:
    """Refuses Django's own fields whose values are none for the column; what others hold is seen when it is read."""
    from django.db import models

    field = getattr(field, "target_field", field)
    texts, numbers = (models.CharField, models.TextField), models.IntegerField
    others = (
        models.BinaryField,
        models.BooleanField,
        models.DateField,
        models.DecimalField,
        models.DurationField,
        models.FloatField,
        models.JSONField,
        models.TimeField,
        models.UUIDField,
    )
    if isinstance(field, (*others, numbers) if column in _TEXTS else (*others, *texts)):
        kind = "text" if column in _TEXTS else "whole numbers"
        raise ConfigurationError(
            f"{model._meta.label}.{lookup} is a {type(field).__name__}, and {column} has to be {kind}; name another "
            f"field in fields[{column!r}]" + (", or None for a model without it" if column in OPTIONAL else "")
        )


def _is_narrow(field: Any, connection: Any) -> bool:
    """Whether the database itself has no greater numbers; elsewhere a column is looked at that an index may lack."""
    kind = getattr(field, "target_field", field).get_internal_type()
    return connection.vendor == "postgresql" and kind in _NARROW


def _may_exceed(field: Any, most: int) -> bool:
    """Whether a text may have more bytes, of which a character takes four at most."""
    length = getattr(field, "max_length", None)
    return length is None or 4 * length > most


def _bytes_of(lookup: str, vendor: str) -> Any:
    """How many bytes a text has."""
    from django.db.models import BinaryField, F, Func, IntegerField, TextField
    from django.db.models.functions import Cast

    if vendor == "sqlite":
        return Func(Cast(F(lookup), BinaryField()), function="length", output_field=IntegerField())
    function = "octet_length" if vendor == "postgresql" else "length"
    return Func(Cast(F(lookup), TextField()), function=function, output_field=IntegerField())


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time.min, datetime.UTC)


def _follow(model: Any, column: str, lookup: str) -> list[Any]:
    """The fields along a lookup."""
    from django.core.exceptions import FieldDoesNotExist

    current, fields = model, []
    for part in lookup.split("__"):
        if current is None:
            raise ConfigurationError(f"fields[{column!r}] is {lookup!r}, which follows {part!r} from no relation")
        try:
            field = current._meta.pk if part == "pk" else _by_name_or_column(current, part)
        except FieldDoesNotExist:
            raise ConfigurationError(
                f"{current._meta.label} has no field {part!r}, from where {column} should come; name another in "
                f"fields[{column!r}]" + (", or None for a model without it" if column in OPTIONAL else "")
            ) from None
        fields.append(field)
        current = getattr(field, "related_model", None)
    return fields


def _alike(fields: list[Any], others: list[Any]) -> int:
    """How many of the first fields are the same."""
    pairs = zip(fields, others, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(fields), len(others)))


def _by_name_or_column(model: Any, name: str) -> Any:
    """``project_id`` is no field's name, but the attribute of the field ``project``."""
    from django.core.exceptions import FieldDoesNotExist

    for field in model._meta.concrete_fields:
        if name in (field.name, field.attname):
            return field
    raise FieldDoesNotExist(name)

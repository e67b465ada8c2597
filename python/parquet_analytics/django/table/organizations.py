"""Read the Docs' organizations and their projects, for the copies that belong to them. Other sites have none."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import FieldError

from parquet_analytics.exceptions import ConfigurationError

__all__ = ["installed", "members", "of_project"]

_MODEL = "organizations.Organization"


def installed() -> bool:
    """Whether the site has organizations."""
    return _model() is not None


def members() -> dict[str, list[str]]:
    """The slugs of each organization's projects. One without projects is told too: copies may be left of those that it
    had."""
    model = _model()
    if model is None:
        raise ConfigurationError(f"PER_ORGANIZATION needs the model {_MODEL}, with a slug and projects; leave it off")
    found: dict[str, list[str]] = {}
    for organization, project in model._base_manager.order_by("slug").values_list("slug", "projects__slug"):
        of = found.setdefault(organization, [])
        if project is not None:
            of.append(project)
    return found


def of_project(project: Any, database: str) -> list[str]:
    """The slugs of the organizations that a project is in, in the database that it is in."""
    model = _model()
    if model is None:
        return []
    found = model._base_manager.using(database).filter(projects=project.pk)
    return sorted(found.values_list("slug", flat=True))


def _model() -> Any | None:
    """The model, if it is one of this shape."""
    from django.apps import apps

    try:
        model = apps.get_model(_MODEL)
        model._base_manager.values_list("slug", "projects__slug")
    except (LookupError, FieldError):
        return None
    return model

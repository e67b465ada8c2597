"""What the guides say of settings, checks, codes, states and signals is what there is."""

from __future__ import annotations

import inspect
import re

import pytest
from parquet_analytics.django import conf, signals, tasks
from parquet_analytics.django.management.commands import export_pageviews_to_parquet, parquet_analytics
from parquet_analytics.django.models import Run
from parquet_analytics.django.operations import checks, doctor, exit_codes

from tests.test_docs import ROOT

GUIDE = (ROOT / "docs" / "django.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def cells(text: str) -> list[list[str]]:
    """The rows of a table, without its head."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" |") for cell in row] for row in rows[2:]]


def test_the_configuration_reference_is_the_settings() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in cells(section(GUIDE, "Settings"))}
    assert list(told) == list(conf.KEYS)
    for name, key in conf.KEYS.items():
        assert told[name] == repr(key.default).replace("'", '"'), name
    fallbacks = {key.fallback for key in conf.KEYS.values()} - {None}
    assert fallbacks
    for fallback in fallbacks:
        assert f"`{fallback}`" in section(GUIDE, "Settings")


def test_every_check_is_listed() -> None:
    ids = set(re.findall(r"parquet_analytics\.([EW]\d{3})", inspect.getsource(checks)))
    ids |= {f"E{number}" for number in ("001", "002", "003")}
    told = set(re.findall(r"\b([EW]\d{3})`", section(GUIDE, "Settings")))
    assert told == ids
    assert len(ids) > 10


@pytest.mark.parametrize("command", [export_pageviews_to_parquet, parquet_analytics])
def test_every_option_is_listed(command: object) -> None:
    options = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(command))) - {"--no-input"}  # type: ignore[arg-type]
    assert options
    assert options <= set(re.findall(r"--[a-z-]+", section(GUIDE, "Commands")))


def test_every_exit_code_has_its_entry() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert len(codes) == 6
    told = {row[0] for row in cells(section(OPERATIONS, "Exit codes"))}
    assert {str(code) for code in codes} <= told


def test_every_state_has_its_entry() -> None:
    told = {row[0].strip("`") for row in cells(section(OPERATIONS, "States of a run"))}
    assert told == set(Run.State.values)
    for state in Run.State.values:
        assert re.search(rf"> {state}\b", section(GUIDE, "The ledger")), state


def test_every_signal_has_its_entry() -> None:
    names = {name for name in signals.__all__ if name != "send"}
    told = {row[0].strip("`") for row in cells(section(OPERATIONS, "Signals"))}
    assert told == names
    assert all(f"`{name}(" in GUIDE for name in names)


def test_every_task_is_listed() -> None:
    names = {getattr(tasks, name).name for name in tasks.__all__}
    told = {row[0].strip("`").split("(")[0] for row in cells(section(GUIDE, "Tasks"))}
    assert told == names


def test_every_check_of_the_doctor_is_listed() -> None:
    told = section(OPERATIONS, "The doctor's checks").split(".")[0].strip()
    names = list(doctor.CHECKS)
    names.insert(names.index("store") + 1, "conditional write")
    assert told.split(", ") == names

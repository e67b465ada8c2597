"""The demo and the example, run as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.services import S3, Postgres

ROOT = Path(__file__).parent.parent
SAME = "the database gives the same answer"


def demo(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "parquet_analytics.demo",
        "--days",
        "3",
        "--rows",
        "300",
        "--projects",
        "10",
    ]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        check=False,
        timeout=120,
    )


def test_the_demo_exports_every_day_and_answers_as_the_database_does() -> None:
    result = demo()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(SAME) == 3
    assert result.stdout.count("analytics/pageviews/20") == 3
    assert "rows in 3 files" in result.stdout
    assert "█" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_demo_keeps_its_files_when_asked_and_never_mixes_them_with_others(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    result = demo("--keep", folder, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert str(folder) in result.stdout
    files = sorted((folder / "store").rglob("pageviews_*.parquet"))
    assert len(files) == 3
    assert all(pq.ParquetFile(file).metadata.num_rows > 100 for file in files)
    again = demo("--keep", folder)
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    assert sorted((folder / "store").rglob("pageviews_*.parquet")) == files


@pytest.mark.parametrize("arguments", [("--projects", "3"), ("--days", "0"), ("--rows", "many")])
def test_a_wrong_argument_is_explained_without_a_traceback(arguments: tuple[str, str]) -> None:
    result = demo(*arguments)
    assert result.returncode in (1, 2)
    assert arguments[0].strip("-") in result.stderr
    assert "Traceback" not in result.stderr


def test_the_demo_runs_against_servers_of_its_own(postgres: Postgres, s3: S3) -> None:
    result = demo("--pg", "--s3")
    assert (result.returncode, result.stderr) == (0, "")
    assert "from PostgreSQL" in result.stdout
    assert "to S3" in result.stdout
    assert result.stdout.count(SAME) == 3


def test_the_example_runs_as_it_is() -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "workflow.py")]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert "exported again: unchanged" in result.stdout
    assert "verified: " in result.stdout
    assert "top pages of" in result.stdout

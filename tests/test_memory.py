"""Memory does not grow with the day: neither of an export, beyond the sort's bound, nor of a stream of rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = """
import resource, sys
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData

rows, folder = int(sys.argv[1]), sys.argv[2]
sample = SampleData(rows_per_day=rows, projects=300, growth=0, weekly_rhythm=False)
exporter = ParquetAnalyticsExporter(f"file://{folder}", source=sample.day, sort_memory=64 << 20, temp_dir=folder)
assert exporter.export_daily_pageviews("2026-07-01")["total_records"] == rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

STREAM = """
import resource, sys
from parquet_analytics import ParquetAnalyticsQuerier, SampleData

largest = SampleData(projects=300).special_projects()["largest"]
querier = ParquetAnalyticsQuerier(f"file://{sys.argv[2]}")
read = sum(batch.num_rows for batch in querier.iter_pageviews(largest, "2026-07-01", "2026-07-01"))
assert read > int(sys.argv[1]) // 10, read
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mib(program: str, rows: int, folder: Path) -> int:
    """The most memory that a process of its own had resident."""
    command = [sys.executable, "-c", program, str(rows), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.full
def test_memory_does_not_grow_with_the_day(tmp_path: Path) -> None:
    peaks = {}
    for rows in (1_000_000, 6_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        peaks[rows] = peak_mib(EXPORT, rows, folder), peak_mib(STREAM, rows, folder)
        left = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert left == {".parquet", ".json"}, "temporary files were left"
    small, large = peaks.values()
    # Six times the rows (about 900 MB of them) may take no more than a little more memory.
    assert large[0] < small[0] + 250, peaks
    assert large[1] < small[1] + 250, peaks

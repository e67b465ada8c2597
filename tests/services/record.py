"""Which tests used which server, and which were skipped for the lack of one, written by Rust and Python tests.

The file is named by PARQUET_ANALYTICS_TEST_RECORD; a line is `used|skipped <service> rust|python <test> [reason]`,
separated by tabs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "PARQUET_ANALYTICS_TEST_RECORD"
NAMES = {
    "postgres": "PostgreSQL",
    "s3": "S3",
    "pgbouncer": "pgbouncer",
    "tls": "PostgreSQL over TLS",
    "valkey": "Celery and Valkey",
}


def append(outcome: str, service: str, test: str, reason: str = "") -> None:
    """Adds a Python test to the record, when there is one."""
    if path := os.environ.get(VARIABLE):
        line = "\t".join([outcome, service, "python", test, " ".join(reason.split())])
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def summary(path: Path) -> Iterable[str]:
    """How many tests ran against each service, and each skipped test with its reason."""
    rows = {tuple((line + "\t").split("\t")[:5]) for line in path.read_text(encoding="utf-8").splitlines()}
    used = {row[1:4] for row in rows if row[0] == "used"}
    for service, name in NAMES.items():
        counts = {
            language: len({test for kind, by, test in used if kind == service and by == language})
            for language in ("rust", "python")
        }
        yield f"ran against {name}: {sum(counts.values())} tests ({counts['rust']} Rust, {counts['python']} Python)"
    skipped = sorted(row for row in rows if row[0] == "skipped")
    yield f"skipped: {len({(row[2], row[3]) for row in skipped})}"
    for _, service, language, test, reason in skipped:
        yield f"  {language} {test}: {reason or f'{NAMES.get(service, service)} is not available'}"

"""`python -m tests.torture --steps N --seed S` starts PostgreSQL and an S3 server and runs the random test on them."""

from __future__ import annotations

import argparse
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.services import S3, Postgres, Workspace
from tests.torture.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--verbose", action="store_true", help="tell each step")
    given = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    print(f"torture: {given.steps} steps, seed {seed}", flush=True)
    with Workspace() as workspace, ThreadPoolExecutor(2) as pool:
        postgres, s3 = pool.submit(Postgres.start, workspace), pool.submit(S3.start, workspace)
        tell = (lambda text: print(text, flush=True)) if given.verbose else (lambda _: None)
        report = run(postgres.result(), s3.result(), given.steps, seed, tell)
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())

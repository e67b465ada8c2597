"""Real servers for tests, the demo and benches, on free ports of 127.0.0.1: PostgreSQL (and a standby), pgbouncer,
S3, Valkey.

Every server lives in one temporary folder and is stopped by its process id; a watchdog process stops
whatever is left and removes the folder when the process that started them dies in any way.

    with Workspace() as workspace:
        postgres = Postgres.start(workspace)
        url = postgres.create_database()      # an empty copy of tests/rtd_schema.sql
        s3 = S3.start(workspace)

`python -m tests.services run -- COMMAND` does the same around a command, and tells it by environment
variables where the servers are (see `__main__.py`).
"""

from .pgbouncer import PgBouncer
from .postgres import Postgres
from .s3 import S3, S3Identity
from .standby import Standby
from .valkey import Valkey
from .workspace import Unavailable, Workspace

__all__ = ["S3", "PgBouncer", "Postgres", "S3Identity", "Standby", "Unavailable", "Valkey", "Workspace"]

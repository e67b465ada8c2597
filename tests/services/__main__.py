"""`python -m tests.services run -- COMMAND...`: starts the servers, runs COMMAND, stops them.

COMMAND finds them by these variables; one that could not be started is not set, and said so on stderr:

- PARQUET_ANALYTICS_TEST_POSTGRES: the superuser's URL; `CREATE DATABASE x TEMPLATE rtd` has the schema
- PARQUET_ANALYTICS_TEST_UNIX_SOCKET: the same by the unix socket
- PARQUET_ANALYTICS_TEST_PGBOUNCER: the same through pgbouncer in transaction mode, every database
- PARQUET_ANALYTICS_TEST_TLS: JSON with host (localhost, as in the certificate), ip, port, database, password,
  tls_user (password, TLS demanded), cert_user (client certificate demanded), ca, other_ca, client_cert, client_key
- PARQUET_ANALYTICS_TEST_S3: JSON with endpoint_url, region, bucket, access_key_id, secret_access_key, and the
  same two keys under `readonly` and `denied`

Afterwards it prints how many tests used each server, and which were skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from . import S3, PgBouncer, Postgres, Unavailable, Workspace, record
from .postgres import CERTIFICATE_ROLE, TLS_ROLE


def postgres_environment(workspace: Workspace) -> dict[str, str]:
    try:
        postgres = Postgres.start(workspace)
    except Unavailable as reason:
        print(f"services: PostgreSQL is not available: {reason}", file=sys.stderr)
        return {}
    found = {
        "PARQUET_ANALYTICS_TEST_POSTGRES": postgres.url,
        "PARQUET_ANALYTICS_TEST_UNIX_SOCKET": postgres.socket_url,
    }
    if postgres.tls:
        description = {
            "host": "localhost",
            "ip": "127.0.0.1",
            "port": postgres.port,
            "database": "postgres",
            "user": TLS_ROLE,
            "tls_user": TLS_ROLE,
            "cert_user": CERTIFICATE_ROLE,
            "password": postgres.password,
            "ca": str(postgres.ca),
            "other_ca": str(postgres.other_ca),
            "client_cert": str(postgres.client_certificate),
            "client_key": str(postgres.client_key),
        }
        found["PARQUET_ANALYTICS_TEST_TLS"] = json.dumps(description)
    else:
        print("services: this PostgreSQL was built without TLS", file=sys.stderr)
    try:
        found["PARQUET_ANALYTICS_TEST_PGBOUNCER"] = PgBouncer.start(workspace, postgres).url
    except Unavailable as reason:
        print(f"services: pgbouncer is not available: {reason}", file=sys.stderr)
    return found


def s3_environment(workspace: Workspace) -> dict[str, str]:
    try:
        s3 = S3.start(workspace)
    except Unavailable as reason:
        print(f"services: S3 is not available: {reason}", file=sys.stderr)
        return {}
    description = {**s3.options, "readonly": s3.readonly.as_json(), "denied": s3.denied.as_json()}
    return {"PARQUET_ANALYTICS_TEST_S3": json.dumps(description)}


def main(arguments: list[str]) -> int:
    if arguments[:2] != ["run", "--"] or len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    with Workspace() as workspace, ThreadPoolExecutor() as pool:
        starting = [pool.submit(start, workspace) for start in (postgres_environment, s3_environment)]
        environment = {name: value for started in starting for name, value in started.result().items()}
        tests = workspace.folder / "tests"
        tests.touch()
        try:
            code = subprocess.run(
                arguments[2:], env={**os.environ, **environment, record.VARIABLE: str(tests)}
            ).returncode
        except KeyboardInterrupt:
            return 130
        if tests.stat().st_size:
            print("\n".join(["=== services ===", *record.summary(tests)]), flush=True)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

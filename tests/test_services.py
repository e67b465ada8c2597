"""The servers that the other tests stand on do what those tests take for granted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from botocore.exceptions import ClientError

from tests.services import S3, PgBouncer, Postgres
from tests.services.postgres import CERTIFICATE_ROLE, TLS_ROLE

ROOT = Path(__file__).parent.parent


def test_a_database_is_empty_and_has_the_first_users_tables(database: str) -> None:
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT count(*) FROM analytics_pageview").fetchone()
    assert tables == (0,)


def test_pgbouncer_hands_transactions_of_one_client_to_different_sessions(pgbouncer: PgBouncer, database: str) -> None:
    name = database.rsplit("/", 1)[1]
    url = pgbouncer.database_url(name)
    with psycopg.connect(url, prepare_threshold=None) as first, psycopg.connect(url, prepare_threshold=None) as second:
        one = first.execute("SELECT pg_backend_pid()").fetchone()
        assert second.execute("SELECT pg_backend_pid()").fetchone() != one
        first.commit()
        second.commit()


@pytest.mark.tls
def test_the_server_certificate_is_for_localhost_alone_and_roles_demand_tls(postgres: Postgres) -> None:
    if not postgres.tls:
        pytest.skip("this PostgreSQL was built without TLS")
    options = f"port={postgres.port} dbname=postgres sslrootcert={postgres.ca}"
    password = f"user={TLS_ROLE} password={postgres.password}"
    certificate = f"user={CERTIFICATE_ROLE} sslcert={postgres.client_certificate} sslkey={postgres.client_key}"
    psycopg.connect(f"host=localhost sslmode=verify-full {options} {password}").close()
    psycopg.connect(f"host=127.0.0.1 sslmode=verify-ca {options} {password}").close()
    psycopg.connect(f"host=localhost sslmode=verify-full {options} {certificate}").close()
    refused = {
        f"host=127.0.0.1 sslmode=verify-full {options} {password}": "does not match host name",
        f"host=127.0.0.1 sslmode=disable {options} {password}": "rejects connection",
        f"host=127.0.0.1 sslmode=require {options} user={CERTIFICATE_ROLE}": "certificate",
    }
    for conninfo, message in refused.items():
        with pytest.raises(psycopg.OperationalError, match=message):
            psycopg.connect(conninfo)


def test_s3_refuses_a_conditional_write_whose_condition_fails(s3: S3, bucket: str) -> None:
    client = s3.client()
    etag = client.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")["ETag"]
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0"'}):
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=bucket, Key="a", Body=b"2", **condition)
    client.put_object(Bucket=bucket, Key="a", Body=b"3", IfMatch=etag)


def test_s3_identities_may_no_more_than_they_should(s3: S3) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key="rights", Body=b"1")
    readonly, denied = s3.client(s3.readonly), s3.client(s3.denied)
    assert readonly.get_object(Bucket=s3.bucket, Key="rights")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="AccessDenied"):
        readonly.put_object(Bucket=s3.bucket, Key="rights", Body=b"2")
    with pytest.raises(ClientError, match="AccessDenied"):
        denied.get_object(Bucket=s3.bucket, Key="rights")
    s3.client().delete_object(Bucket=s3.bucket, Key="rights")


def test_s3_does_not_make_a_bucket_that_is_missing(s3: S3) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.client().put_object(Bucket="no-such-bucket", Key="a", Body=b"1")


def test_nothing_is_left_behind_when_the_starting_process_is_killed() -> None:
    """The process gets no chance to clean up: SIGKILL."""
    script = (
        "import sys, time\n"
        "from tests.services import S3, Postgres, Workspace\n"
        "workspace = Workspace()\n"
        "servers = [Postgres.start(workspace), S3.start(workspace)]\n"
        "print(workspace.folder, *(server.process.pid for server in servers), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder, *pids = process.stdout.readline().split()
    assert len(pids) == 2
    assert Path(folder).is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (Path(folder).exists() or any(_runs(int(pid)) for pid in pids)):
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not any(_runs(int(pid)) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody reaps does not run
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False

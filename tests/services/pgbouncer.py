"""pgbouncer in transaction mode in front of a test PostgreSQL: any database of it under the same name."""

from __future__ import annotations

import shutil
import socket
import subprocess
from dataclasses import dataclass

from .postgres import Postgres
from .workspace import Unavailable, Workspace, free_port, wait_until

# Two server connections, so that the transactions of one client really move between sessions.
_INI = """
[databases]
* = host=127.0.0.1 port={postgres}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
server_reset_query_always = 0
"""


@dataclass
class PgBouncer:
    workspace: Workspace
    postgres: Postgres
    port: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, workspace: Workspace, postgres: Postgres) -> PgBouncer:
        binary = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or shutil.which(
            "pgbouncer"
        )
        if binary is None:
            raise Unavailable("no pgbouncer on this machine (Debian's package is pgbouncer)")
        folder = workspace.directory("pgbouncer")
        users = workspace.private_file(folder / "users.txt", f'"postgres" "{postgres.password}"\n'.encode())
        log = workspace.folder / "pgbouncer.log"
        port = free_port()
        settings = _INI.format(postgres=postgres.port, port=port, users=users)
        ini = workspace.private_file(folder / "pgbouncer.ini", settings.encode())
        process = workspace.spawn([binary, "-q", ini], log)
        wait_until(lambda: _listens(port), process, log)
        return cls(workspace, postgres, port, process)

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        return f"postgresql://postgres:{self.postgres.password}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        self.workspace.stop(self.process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

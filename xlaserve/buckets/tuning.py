"""What a compiler has found fastest by measuring, kernel by kernel, so that nobody has to measure it again.

XLA keeps such results in a directory, a small file for each kernel and kind of card, named by hashes of both. An artifact holds all of them
as one file of a recorded content; compiling reads them from a temporary directory, and what XLA adds there is kept. Imports no JAX.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import msgspec

from xlaserve.errors import ArtifactError

_NAME = re.compile(r"(?:[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*/){0,3}[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*")
"""A path below the directory. XLA's unfinished files begin with a dot."""


def encode_results(results: Mapping[str, bytes]) -> bytes:
    """Results, by their path, as the content of one file; the same for the same results."""
    return msgspec.msgpack.encode(dict(sorted(results.items())))


def decode_results(content: bytes) -> dict[str, bytes]:
    """What `encode_results` was given.

    Raises:
        ArtifactError: it is something else.
    """
    try:
        results = msgspec.msgpack.decode(content, type=dict[str, bytes])
    except msgspec.DecodeError as error:
        raise ArtifactError(f"is no collection of tuning results: {error}") from error
    for name in results:
        if _NAME.fullmatch(name) is None:
            raise ArtifactError(f"holds a tuning result by the name of {name!r}")
    return results


class TuningFolder:
    """Results as files that a compiler reads, and adds to; gone with this object.

    Args:
        results: those that are known.
    """

    def __init__(self, results: Mapping[str, bytes]) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="xlaserve-tuning-"))
        """The directory."""
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self._known = dict(results)
        for name, content in results.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def __len__(self) -> int:
        return len(self._known)

    def added(self) -> dict[str, bytes]:
        """Results that the compiler has added since the last call."""
        there = {path.relative_to(self.path).as_posix(): path for path in self.path.rglob("*") if path.is_file()}
        new = {name: path.read_bytes() for name, path in there.items() if name not in self._known and _NAME.fullmatch(name)}
        self._known |= new
        return new

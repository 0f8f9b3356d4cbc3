"""Where compiled graphs are kept: one directory for each combination of everything that they depend on.

A directory holds `manifest.json` (that combination, readable) and one file for each graph: a line of JSON that names the graph, the
directory and the sha256 of what follows, then the executable. Beside them, for each set of graphs that an engine runs, a file of JSON
with their measured costs. Files appear whole or not at all, so processes may share a store; one that is damaged or out of place is
reported and made again, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from xlaserve.errors import ArtifactError

SCHEMA = 1


def default_root() -> Path:
    """`XLASERVE_COMPILE_CACHE`, else `compile_cache/` of the checkout that this package runs from, else the user's cache directory."""
    if named := os.environ.get("XLASERVE_COMPILE_CACHE"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "compile_cache").is_dir():
        return checkout / "compile_cache"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "xlaserve" / "compile_cache"


class GraphStore:
    """Compiled graphs of one engine configuration.

    Args:
        root: the store's directory; None for the default.
        name: readable start of the subdirectory's name.
        key: everything that the executables depend on.
    """

    def __init__(self, root: Path | None, name: str, key: Mapping[str, Any]) -> None:
        manifest = json.dumps({"schema": SCHEMA, **key}, indent=1, sort_keys=True, default=str)
        digest = hashlib.sha256(manifest.encode()).hexdigest()[:16]
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "model"
        self.directory = (root or default_root()) / f"{safe[:64]}-{digest}"
        self._manifest = manifest

    def load(self, graph: str) -> bytes | None:
        """The stored executable of `graph`, or None where there is none.

        Raises:
            ArtifactError: there is one, but it is not what was stored.
        """
        path = self._path(graph)
        try:
            first, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            header = json.loads(first)
            found = header["graph"], header["key"]
            expected = header["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: does not begin as a stored graph does") from error
        if found != (graph, self.directory.name):
            raise ArtifactError(f"{path}: holds graph {found[0]} of {found[1]}")
        if hashlib.sha256(content).hexdigest() != expected:
            raise ArtifactError(f"{path}: its sha256 is not the one recorded when it was compiled")
        return content

    def save(self, graph: str, content: bytes, **facts: float | int | str) -> None:
        """Keep the executable of `graph`, with facts about it for a person. A store that cannot be written is an OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        manifest = self.directory / "manifest.json"
        if not manifest.exists():
            _write(manifest, self._manifest.encode())
        header = {"graph": graph, "key": self.directory.name, "sha256": hashlib.sha256(content).hexdigest(), **facts}
        _write(self._path(graph), json.dumps(header).encode() + b"\n" + content)

    def load_costs(self, graphs: Collection[str]) -> dict[str, int] | None:
        """What running each of `graphs` costs, in nanoseconds, or None where it has not been measured with exactly these executables.

        Raises:
            ArtifactError: it has been kept, but it is not what was kept; or a graph's file cannot be read.
        """
        path = self._costs_path(graphs)
        try:
            content = json.loads(path.read_bytes())
            costs: dict[str, int] = content["nanoseconds"]
            valid = costs.keys() == set(graphs) and all(type(cost) is int and cost > 0 for cost in costs.values())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: is no table of costs") from error
        if not valid:
            raise ArtifactError(f"{path}: does not hold a positive cost of every graph")
        return costs

    def save_costs(self, costs: Mapping[str, int]) -> None:
        """Keep what running each graph costs, in nanoseconds, for as long as the stored executables of these graphs stay what they are.

        Raises:
            ArtifactError: a graph is not in the store.
            OSError: the store cannot be written.
        """
        _write(self._costs_path(costs), json.dumps({"nanoseconds": dict(costs)}, indent=1).encode())

    def _costs_path(self, graphs: Collection[str]) -> Path:
        """Named by the first lines of the graphs' files, which tell one compilation from another."""
        digest = hashlib.sha256()
        for graph in sorted(graphs):
            try:
                with self._path(graph).open("rb") as file:
                    digest.update(file.readline())
            except OSError as error:
                raise ArtifactError(f"{self._path(graph)}: cannot be read ({error.strerror})") from error
        return self.directory / f"costs-{digest.hexdigest()[:16]}.json"

    def _path(self, graph: str) -> Path:
        return self.directory / f"{graph}.xla"


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

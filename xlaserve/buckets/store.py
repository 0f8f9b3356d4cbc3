"""Artifact directories: the graphs of one program as portable StableHLO and as executables of one or more machines.

    manifest.json                 what the rest is (`xlaserve.buckets.manifest`)
    GRAPH.stablehlo               portable form
    GRAPH.MACHINE.xla             executable
    lint-TARGET.json              what the lint says of all graphs for a kind of device
    tuning.msgpack                what the compiler has found fastest, kernel by kernel
    costs-*.json                  measured costs of a set of executables
    locks/                        empty files that processes lock while they make a graph

Files appear whole or not at all and count once the manifest lists them, so processes may share a directory, and one that is killed leaves
it usable. What is read is checked against the manifest first; what does not match is named and not given out. Imports no JAX.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from xlaserve.buckets.manifest import (
    NAME,
    SCHEMA,
    ExecutableRecord,
    FileRecord,
    GraphRecord,
    Manifest,
    digest,
    encode,
    plain,
    program_differences,
    read_manifest,
    shorten,
)
from xlaserve.buckets.tuning import decode_results, encode_results
from xlaserve.errors import ArtifactError

TUNING = "tuning.msgpack"


def default_root() -> Path:
    """`XLASERVE_COMPILE_CACHE`, else `compile_cache/` of the checkout that this package runs from, else the user's cache directory."""
    if named := os.environ.get("XLASERVE_COMPILE_CACHE"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "compile_cache").is_dir():
        return checkout / "compile_cache"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "xlaserve" / "compile_cache"


def cache_directory(root: Path | None, name: str, program: Mapping[str, Any]) -> Path:
    """Where a compile cache keeps a program.

    Args:
        root: of the cache; None for the default.
        name: readable start of the directory's name.
        program: what its graphs depend on.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "model"
    return (root or default_root()) / f"{safe[:64]}-{digest({'schema': SCHEMA, **plain(program)}, 16)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a directory can give, before any graph is looked at.

    Args:
        empty: nothing is kept there yet.
        executables: why there are none for this machine, or None where there are.
        stablehlo: why there is none for this program, or None where there is.
    """

    empty: bool
    executables: str | None
    stablehlo: str | None

    def __str__(self) -> str:
        if self.empty:
            return "nothing is kept there yet"
        if self.executables is not None and self.executables == self.stablehlo:
            return f"miss ({self.executables})"
        return "; ".join(
            f"{what} {'hit' if reason is None else f'miss ({reason})'}"
            for what, reason in (("executables", self.executables), ("StableHLO", self.stablehlo))
        )


@dataclass(slots=True)
class _Change:
    manifest: Manifest


class GraphStore:
    """One artifact directory, seen from one program on one machine.

    Args:
        directory: which need not exist yet.
        program: what graphs depend on.
        machine: what executables depend on besides.
        about: gives what else the manifest is to tell a person; called when a manifest is begun.
    """

    def __init__(
        self, directory: Path, program: Mapping[str, Any], machine: Mapping[str, Any], about: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self.directory = directory
        self._program = plain(program)
        self._machine = plain(machine)
        self._about = about

    def verdict(self) -> Verdict:
        """Whether the directory holds executables and StableHLO for this program and machine."""
        try:
            manifest = self._manifest()
        except ArtifactError as error:
            return Verdict(False, str(error), str(error))
        if manifest is None:
            return Verdict(True, "nothing is kept there yet", "nothing is kept there yet")
        try:
            manifest.machine(self._machine)
        except ArtifactError as error:
            return Verdict(False, str(error), None)
        return Verdict(False, None, None)

    def executable(self, graph: str) -> bytes | None:
        """The executable of `graph` for this machine, or None where there is none.

        Raises:
            ArtifactError: there is one, but it is not what was stored; or the directory is for another program or other machines.
        """
        manifest = self._manifest()
        if manifest is None:
            return None
        machine = manifest.machine(self._machine)
        record = manifest.graphs.get(graph, GraphRecord()).executables.get(machine)
        return None if record is None else self._read(executable_name(graph, machine), record.file)

    def memory(self, graph: str) -> dict[str, int]:
        """The compiler's analysis of the executable that `executable` gives, as it was recorded; empty where there is none.

        Raises:
            ArtifactError: as `executable`.
        """
        manifest = self._manifest()
        if manifest is None:
            return {}
        record = manifest.graphs.get(graph, GraphRecord()).executables.get(manifest.machine(self._machine))
        return {} if record is None else record.memory

    def stablehlo(self, graph: str) -> bytes | None:
        """The portable form of `graph`, or None where there is none.

        Raises:
            ArtifactError: there is one, but it is not what was stored; or the directory is for another program.
        """
        manifest = self._manifest()
        record = manifest.graphs.get(graph, GraphRecord()).stablehlo if manifest else None
        return None if record is None else self._read(stablehlo_name(graph), record)

    def save(
        self,
        graph: str,
        *,
        stablehlo: bytes | None = None,
        executable: bytes | None = None,
        seconds: float = 0.0,
        memory: Mapping[str, int] | None = None,
    ) -> None:
        """Keep forms of `graph`; what is None stays as it is.

        Args:
            graph: its name.
            stablehlo: its portable form.
            executable: for this machine.
            seconds: what making the executable took.
            memory: the compiler's analysis of the executable.

        Raises:
            ArtifactError: the directory holds another program.
            OSError: it cannot be written.
        """
        machine = digest(self._machine, 8)
        with self._changing() as change:
            manifest = change.manifest
            record = manifest.graphs.get(graph, GraphRecord())
            machines, executables = dict(manifest.machines), dict(record.executables)
            kept = record.stablehlo
            if stablehlo is not None:
                _write(self.directory / stablehlo_name(graph), stablehlo)
                kept = FileRecord.of(stablehlo)
            if executable is not None:
                _write(self.directory / executable_name(graph, machine), executable)
                executables[machine] = ExecutableRecord(FileRecord.of(executable), round(seconds, 3), dict(memory or {}))
                machines[machine] = self._machine
            graphs = {**manifest.graphs, graph: GraphRecord(kept, executables)}
            change.manifest = msgspec.structs.replace(manifest, machines=machines, graphs=graphs)

    def save_report(self, target: str, content: bytes) -> None:
        """Keep the lint's report on all graphs for one kind of device.

        Args:
            target: its name.
            content: of the file.

        Raises:
            ArtifactError: the directory holds another program.
            OSError: it cannot be written.
        """
        with self._changing() as change:
            _write(self.directory / report_name(target), content)
            reports = {**change.manifest.reports, target: FileRecord.of(content)}
            change.manifest = msgspec.structs.replace(change.manifest, reports=reports)

    def tuning(self) -> dict[str, bytes]:
        """What a compiler has found fastest, by kernel; empty where it measured nothing.

        Raises:
            ArtifactError: it is not what was stored; or the directory is for another program.
        """
        manifest = self._manifest()
        return {} if manifest is None or manifest.tuning is None else read_results(self.directory, manifest.tuning)

    def save_tuning(self, results: Mapping[str, bytes]) -> None:
        """Keep results of measuring kernels beside those that are there, which give way where they are of the same.

        Args:
            results: as `tuning` gives them.

        Raises:
            ArtifactError: the directory holds another program.
            OSError: it cannot be written.
        """
        with self._changing() as change:
            record, known = change.manifest.tuning, {}
            if record is not None:
                with suppress(ArtifactError):  # damaged: begun anew
                    known = read_results(self.directory, record)
            content = encode_results({**known, **results})
            _write(self.directory / TUNING, content)
            change.manifest = msgspec.structs.replace(change.manifest, tuning=FileRecord.of(content))

    @contextmanager
    def _changing(self) -> Generator[_Change]:
        """The manifest, begun where there is none, while nobody else changes it; what it is afterwards is written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.lock("manifest"):
            try:
                manifest = self._manifest()
            except ArtifactError:
                self.check_place()
                manifest = None  # damaged: begun anew
            change = _Change(manifest or Manifest(SCHEMA, plain(self._about()), self._program, {}, {}))
            yield change
            _write(self.directory / NAME, encode(change.manifest))

    def check_place(self) -> None:
        """ArtifactError where the directory holds another program, which must not be overwritten; a damaged manifest is no such thing."""
        try:
            manifest = read_manifest(self.directory)
        except ArtifactError:
            return
        if manifest is not None and (apart := program_differences(self._program, manifest.program)):
            raise ArtifactError(f"{self.directory}: holds another artifact ({shorten(apart)}); choose another directory or remove it")

    @contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Keep other threads and processes out of one graph. Where the directory cannot be written there is nothing to share, and no lock.

        The system takes the lock from a process that ends, however it ends.
        """
        try:
            path = self.directory / "locks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def load_costs(self, executables: Mapping[str, str]) -> dict[str, int] | None:
        """What running each graph costs, in nanoseconds, or None where it has not been measured with exactly these executables.

        Args:
            executables: the sha256 of each graph's executable, by the graph's name.

        Raises:
            ArtifactError: it has been kept, but it is not what was kept.
        """
        path = self._costs_path(executables)
        try:
            content = json.loads(path.read_bytes())
            costs: dict[str, int] = content["nanoseconds"]
            valid = costs.keys() == executables.keys() and all(type(cost) is int and cost > 0 for cost in costs.values())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: is no table of costs") from error
        if not valid:
            raise ArtifactError(f"{path}: does not hold a positive cost of every graph")
        return costs

    def save_costs(self, costs: Mapping[str, int], executables: Mapping[str, str]) -> None:
        """Keep what running each graph costs with these executables. A directory that cannot be written is an OSError.

        Args:
            costs: nanoseconds by the graph's name.
            executables: as in `load_costs`.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(self._costs_path(executables), json.dumps({"nanoseconds": dict(costs)}, indent=1).encode())

    def _costs_path(self, executables: Mapping[str, str]) -> Path:
        return self.directory / f"costs-{digest(executables, 16)}.json"

    def _manifest(self) -> Manifest | None:
        manifest = read_manifest(self.directory)
        if manifest is not None and (apart := program_differences(self._program, manifest.program)):
            raise ArtifactError(shorten(apart))
        return manifest

    def _read(self, name: str, record: FileRecord) -> bytes:
        return read_recorded(self.directory / name, record)


def read_recorded(path: Path, record: FileRecord) -> bytes:
    """The content of a file of an artifact directory.

    Raises:
        ArtifactError: it cannot be read, or is not what was recorded.
    """
    try:
        content = path.read_bytes()
        record.check(content)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return content


def read_results(directory: Path, record: FileRecord) -> dict[str, bytes]:
    """The results of measuring kernels that an artifact directory holds.

    Raises:
        ArtifactError: as `read_recorded`, or they are none.
    """
    path = directory / TUNING
    content = read_recorded(path, record)
    try:
        return decode_results(content)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def stablehlo_name(graph: str) -> str:
    """Name of the file of a graph's portable form."""
    return f"{graph}.stablehlo"


def executable_name(graph: str, machine: str) -> str:
    """Name of the file of a graph's executable for one machine."""
    return f"{graph}.{machine}.xla"


def report_name(target: str) -> str:
    """Name of the file of the lint's report for one kind of device."""
    return f"lint-{target}.json"


def executable_digest(content: bytes) -> str:
    """What tells one executable from another."""
    return sha256(content).hexdigest()


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

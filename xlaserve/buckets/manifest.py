"""What an artifact directory says of itself: what its graphs are, where their executables run, and the sha256 of every file.

`program` is what all graphs depend on, `machine` what executables depend on besides. Reading is strict: a manifest that is not of this
form is damaged. Imports no JAX.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from xlaserve.errors import ArtifactError
from xlaserve.kernels.build import COMMAND

SCHEMA = 4
NAME = "manifest.json"
_SHOWN = 3

GraphName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+$")]
MachineId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}$")]
ReportName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0)]


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must hold: its sha256 and its size in bytes."""

    sha256: Sha256
    size: Size

    @classmethod
    def of(cls, content: bytes) -> FileRecord:
        """The record of a file with this content."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))

    def check(self, content: bytes) -> None:
        """ArtifactError where the content is not what was recorded."""
        if len(content) != self.size:
            raise ArtifactError(f"has {len(content):,} bytes, and {self.size:,} were recorded")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ArtifactError("its sha256 is not the recorded one")


class ExecutableRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An executable of one graph for one machine.

    Args:
        file: its content.
        seconds: what making it took.
        memory: bytes by the compiler's analysis: "argument", "output", "alias" (results in place of arguments), "temp".
    """

    file: FileRecord
    seconds: float
    memory: dict[str, int]


class GraphRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph: its portable form, and its executables by machine."""

    stablehlo: FileRecord | None = None
    executables: dict[MachineId, ExecutableRecord] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `manifest.json`.

    Args:
        schema: version of this form.
        about: what a person wants to know and no graph depends on: checkpoint, sizes.
        program: what every graph depends on.
        machines: what executables depend on besides, by id.
        graphs: every graph by name.
        reports: the lint's report for each kind of device that the graphs have been linted for, by its name.
        tuning: what the compiler has found fastest, kernel by kernel (`xlaserve.buckets.tuning`); None where it measured nothing.
    """

    schema: int
    about: dict[str, Any]
    program: dict[str, Any]
    machines: dict[MachineId, dict[str, Any]]
    graphs: dict[GraphName, GraphRecord]
    reports: dict[ReportName, FileRecord] = {}
    tuning: FileRecord | None = None

    def machine(self, here: Mapping[str, Any]) -> MachineId:
        """The recorded machine whose executables run on this one.

        Raises:
            ArtifactError: there is none; the message names the fields in which the nearest one differs.
        """
        if not self.machines:
            raise ArtifactError("holds no executables")
        apart = {machine: machine_differences(here, recorded) for machine, recorded in self.machines.items()}
        nearest = min(apart, key=lambda machine: len(apart[machine]))
        if apart[nearest]:
            raise ArtifactError(shorten(apart[nearest]))
        return nearest


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory, or None where there is none.

    Raises:
        ArtifactError: there is one, but it cannot be read, is damaged or of another schema.
    """
    path = directory / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        schema = msgspec.json.decode(content, type=dict[str, Any]).get("schema")
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: is damaged: {error}") from error
    if schema != SCHEMA:
        raise ArtifactError(f"{path}: schema: {SCHEMA} here, {schema} in the artifact")
    try:
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: is damaged: {error}") from error


def encode(manifest: Manifest) -> bytes:
    """The manifest as the bytes of its file."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as they are after a trip through JSON, so that they compare equal to what was read."""
    return json.loads(json.dumps(fields, default=str))


def digest(fields: Mapping[str, Any], length: int) -> str:
    """The first hexadecimal digits of a hash of fields, whatever their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:length]


def differences(here: Any, there: Any, field: str = "") -> list[str]:
    """Every field that differs, one line each: "jaxlib: 0.10.2 here, 0.12.0 in the artifact"."""
    if isinstance(here, dict) and isinstance(there, dict):
        return [
            line
            for key in sorted({*here, *there})
            for line in differences(here.get(key), there.get(key), f"{field}.{key}" if field else str(key))
        ]
    if isinstance(here, list) and isinstance(there, list):
        if all(isinstance(item, str) for item in (*here, *there)):
            lacking, spare = sorted(set(there) - set(here)), sorted(set(here) - set(there))
            parts = [f"{label} {' '.join(items)}" for label, items in (("missing here", lacking), ("only here", spare)) if items]
            return [f"{field}: {'; '.join(parts)}"] if parts else []
        if len(here) == len(there):
            return [line for at, pair in enumerate(zip(here, there, strict=True)) for line in differences(*pair, f"{field}[{at}]")]
        return [f"{field}: {len(here)} entries here, {len(there)} in the artifact"]
    return [] if here == there else [f"{field}: {_shown(here)} here, {_shown(there)} in the artifact"]


def program_differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """As `differences`, with the remedy where it is the native kernels: they can be built, or left alone."""
    apart = differences(here, there)
    match here.get("kernels"), there.get("kernels"):
        case "none", str():
            remedy = f"install them with `{COMMAND}`, or compile without them"
        case str(), "none":
            remedy = "do without them: --kernels none"
        case _:
            return apart
    return [f"{line} ({remedy})" if line.startswith("kernels: ") else line for line in apart]


def machine_differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """As `differences`. What the artifact's maker could not know, since it had no such device, is null there and does not count."""
    known = {key: value for key, value in there.items() if value is not None}
    return differences({key: value for key, value in here.items() if key in known or key not in there}, known)


def shorten(lines: list[str]) -> str:
    """The first lines as one, and how many there are besides."""
    rest = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _shown(value: Any) -> str:
    text = "nothing" if value is None or value == "" else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Artifact directories as files: listing them, checking every byte, removing them. Imports no JAX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from xlaserve.buckets.manifest import NAME, FileRecord, Manifest, read_manifest
from xlaserve.buckets.store import TUNING, executable_name, read_recorded, read_results, report_name, stablehlo_name
from xlaserve.errors import ArtifactError

_COSTS = r"costs-[0-9a-f]{16}\.json"
_KEPT = rf"[a-z0-9-]+\.stablehlo|[a-z0-9-]+\.[0-9a-f]{{8}}\.xla|lint-[a-z0-9]+\.json|{re.escape(TUNING)}|{_COSTS}"
_OURS = rf"{_KEPT}|\.({_KEPT}|{re.escape(NAME)})\.[a-z0-9_]{{8}}"  # the second: unfinished files of a process that was killed


@dataclass(frozen=True, slots=True)
class Finding:
    """What checking one directory found.

    Args:
        checked: files that are as recorded.
        damaged: one line for each file that is not, or that is missing.
        unlisted: names of files that the manifest does not list: left by a process that was killed, or put there by someone.
    """

    checked: int
    damaged: tuple[str, ...]
    unlisted: tuple[str, ...]


def directories(root: Path) -> list[Path]:
    """The artifact directories of a compile cache, sorted by name."""
    return sorted(path.parent for path in root.glob(f"*/{NAME}")) if root.is_dir() else []


def load(directory: Path) -> Manifest:
    """The manifest of an artifact directory.

    Raises:
        ArtifactError: it holds none, or a damaged one.
    """
    if (manifest := read_manifest(directory)) is None:
        raise ArtifactError(f"{directory}: holds no {NAME}")
    return manifest


def recorded_files(manifest: Manifest) -> dict[str, FileRecord]:
    """Every file that the manifest lists, by name."""
    files = {report_name(target): record for target, record in manifest.reports.items()}
    if manifest.tuning is not None:
        files[TUNING] = manifest.tuning
    for graph, record in manifest.graphs.items():
        if record.stablehlo is not None:
            files[stablehlo_name(graph)] = record.stablehlo
        for machine, executable in record.executables.items():
            files[executable_name(graph, machine)] = executable.file
    return files


def verify(directory: Path) -> Finding:
    """Compare every file with the manifest.

    Raises:
        ArtifactError: the manifest itself is missing or damaged.
    """
    files = recorded_files(load(directory))
    damaged: list[str] = []
    for name, record in files.items():
        try:
            record.check((directory / name).read_bytes())
        except OSError as error:
            damaged.append(f"{name}: cannot be read ({error.strerror})")
        except ArtifactError as error:
            damaged.append(f"{name}: {error}")
    there = {path.name for path in directory.iterdir() if path.is_file()}
    unlisted = sorted(name for name in there - files.keys() - {NAME} if not re.fullmatch(_COSTS, name))
    return Finding(len(files) - len(damaged), tuple(damaged), tuple(unlisted))


def reports(directory: Path) -> dict[str, dict[str, Any]]:
    """The lint's reports of an artifact directory, by the kind of device.

    Raises:
        ArtifactError: the manifest or a report is missing or damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for target, record in sorted(load(directory).reports.items()):
        path = directory / report_name(target)
        content = read_recorded(path, record)
        try:
            found[target] = msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ArtifactError(f"{path}: {error}") from error
    return found


def tuning(directory: Path) -> dict[str, bytes]:
    """What a compiler has found fastest while it made an artifact directory, of whatever program: kernels that another has too are alike.

    Raises:
        ArtifactError: the manifest is missing or damaged, or the results are; or there are none.
    """
    if (record := load(directory).tuning) is None:
        raise ArtifactError(f"{directory}: holds no results of tuning; `xlaserve compile` makes them on a machine with the card")
    return read_results(directory, record)


def remove(directory: Path) -> list[str]:
    """Remove an artifact directory, the manifest first, so that nothing half removed is loaded.

    Returns:
        Names of what is left, because xlaserve did not make it.

    Raises:
        ArtifactError: there is no manifest, so it may be anything.
        OSError: it cannot be removed.
    """
    if not (directory / NAME).is_file():
        raise ArtifactError(f"{directory}: holds no {NAME}, so it is left alone")
    (directory / NAME).unlink()
    for path in directory.iterdir():
        if path.is_file() and re.fullmatch(_OURS, path.name):
            path.unlink()
    locks = directory / "locks"
    if locks.is_dir() and not locks.is_symlink():
        for path in locks.iterdir():
            path.unlink()
        locks.rmdir()
    left = sorted(path.name for path in directory.iterdir())
    if not left:
        directory.rmdir()
    return left

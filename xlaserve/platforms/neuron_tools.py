"""What AWS's own tools and packages say of a machine's Neuron devices. Imports no JAX."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PACKAGES = ("libneuronxla", "neuronx-cc", "jax-neuronx")
_SECONDS = 20


@dataclass(frozen=True, slots=True)
class NeuronDevice:
    """A chip, as `neuron-ls` lists it.

    Args:
        index: its number.
        cores: cores that a program sees: logical ones, where two physical ones work as one.
        logical_nc_config: physical cores in each of them; None where the tool does not tell.
        memory: bytes of all its cores together.
        instance_type: of the machine; empty where the tool does not tell.
    """

    index: int
    cores: int
    logical_nc_config: int | None
    memory: int
    instance_type: str


def list_devices() -> list[NeuronDevice]:
    """The chips that `neuron-ls` finds.

    Raises:
        OSError: it is not there, fails or does not answer; the message says which.
        ValueError: its answer cannot be read.
    """
    done = _run("neuron-ls", "--json-output")
    listed: Any = json.loads(done)
    try:
        return [
            NeuronDevice(
                int(entry["neuron_device"]),
                int(entry["nc_count"]),
                entry.get("logical_neuroncore_config"),
                int(entry["memory_size"]),
                str(entry.get("instance_type") or ""),
            )
            for entry in listed
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"neuron-ls lists devices in an unknown form ({error!r})") from error


def compiler_version() -> str | None:
    """What `neuronx-cc --version` says, or None where it is not there or fails."""
    try:
        text = _run("neuronx-cc", "--version")
    except OSError:
        return None
    return next((line.strip() for line in text.splitlines() if "version" in line.lower()), text.strip()) or None


def package_versions() -> dict[str, str]:
    """Those of `PACKAGES` that are installed beside this Python."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not answer within {_SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise OSError(f"{command[0]} failed with {done.returncode}: {last[-1] if last else 'no message'}")
    return done.stdout

"""AWS's tools for Neuron as small executables on PATH."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

CHIP: dict[str, Any] = {
    "instance_type": "trn2.3xlarge",
    "neuron_device": 0,
    "bdf": "0000:33:00.0",
    "connected_to": None,
    "nc_count": 4,
    "logical_neuroncore_config": 2,
    "memory_size": 96 << 30,
    "neuroncore_ids": [0, 1, 2, 3],
    "neuron_processes": [],
}
"""A chip as `neuron-ls --json-output` lists it on a trn2 instance."""


def put_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *, devices: Any, compiler: str | None = None) -> None:
    """Have `neuron-ls` list `devices` (text is printed as it is, a number is its exit status, None leaves it out), and `neuronx-cc`
    tell its version. No other tool is on PATH.
    """
    write_tools(folder, devices=devices, compiler=compiler)
    monkeypatch.setenv("PATH", str(folder))


def write_tools(folder: Path, *, devices: Any, compiler: str | None = None) -> None:
    """The tools of `put_tools`, for whatever PATH."""
    if isinstance(devices, int):
        _put(folder / "neuron-ls", f"import sys\nsys.exit({devices})")
    elif devices is not None:
        _put(folder / "neuron-ls", f"print({(devices if isinstance(devices, str) else json.dumps(devices))!r})")
    if compiler is not None:
        _put(folder / "neuronx-cc", f"print({compiler!r})")


def _put(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable} -S\n{code}\n")
    os.chmod(path, 0o755)

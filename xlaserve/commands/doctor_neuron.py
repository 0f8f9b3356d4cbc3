"""What doctor says of AWS Neuron: chips, driver, packages, compiler, and the cores that programs may use."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xlaserve.platforms.neuron_tools import compiler_version, list_devices, package_versions

_DRIVER = Path("/sys/module/neuron/version")
_VARIABLES = ("NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES", "NEURON_LOGICAL_NC_CONFIG", "NEURON_CC_FLAGS", "NEURON_COMPILE_CACHE_URL")


def examine_neuron() -> dict[str, Any]:
    """Everything that can be known of Neuron here, as plain JSON data; None for what is not there."""
    devices: list[dict[str, Any]] = []
    error = None
    try:
        devices = [asdict(device) for device in list_devices()]
    except (OSError, ValueError) as problem:
        error = str(problem)
    return {
        "devices": devices,
        "devices_error": error,
        "driver": _driver(),
        "packages": package_versions(),
        "compiler": compiler_version(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def neuron_lines(report: dict[str, Any]) -> list[str]:
    """The report for a person."""
    cores = sum(device["cores"] for device in report["devices"])
    if report["devices_error"] is not None:
        chips = f"unknown: {report['devices_error']}"
    elif not report["devices"]:
        chips = "none"
    else:
        first = report["devices"][0]
        size = first["memory"] / max(1, first["cores"]) / 2**30
        kind = f" of {first['instance_type']}" if first["instance_type"] else ""
        logical = f", {first['logical_nc_config']} physical cores each" if first["logical_nc_config"] else ""
        chips = f"{len(report['devices'])}{kind}, {cores} cores of {size:.1f} GiB{logical}"
    visible = report["environment"].get("NEURON_RT_VISIBLE_CORES") or report["environment"].get("NEURON_RT_NUM_CORES")
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    lines = [
        f"neuron chips   {chips}",
        f"neuron cores   {f'{visible} visible' if visible else 'all visible'}",
        f"neuron driver  {report['driver'] or 'not loaded, or it does not tell its version'}",
        f"neuronx-cc     {report['compiler'] or 'not on PATH: graphs cannot be compiled for Neuron here'}",
        f"libneuronxla   {packages or 'not installed: JAX has no Neuron platform here'}",
    ]
    return lines + [f"environment    {name}={value}" for name, value in report["environment"].items()]


def _driver() -> str | None:
    """The kernel module's version: as the loaded one tells, else as `modinfo` knows the installed one."""
    try:
        return _DRIVER.read_text(encoding="utf-8").strip() or None
    except OSError:
        pass
    try:
        done = subprocess.run(["modinfo", "-F", "version", "neuron"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{done.stdout.strip()} (installed, not loaded)" if done.returncode == 0 and done.stdout.strip() else None

"""Tell what is installed, what the machine has, what is missing and how to get it. Works where JAX does not."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from xlaserve import __version__
from xlaserve.platforms.cpu import cpu_features, cpu_model, usable_cores

SUMMARY = "versions, devices, memory, caches, and what is missing"

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "ml_dtypes",
    "safetensors",
    "tokenizers",
    "transformers",
    "huggingface-hub",
    "jinja2",
    "fastapi",
    "pydantic",
    "msgspec",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
    "prometheus-client",
    "tqdm",
)
_PLUGINS = (
    "jax-cuda12-plugin",
    "jax-cuda12-pjrt",
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "jax-neuronx",
    "libneuronxla",
    "neuronx-cc",
)
_CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "f16c",
    "fma",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)
PROBE_SECONDS = 60

# Run in a process of its own: a broken plugin may crash or hang, and doctor must still report.
_PROBE = """
import json, jax
from jax.extend.backend import backends
devices = []
for device in (device for name in sorted(backends(), key=jax.default_backend().__ne__) for device in jax.devices(name)):
    memory = {}
    try:
        memory = device.memory_stats() or {}
    except Exception:
        pass
    devices.append({
        "platform": device.platform, "kind": device.device_kind, "id": device.id,
        "memory_bytes": memory.get("bytes_limit"), "memory_in_use_bytes": memory.get("bytes_in_use"),
    })
print(json.dumps({"backend": jax.default_backend(), "devices": devices}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--compile-cache", metavar="DIR", help="look at this compile cache")


def run(args: argparse.Namespace) -> int:
    """Prints the report.

    Returns:
        0 where `xlaserve serve` can work, 1 where something it needs is missing.
    """
    report = examine(args.compile_cache)
    print(json.dumps(report, indent=2) if args.json else _text(report))
    return 1 if report["problems"] else 0


def examine(compile_cache: str | None = None) -> dict[str, Any]:
    """Everything that doctor knows, as plain JSON data. Sizes are in bytes."""
    from xlaserve.buckets.store import default_root
    from xlaserve.commands.doctor_neuron import examine_neuron

    packages = {name: _version(name) for name in _PACKAGES}
    plugins = {name: version for name in _PLUGINS if (version := _version(name)) is not None}
    jax = _probe_jax()
    present = set(cpu_features())
    features = [name for name in _CPU_FEATURES if name in present]
    neuron = _neuron() or any(name in plugins for name in ("jax-neuronx", "libneuronxla", "neuronx-cc"))
    return {
        "xlaserve": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": usable_cores(), "features": features},
        "memory_bytes": _memory(),
        "packages": packages,
        "plugins": plugins,
        "jax": jax,
        "platforms": _platforms(jax),
        "kernels": _kernels(),
        "neuron": examine_neuron() if neuron else None,
        "hardware": {"nvidia": _nvidia(), "neuron": _neuron()},
        "compile_cache": _folder(Path(compile_cache) if compile_cache else default_root()),
        "model_cache": _model_cache(),
        "problems": _problems(packages, jax),
        "hints": _hints(plugins, jax) + _asked(_platforms(jax)),
    }


def _platforms(jax: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every platform that is known, in the order in which they are tried: whether JAX has it, and what to install where not."""
    from xlaserve.platforms.registry import platforms

    # JAX calls devices of its CUDA backend "gpu".
    there = {name for device in jax.get("devices", []) for name in (device["platform"], "cuda" if device["platform"] == "gpu" else None)}
    return {name: {"available": known.jax_name in there, "install": known.install} for name, known in platforms().items()}


def _kernels() -> dict[str, str | None]:
    """The native kernels for CPU: their version and instruction set, or why there are none."""
    from xlaserve.kernels.library import Library, open_library

    found = open_library()
    if isinstance(found, Library):
        return {"version": found.version, "instruction_set": found.instruction_set, "absence": None}
    return {"version": None, "instruction_set": None, "absence": found}


def _problems(packages: dict[str, str | None], jax: dict[str, Any]) -> list[str]:
    missing = [name for name, version in packages.items() if version is None]
    problems = [f"missing packages: {', '.join(missing)}; get them with: pip install --upgrade xlaserve"] if missing else []
    if "error" in jax:
        problems.append(f"JAX does not work: {jax['error']}")
    return problems


def _hints(plugins: dict[str, str], jax: dict[str, Any]) -> list[str]:
    hints: list[str] = []
    platforms = {device["platform"] for device in jax.get("devices", [])}
    if _nvidia() and "gpu" not in platforms and "cuda" not in platforms:
        extra = "cuda12" if any("cuda12" in name for name in plugins) else "cuda13"
        hints.append(f"An NVIDIA GPU is here but JAX does not use it; get its plugin with: pip install 'xlaserve[{extra}]'")
    if _neuron() and "neuron" not in platforms:
        hints.append(
            "A Neuron device is here but JAX does not use it; docs/platforms.md has the command that installs the Neuron packages."
        )
    return hints


def _asked(platforms: dict[str, dict[str, Any]]) -> list[str]:
    """What to do where the environment asks for a platform that is not there."""
    name = os.environ.get("XLASERVE_PLATFORM")
    if not name:
        return []
    if name not in platforms:
        return [f"XLASERVE_PLATFORM is {name}, which is none of {', '.join(platforms)}."]
    return (
        [] if platforms[name]["available"] else [f"XLASERVE_PLATFORM is {name}, which JAX does not have here. {platforms[name]['install']}"]
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _probe_jax() -> dict[str, Any]:
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"it did not list its devices within {PROBE_SECONDS} s"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()
        return {"error": last[-1] if last else f"it ended with exit code {done.returncode}"}


def _memory() -> dict[str, int | None]:
    sizes: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            sizes[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return {"total": None, "available": None, "limit": None}
    return {"total": sizes.get("MemTotal"), "available": sizes.get("MemAvailable"), "limit": _control_group_limit()}


def _control_group_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _neuron() -> bool:
    return Path("/dev/neuron0").exists() or shutil.which("neuron-ls") is not None


def _model_cache() -> dict[str, Any]:
    try:
        from xlaserve.models.demo import cache_directory
    except ImportError as error:
        # One of the missing packages, which are listed as a problem.
        return {"path": f"unknown ({error})", "exists": False, "files": 0, "bytes": 0}
    return _folder(cache_directory())


def _folder(path: Path) -> dict[str, Any]:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return {"path": str(path), "exists": path.is_dir(), "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _text(report: dict[str, Any]) -> str:
    cpu, memory, jax, kernels = report["cpu"], report["memory_bytes"], report["jax"], report["kernels"]
    lines = [
        f"xlaserve {report['xlaserve']}, Python {report['python']} ({report['executable']})",
        f"system         {report['system']}",
        f"cpu            {cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores, {' '.join(cpu['features']) or 'features unknown'}",
        f"memory         {_size(memory['total'])}, {_size(memory['available'])} available"
        + (f", limited to {_size(memory['limit'])}" if memory["limit"] else ""),
        "packages       " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["packages"].items()),
        "plugins        " + (", ".join(f"{name} {version}" for name, version in report["plugins"].items()) or "none: CPU only"),
        "platforms      " + ", ".join(f"{name}{'' if known['available'] else ' (absent)'}" for name, known in report["platforms"].items()),
        "kernels        "
        + (f"none: {kernels['absence']}" if kernels["absence"] else f"{kernels['version']}, {kernels['instruction_set']} (for cpu)"),
        f"backend        {jax.get('backend', 'unknown')}",
    ]
    for device in jax.get("devices", []):
        size = f", {_size(device['memory_bytes'])}" if device["memory_bytes"] else ""
        lines.append(f"device {device['id']}       {device['platform']}: {device['kind']}{size}")
    if report["neuron"] is not None:
        from xlaserve.commands.doctor_neuron import neuron_lines

        lines += neuron_lines(report["neuron"])
    for name in ("compile_cache", "model_cache"):
        folder = report[name]
        content = f"{folder['files']} files, {_size(folder['bytes'])}" if folder["exists"] else "empty"
        lines.append(f"{name.replace('_', ' '):<14} {folder['path']} ({content})")
    lines += [f"PROBLEM        {problem}" for problem in report["problems"]] + [f"hint           {hint}" for hint in report["hints"]]
    if not report["problems"]:
        lines.append("ready          xlaserve serve")
    return "\n".join(lines)


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"

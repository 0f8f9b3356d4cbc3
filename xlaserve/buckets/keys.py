"""What compiled graphs depend on: the program, which StableHLO holds, and the machine, which executables are made for besides."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from xlaserve.buckets.graphs import GraphSpec
from xlaserve.platforms.cpu import cpu_features
from xlaserve.platforms.mesh import AXIS
from xlaserve.platforms.platform import Platform

_PLUGINS = {
    "cuda": ("jax-cuda13-pjrt", "jax-cuda13-plugin", "jax-cuda12-pjrt", "jax-cuda12-plugin"),
    "neuron": ("libneuronxla", "neuronx-cc", "jax-neuronx"),
}


def program_key(spec: GraphSpec, platform: str) -> dict[str, Any]:
    """Everything that the StableHLO of `spec` for a platform depends on.

    Args:
        spec: what graphs have in common.
        platform: its name.
    """
    heads = spec.share.num_kv_heads * spec.tensor_parallel_size
    return {
        "platform": platform,
        "mesh": {AXIS: spec.tensor_parallel_size},
        "kv": {
            "layers": spec.model.num_layers,
            "shape": [spec.num_blocks, heads, spec.block_size, spec.model.head_dim],
            "dtype": spec.dtype,
        },
        "jax_config": {name: jax.config.values[name] for name in ("jax_default_matmul_precision", "jax_enable_x64")},
        **{name: value for name, value in asdict(spec).items() if name != "tensor_parallel_size"},
        "source": _source_digest(),
    }


def machine_key(platform: Platform) -> dict[str, Any]:
    """Everything that executables for a platform depend on besides the program; None stands for what cannot be known here."""
    key: dict[str, Any] = {
        **{package: version(package) for package in ("jax", "jaxlib", "flax")},
        **_versions(_PLUGINS.get(platform.jax_name, ())),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **platform.fingerprint(),
        **({"compiler_options": dict(platform.compiler_options)} if platform.compiler_options else {}),
    }
    if "cpu_features" in key:
        key["cpu_features"] = cpu_features()  # the list itself, so that a miss can say which one
    return key


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _source_digest() -> str:
    """sha256 of the modules that graphs are traced from, found by following imports: a change of their code is a change of graphs."""
    package = Path(__file__).resolve().parents[1]
    found: dict[str, bytes] = {}
    queue = ["xlaserve.buckets.graphs", "xlaserve.buckets.portable"]
    while queue:
        module = queue.pop()
        path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if module not in found and path.is_file():
            found[module] = path.read_bytes()
            queue += re.findall(r"^from (xlaserve[\w.]+) import", found[module].decode(), re.MULTILINE)
    return hashlib.sha256(b"".join(found[module] for module in sorted(found))).hexdigest()[:16]

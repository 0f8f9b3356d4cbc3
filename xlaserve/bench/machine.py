"""What a measurement was taken on: versions, processor, cores, load. Imports no JAX."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from xlaserve import __version__
from xlaserve.platforms.cpu import cpu_features, cpu_model, usable_cores

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of xlaserve, Python and what the engine stands on; None for what is not installed."""
    return {"xlaserve": __version__, "python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """The processor, its cores and the system."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "cpu_features": [name for name in cpu_features() if name.startswith(("avx", "amx", "fma", "f16c", "asimd", "sve", "bf16", "i8mm"))],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def load_average() -> list[float] | None:
    """Running and waiting threads of the whole machine, over 1, 5 and 15 minutes; None where the system does not tell."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""What the machine is, and how busy it was with other things. Linux only, as the peers' recipes are."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from xlaserve.bench.machine import machine, versions

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """The machine for a report: processor with the vector extensions that matter, cores, memory, system."""
    found = machine()
    return {
        "processor": found["cpu"],
        "features": [name for name in _TELLING if name in found["cpu_features"]],
        "cores": found["cores"],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": versions()["python"],
    }


def busy_seconds() -> float:
    """CPU seconds that all processors have spent at work since boot, those that the host took from this machine included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _TICK


def process_seconds(pid: int) -> float:
    """CPU seconds that a process has spent, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK

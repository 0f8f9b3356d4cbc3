"""What the machine is, and how busy it was with other things. Linux only, as the peers' recipes are."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """The machine for a report: processor with the vector extensions that matter, cores, memory, system."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "features": [name for name in _TELLING if name in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def busy_seconds() -> float:
    """CPU seconds that all processors have spent at work since boot, those that the host took from this machine included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _TICK


def process_seconds(pid: int) -> float:
    """CPU seconds that a process has spent, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK

"""The embedded default: XLA on the host's cores, float32, KV in main memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path

from xlaserve.platforms.platform import Platform

_GIB = 1 << 30


class CPUPlatform(Platform):
    """CPU through JAX's built-in client; memory comes from the machine or its container, not from the device."""

    __slots__ = ()

    def kv_budget(self, weight_bytes: int) -> int:
        """A sixteenth of the machine's memory, between 256 MiB and 4 GiB: the host has other things to do, and touching it takes time."""
        return min(4 * _GIB, max(_GIB // 4, total_memory() // 16))

    def trim(self) -> None:
        """Arrays are the process's memory, which glibc holds on to until it is told not to; other allocators return it by themselves."""
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

    def fingerprint(self) -> dict[str, str]:
        """XLA compiles for exactly these CPU features and this many cores."""
        return {
            **super().fingerprint(),
            "cpu_features": hashlib.sha256(" ".join(cpu_features()).encode()).hexdigest()[:16],
            "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        }


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):
            continue
    return total


def cpu_features() -> list[str]:
    """Instruction set extensions of the host, sorted; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted(line.partition(":")[2].split())


CPU = CPUPlatform(
    name="cpu",
    jax_name="cpu",
    dtype="float32",
    block_size=16,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    attention="tiled",
    branches=True,
    install="JAX's CPU client comes with jaxlib: reinstall with `pip install --force-reinstall jaxlib`.",
)

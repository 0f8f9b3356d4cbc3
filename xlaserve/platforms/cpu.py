"""The embedded default: XLA on the host's cores, float32, KV in main memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from xlaserve.errors import ConfigError
from xlaserve.kernels.library import absence, library
from xlaserve.platforms.platform import KernelsChoice, Platform

_GIB = 1 << 30
KERNEL_DTYPES = ("float32", "bfloat16")
KERNEL_HEAD_DIM = 8
"""What the kernels take: types of activations, and what divides the numbers of a head."""
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


class CPUPlatform(Platform):
    """CPU through JAX's built-in client; memory comes from the machine or its container, not from the device."""

    __slots__ = ()

    def with_kernels(self, kernels: KernelsChoice, dtype: str, head_dim: int, *, here: bool = True) -> Platform:
        """The platform with the kernels of `xlaserve.kernels`, where there are some for such a model."""
        if kernels == "none":
            return self
        found, why = library(), absence() or ""
        if found is not None and dtype not in KERNEL_DTYPES:
            found, why = None, f"they compute in {' and '.join(KERNEL_DTYPES)}, not in {dtype}"
        if found is not None and head_dim % KERNEL_HEAD_DIM:
            found, why = None, f"they need heads of a multiple of {KERNEL_HEAD_DIM} numbers, and this model's have {head_dim}"
        if found is not None:
            return replace(self, kernels=found.version, kernels_note=found.instruction_set)
        if kernels == "native":
            raise ConfigError(f"kernels: there are no native kernels here: {why}. Or use --kernels auto, which does without.")
        return replace(self, kernels_note=why)

    def reserve(self, utilization: float | None, devices: int) -> None:
        """Have as many devices as are wanted: the client makes one, unless it is told before it starts. All compute on the same cores, so
        several are for trying what is meant for several accelerators.
        """
        if devices > 1:
            import jax

            with suppress(RuntimeError):  # it has started: whether it has enough, `first_devices` says
                jax.config.update("jax_num_cpu_devices", max(devices, jax.config.values["jax_num_cpu_devices"]))

    def more_devices(self, count: int) -> str:
        """The client makes devices when it starts, and not later."""
        return f"JAX's CPU client of this process has started without them: set JAX_NUM_CPU_DEVICES={count} before Python starts. "

    def sharing(self, devices: int) -> int:
        """All devices are in the machine's memory."""
        return devices

    def memory(self) -> int | None:
        """The machine's memory, or its control group's limit where that is lower."""
        return total_memory()

    def kv_limit(self, utilization: float | None) -> int | None:
        """Where the user names no share: a sixteenth of the memory, between 256 MiB and 4 GiB. The host has other things to do, memory that
        nobody has touched is not there yet, and touching it takes time.
        """
        return None if utilization is not None else min(4 * _GIB, max(_GIB // 4, total_memory() // 16))

    def widens(self, dtype: str) -> bool:
        """XLA:CPU has no arithmetic in the short types: it converts weights and even the KV cache, whole."""
        return dtype != "float32"

    def trim(self) -> None:
        """Arrays are the process's memory, which glibc holds on to until it is told not to; other allocators return it by themselves."""
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

    def fingerprint(self) -> dict[str, str]:
        """XLA compiles for exactly these CPU features and this many cores."""
        return {
            **super().fingerprint(),
            "cpu_features": hashlib.sha256(" ".join(cpu_features()).encode()).hexdigest()[:16],
            "cores": str(usable_cores()),
        }


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in _limit_files():
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total


def _limit_files() -> list[Path]:
    """Where control groups tell limits: those of this process's group and of all around it, and what a container sees as the root."""
    files = [_GROUPS / "memory.max", _GROUPS / "memory" / "memory.limit_in_bytes"]
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        return files
    for group in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        folders = (_GROUPS.joinpath(*Path(group).parts[:depth]) for depth in range(1, len(Path(group).parts) + 1))
        files += [folder / "memory.max" for folder in folders]
    return files


def cpu_features() -> list[str]:
    """Instruction set extensions of the host, sorted; empty where the system does not tell."""
    return sorted(_cpu_info("flags", "Features").split())


def cpu_model() -> str:
    """The host's processor by its maker's name, or whatever the system calls it."""
    return _cpu_info("model name").strip() or platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_info(*names: str) -> str:
    """What /proc/cpuinfo says of the first core under one of some names; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(names)), "").partition(":")[2]


CPU = CPUPlatform(
    name="cpu",
    jax_name="cpu",
    dtype="float32",
    block_size=16,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    attention="tiled",
    branches=True,
    top_k="sort",
    install="JAX's CPU client comes with jaxlib: reinstall with `pip install --force-reinstall jaxlib`.",
    experts="chosen",
    kernels_note="turned off",
    quantizations=("int8",),
)

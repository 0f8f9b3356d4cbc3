"""Accelerators that graphs can be made for on a machine without them.

For CUDA cards the plugin compiles from a description of the card; where the plugin is not installed, and for Neuron, what can be made
is StableHLO, which the machine with the device compiles when it loads it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from xlaserve.errors import ConfigError
from xlaserve.platforms.neuron_targets import TARGETS as NEURON_TARGETS
from xlaserve.platforms.neuron_targets import Target as NeuronTarget
from xlaserve.platforms.platform import Device, KernelsChoice, Platform
from xlaserve.platforms.registry import platforms


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of device.

    Args:
        platform: the platform's name.
        device_kind: what its devices call themselves.
        memory: bytes of one device (a CUDA card, a NeuronCore as JAX sees it).
        config: XLA's description of the card, for compiling without it; empty where there is no such thing.
        kernels: whether the platform's native kernels are for this card.
    """

    platform: str
    device_kind: str
    memory: int
    config: str = ""
    kernels: bool = False


@dataclass(frozen=True, slots=True)
class AbsentDevice:
    """Stands for a device whose compiler is not here either.

    Args:
        device_kind: what it calls itself.
        reason: what is missing.
    """

    device_kind: str
    reason: str


_CUDA12, _CUDA13 = "12.9.0", "13.0.0"
"""What the driver is at least. Where XLA is told none, it takes it to know no conditionals in CUDA graphs."""


def _cuda() -> tuple[str, str]:
    """Versions of the driver and of the libraries beside it, which are those that JAX's plugin has here: what was measured with cuBLASLt of
    one version is not taken for another.
    """
    for package, driver in (("nvidia-cuda-runtime", _CUDA13), ("nvidia-cuda-runtime-cu12", _CUDA12)):
        try:
            major, minor, *_ = version(package).split(".")
        except PackageNotFoundError:
            continue
        return driver, f"{major}.{minor}.0"
    return _CUDA12, _CUDA12


def _card(
    name: str, memory: int, *, cores: int, fpus: int, shared: int, block: int, bandwidth: int, l2: int, ghz: float, capability: str
) -> Target:
    """A card as `gpu_device_info` of XLA's GpuTargetConfigProto, from the specifications in its repository."""
    driver, runtime = _cuda()
    config = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152  shared_memory_per_core: {shared}
          threads_per_core_limit: 2048  core_count: {cores}  fpus_per_core: {fpus}
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          memory_bandwidth: {bandwidth}  l2_cache_size: {l2}  clock_rate_ghz: {ghz}  device_memory_size: {memory}
          shared_memory_per_block_optin: {block}  cuda_compute_capability {{ {capability} }}
          driver_version: "{driver}"  runtime_version: "{runtime}"
          registers_per_core_limit: 65536  registers_per_block_limit: 65536
          thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9  minor: 10  patch: 0 }}
        device_description_str: "{name}"
    """
    return Target("cuda", name, memory, config, kernels=capability.startswith("major: 9 "))


_HOPPER: dict[str, Any] = {"cores": 132, "fpus": 128, "shared": 233472, "block": 232448, "l2": 52428800, "ghz": 1.98}
_HOPPER["capability"] = "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES"

TARGETS: dict[str, Target] = {
    "h100": _card("NVIDIA H100 80GB HBM3", 84942979072, bandwidth=3352320000000, **_HOPPER),
    "h200": _card("NVIDIA H200", 151397597184, bandwidth=4800000000000, **_HOPPER),
    "a100": _card(
        "NVIDIA A100-SXM4-80GB",
        85100068864,
        cores=108,
        fpus=64,
        shared=167936,
        block=166912,
        bandwidth=2039040000000,
        l2=41943040,
        ghz=1.41,
        capability="major: 8 minor: 0",
    ),
    **{name: Target("neuron", name, chip.memory) for name, chip in NEURON_TARGETS.items()},
}


class TargetPlatform(Platform):
    """A platform as one of its devices would have it, on a machine that need not have any."""

    __slots__ = ("_devices", "_platform", "_target")

    def __init__(self, platform: Platform, target: Target, devices: int) -> None:
        super().__init__(**{field.name: getattr(platform, field.name) for field in fields(Platform)})
        object.__setattr__(self, "_platform", platform)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_devices", _compile_only_devices(target, devices))

    def with_kernels(self, kernels: KernelsChoice, dtype: str, head_dim: int, *, here: bool = True) -> Platform:
        """As the platform does, if its kernels are for this target, whatever this machine has."""
        if kernels == "native" and not self._target.kernels:
            raise ConfigError(f"kernels: there are no native kernels for {self._target.device_kind}: leave out --kernels native.")
        found = self._platform.with_kernels(kernels, dtype, head_dim, here=False) if self._target.kernels else self
        return TargetPlatform(found, self._target, len(self._devices)) if found is not self else self

    def devices(self) -> list[Device]:
        """Devices that can be compiled for, or as many of `AbsentDevice`."""
        return self._devices

    def joined_devices(self) -> tuple[int, ...] | None:
        """Numbers of cores that Neuron's runtime joins; cards are joined in any number."""
        chip = self.lint_target()
        return None if chip is None else chip.parallel

    @property
    def here(self) -> bool:
        """No: nothing can be measured."""
        return False

    def memory(self) -> int:
        """Bytes of the target's memory."""
        return self._target.memory

    def lint_target(self) -> NeuronTarget | None:
        """The chip, where it is one of Neuron's."""
        return NEURON_TARGETS.get(self._target.device_kind)

    def fingerprint(self) -> dict[str, Any]:
        """As the device would have it. The version that its client reports is not known here."""
        return {"device_kind": self._target.device_kind, "platform_version": None}


def target_platform(platform: str | None, target: str, devices: int = 1) -> TargetPlatform:
    """The platform of a target.

    Args:
        platform: its name, or None for the one that the target belongs to.
        target: one of `TARGETS`.
        devices: how many of it there are to be.

    Raises:
        ConfigError: there is no such target, or it is of another platform.
    """
    if target not in TARGETS:
        raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
    found = TARGETS[target]
    if platform not in (None, found.platform):
        raise ConfigError(f"target {target} is of the platform {found.platform}, not of {platform}.")
    return TargetPlatform(platforms()[found.platform], found, devices)


def _compile_only_devices(target: Target, count: int) -> list[Device]:
    if not target.config:
        reason = "neuronx-cc compiles it through the Neuron plugin, at the first start on a machine that has the device"
        return [AbsentDevice(target.device_kind, reason)] * count
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the plugin would look for a driver
    import jax
    from jax.experimental import topologies

    jax.devices("cpu")  # finds the plugins
    shape = f"1x1x{count}"  # partitions of hosts, hosts in each, cards in each of these
    name, described = f"nvidia:{shape}", target.config
    try:
        topology = topologies.get_topology_desc(topology_name=name, platform="cuda", target_config=described, topology=shape)
    except (NotImplementedError, RuntimeError) as error:
        install = "JAX's CUDA plugin is not installed: pip install 'xlaserve[cuda13]' brings what compiles for a card without one"
        return [AbsentDevice(target.device_kind, f"{install} ({error})")] * count
    return list(topology.devices)

"""What xlaserve needs to know of a PJRT platform: its defaults, its memory and which implementations its compiler takes.

A third party adds one by naming a `Platform` in the entry-point group `xlaserve.platforms`. Imports no JAX until asked for devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from xlaserve.errors import ConfigError

Device = Any
"""A `jax.Device`, which its package does not declare as a type."""

AttentionKind = Literal["tiled", "gather"]


@dataclass(frozen=True, slots=True)
class Platform:
    """One PJRT platform.

    Args:
        name: what the user calls it: "cpu", "cuda", "neuron".
        jax_name: what JAX calls it.
        dtype: weights and KV where the user says "auto".
        block_size: tokens per KV block.
        max_num_seqs: sequences computed at once, where the user says nothing.
        max_num_batched_tokens: tokens of one context graph, likewise.
        attention: "tiled" loops over the KV in use, with a trip count known only at run time; "gather" reads whole block tables.
        branches: whether a graph may hold conditionals.
        install: what to do where the platform is asked for and absent.
    """

    name: str
    jax_name: str
    dtype: str
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    attention: AttentionKind
    branches: bool
    install: str

    def devices(self) -> list[Device]:
        """The platform's devices.

        Raises:
            ConfigError: JAX finds none; the message says what to install.
        """
        import jax

        try:
            return jax.devices(self.jax_name)
        except RuntimeError as error:
            raise ConfigError(f"Platform {self.name!r} has no device here: {error}. {self.install}") from error

    def available(self) -> bool:
        """Whether JAX finds a device of this platform."""
        try:
            return bool(self.devices())
        except ConfigError:
            return False

    def kv_budget(self, weight_bytes: int) -> int:
        """Bytes to give to the KV cache where the user sets no size; the same on every start of the same machine.

        Args:
            weight_bytes: what the model's weights take on the device.
        """
        stats = self.devices()[0].memory_stats() or {}
        limit = int(stats.get("bytes_limit", 0))
        if not limit:
            raise ConfigError(f"Platform {self.name!r} does not report its memory; give the size of the KV cache with --num-blocks.")
        return max(0, int(limit * 0.9) - weight_bytes)

    def trim(self) -> None:
        """Offer the machine what arrays have given back. Here nothing is to be done: the device's allocator has it."""

    def fingerprint(self) -> dict[str, str]:
        """What else an executable for this platform depends on, as names and values to compare."""
        device = self.devices()[0]
        return {"device_kind": device.device_kind, "platform_version": str(device.client.platform_version)}

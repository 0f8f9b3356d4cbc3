"""The Neuron chips that graphs are made and linted for: what a core of each has. Imports nothing, so that flags can list them."""

from __future__ import annotations

from dataclasses import dataclass

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Target:
    """One chip.

    Args:
        name: as neuronx-cc's `--target` has it.
        memory: bytes of device memory that one logical core has.
        parallel: legal tensor-parallel degrees (NxD Inference API guide).
    """

    name: str
    memory: int
    parallel: tuple[int, ...]


TARGETS: dict[str, Target] = {
    "trn1": Target("trn1", 16 * _GIB, (1, 2, 8, 16, 32)),
    "inf2": Target("inf2", 16 * _GIB, (1, 2, 4, 8, 24)),
    "trn2": Target("trn2", 24 * _GIB, (1, 2, 4, 8, 16, 32, 64)),
}
"""By name. On trn2 a logical core is two physical ones, the default there."""

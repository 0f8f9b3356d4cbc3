"""AWS Trainium and Inferentia through the Neuron PJRT plugin: bfloat16, blocks of 128 tokens, no dynamic control flow in graphs."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from xlaserve.platforms.held_variable import HeldVariable
from xlaserve.platforms.neuron_options import NeuronOptions
from xlaserve.platforms.neuron_targets import TARGETS, Target
from xlaserve.platforms.neuron_tools import list_devices
from xlaserve.platforms.platform import FAMILIES, Family, Platform

_COMPILER_FLAGS = HeldVariable("NEURON_CC_FLAGS")
"""How the plugin is told the compiler's flags; it reads the variable at each compilation."""


@dataclass(frozen=True, slots=True)
class NeuronPlatform(Platform):
    """Neuron cores, each with its share of a chip's memory.

    Args:
        options: what the user sets, compiler flags above all.
    """

    options: NeuronOptions = field(default_factory=NeuronOptions)

    def configured(self, neuron: NeuronOptions | None) -> Platform:
        """The platform with these options."""
        return self if neuron is None else replace(self, options=neuron)

    def memory(self) -> int | None:
        """A core's memory: as the plugin tells it, or a core's share of what `neuron-ls` says of the chip."""
        told = Platform.memory(self)
        if told is not None or not self.available():
            return told
        try:
            chips = list_devices()
        except (OSError, ValueError):
            return None
        return min((chip.memory // chip.cores for chip in chips if chip.cores), default=None)

    def compiling(self, family: Family) -> AbstractContextManager[None]:
        """The family's flags where the plugin reads them. Families do not compile at the same time, as they share that place."""
        return _COMPILER_FLAGS.hold(shlex.join(self.options.compiler_flags(family)))

    def lint_target(self) -> Target | None:
        """The chip that the device names; None for one that the lint does not know."""
        return TARGETS.get(str(self.devices()[0].device_kind).lower())

    def joined_devices(self) -> tuple[int, ...] | None:
        """Numbers of cores that the runtime joins on the device's chip."""
        chip = self.lint_target() if self.available() else None
        return None if chip is None else chip.parallel

    def fingerprint(self) -> dict[str, str]:
        """The compiler's flags, too."""
        return {**Platform.fingerprint(self), **{f"{family}_flags": self.options.key(family) for family in FAMILIES}}


NEURON = NeuronPlatform(
    name="neuron",
    jax_name="neuron",
    dtype="bfloat16",
    block_size=128,
    max_num_seqs=16,
    max_num_batched_tokens=1024,
    attention="gather",
    branches=False,
    top_k="neuron",
    install="Install the Neuron driver and jax-neuronx from AWS's package index as docs/platforms.md shows, and check with `neuron-ls`.",
)

"""How a device's memory is divided before anything large is on it: weights, slot state, workspace, and KV blocks for the rest. No JAX."""

from __future__ import annotations

from dataclasses import dataclass

from xlaserve.errors import ConfigError

SMALLER = "Use a smaller --max-num-seqs, --max-num-batched-tokens or model."
"""What to do where weights, slot state and workspace alone are too much."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one device's memory, by what they are for.

    Args:
        device: the device's memory; None where it does not tell.
        planned: how much of it the engine may fill.
        kv_limit: most that the KV cache may take, whatever is left; None for no such limit.
        weights: the model's weights.
        slots: what the device keeps for each sequence slot; there is room for as much again, on its way to the device.
        workspace: a bound of what graphs need beside all this while they run.
        block: of one KV block.
        wide_block: what a graph's copy of one block takes beside it, where the platform's compiler makes any.
        num_blocks: KV blocks, the null block included.
    """

    device: int | None
    planned: int | None
    kv_limit: int | None
    weights: int
    slots: int
    workspace: int
    block: int
    wide_block: int = 0
    num_blocks: int = 0

    @property
    def kv(self) -> int:
        """The KV cache."""
        return self.num_blocks * self.block

    @property
    def peak_workspace(self) -> int:
        """The workspace with graphs' copies of KV blocks."""
        return self.workspace + self.num_blocks * self.wide_block

    @property
    def total(self) -> int:
        """All that the engine takes."""
        return self.weights + 2 * self.slots + self.peak_workspace + self.kv

    @property
    def most_blocks(self) -> int | None:
        """As many KV blocks as the plan has room for; None where the device does not tell its memory."""
        if self.planned is None:
            return None
        room = max(0, self.planned - self.weights - 2 * self.slots - self.workspace) // (self.block + self.wide_block)
        return room if self.kv_limit is None else min(room, self.kv_limit // self.block)

    def describe(self) -> str:
        """The plan in one line for a person."""
        parts = (("weights", self.weights), ("slot state", 2 * self.slots), ("workspace up to", self.peak_workspace), ("KV", self.kv))
        listed = ", ".join(f"{name} {mebibytes(size)}" for name, size in parts)
        return f"{mebibytes(self.total)} of {'unknown' if self.device is None else mebibytes(self.device)}: {listed}"

    def remedy(self, excess: int) -> str:
        """What a person can do who is `excess` bytes short."""
        fewer = self.num_blocks - -(-excess // (self.block + self.wide_block))
        return f"Use --num-blocks {fewer} or less." if fewer >= 2 else SMALLER

    def compare(self, needed: int, graph: str) -> str:
        """What the compiled graphs need against what was planned, in one line.

        Args:
            needed: bytes that the graph that needs most takes beside weights, KV and slot state.
            graph: which graph that is.

        Raises:
            ConfigError: that is more than the device has left.
        """
        excess = needed - self.peak_workspace
        line = f"workspace is {mebibytes(needed)}, for {graph}; {mebibytes(self.peak_workspace)} were planned"
        if excess <= 0:
            return line
        if self.device is not None and self.total + excess > self.device:
            raise ConfigError(
                f"The plan of memory does not hold: {line}, and with it {mebibytes(self.total + excess)} are more than there are. "
                f"{self.remedy(self.total + excess - self.device)}"
            )
        return f"warning: {line}. The device has room for it"


def mebibytes(size: int) -> str:
    """A size for a person."""
    return f"{size / 2**20:,.0f} MiB"

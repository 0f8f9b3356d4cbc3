"""Sizes of everything that is measured: as the goals have them, and small enough to rehearse on a CPU. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes.

    Args:
        device: the platform's name.
        model: architecture, with dummy weights.
        copy_bytes: of the array whose copy gives the bandwidth.
        gemm: rows and columns of the matrices whose product gives the rate of operations.
        rows: sequences of the large generate graph.
        context: tokens of each sequence in it.
        prompt: tokens of the context graph.
        inputs, outputs: tokens of a served request.
        concurrencies: requests at once.
    """

    device: str
    model: str
    copy_bytes: int
    gemm: int
    rows: int
    context: int
    prompt: int
    inputs: int
    outputs: int
    concurrencies: tuple[int, ...]

    @property
    def engine(self) -> dict[str, Any]:
        """Fields of `EngineConfig` that all parts share."""
        return {"model": self.model, "load_format": "dummy", "device": self.device}

    @property
    def step_engine(self) -> dict[str, Any]:
        """The same for single graphs. Blocks are as many as these need, so that there is room for what ceilings are measured with."""
        longest = self.prompt + 2 * self.context
        blocks = (self.rows * self.context + 2 * longest) // 16 + 1
        sizes = {"max_model_len": longest, "max_num_seqs": self.rows, "max_num_batched_tokens": self.prompt, "num_blocks": blocks}
        return {**self.engine, **sizes}


CARD = Scale("cuda", "llama-3.1-8b", 2 << 30, 8192, 64, 1024, 8192, 1024, 128, (1, 8, 64, 256))
REHEARSAL = Scale("cpu", "smollm2-135m", 1 << 22, 256, 4, 64, 64, 32, 8, (1, 4))

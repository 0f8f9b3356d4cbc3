"""The device side of an iteration: holds executables, weights, KV and the state of slots, and runs one graph at a time.

It holds compiled executables only: nothing here can trace or compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequences

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from xlaserve.buckets.compiler import Executable
from xlaserve.buckets.graphs import GraphSpec, StepOutput
from xlaserve.buckets.ladder import COPIES, COPY, SEAT, Bucket, UpkeepBucket
from xlaserve.buckets.layout import Header
from xlaserve.engine.batch import Batch, empty_batch
from xlaserve.engine.seating import empty_seating, seating
from xlaserve.engine.sequence import Sequence
from xlaserve.paged.block_pool import NULL_BLOCK
from xlaserve.platforms.platform import Device


class Runner:
    """Runs compiled graphs in the order in which they are called.

    Args:
        spec: what the graphs have in common.
        executables: one for every bucket, and those that tend what the device keeps.
        params: the weights, in the order of `spec.parameters()`.
        device: where everything is.
    """

    def __init__(
        self, spec: GraphSpec, executables: Mapping[Bucket | UpkeepBucket, Executable], params: tuple[jax.Array, ...], device: Device
    ) -> None:
        self._executables = dict(executables)
        self._params = params
        self._spare_slot = spec.max_num_seqs
        self._vocab_size = spec.model.vocab_size
        with jax.default_device(device):
            self._kv = tuple(jnp.zeros(array.shape, array.dtype) for array in spec.kv())
            self._state = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), spec.state())

    def run(self, bucket: Bucket, batch: Batch) -> StepOutput:
        """Start one graph and return at once.

        Args:
            bucket: which graph.
            batch: its input, int32 `[rows, row width]`; must not be written to afterwards.

        Returns:
            The output; its tokens are on their way to the host, and so are its scores where a row asked for them.
        """
        output: StepOutput
        self._kv, self._state, output = self._executables[bucket](self._params, self._kv, self._state, batch)
        output.tokens.copy_to_host_async()
        if batch[:, Header.LOGPROBS].any():
            output.scores.copy_to_host_async()
        if output.prompt_scores is not None and batch[:, Header.PROMPT_LOGPROBS].any():
            output.prompt_scores.copy_to_host_async()
        return output

    def seat(self, sequence: Sequence) -> None:
        """Load the state of a sequence's slot. The host must know all its tokens: none may be in flight."""
        self._state = self._executables[SEAT](self._state, *seating(sequence, self._vocab_size))

    def copy(self, pairs: Sequences[tuple[int, int]]) -> None:
        """Copy KV blocks, in all layers.

        Args:
            pairs: source and target of each; no target is a source.
        """
        for at in range(0, len(pairs), COPIES):
            blocks = np.zeros((2, COPIES), np.int32)
            part = pairs[at : at + COPIES]
            blocks[:, : len(part)] = np.array(part, np.int32).T
            self._kv = self._executables[COPY](self._kv, blocks[0], blocks[1])

    def warm_up(self) -> None:
        """Run the smallest graph of each family once on padding: what cannot run on this machine is found now, not while it serves.

        Only these: they hold the same code as the larger ones, and running all would take longer than loading them.
        """
        self._state = self._executables[SEAT](self._state, *empty_seating(self._spare_slot, self._vocab_size))
        self.copy([(NULL_BLOCK, NULL_BLOCK)])
        buckets = [bucket for bucket in self._executables if not isinstance(bucket, UpkeepBucket)]
        for family in {type(bucket) for bucket in buckets}:
            bucket = min((b for b in buckets if type(b) is family), key=lambda b: (b.tokens, b.width))
            self.run(bucket, empty_batch(bucket, self._spare_slot)).tokens.block_until_ready()


def read(array: jax.Array) -> NDArray[np.int32]:
    """Wait for part of an output and give it to the host."""
    return np.asarray(array)

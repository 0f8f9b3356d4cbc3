"""The device side of an iteration: holds executables, weights, KV and the state of slots, and runs one graph at a time.

It holds compiled executables only: nothing here can trace or compile.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequences

import jax
import numpy as np
from numpy.typing import NDArray

from xlaserve.buckets.compiler import Executable
from xlaserve.buckets.graphs import GraphSpec, StepOutput
from xlaserve.buckets.ladder import BLANK, COPIES, COPY, SEAT, Bucket, ContextBucket, UpkeepBucket
from xlaserve.buckets.layout import TOKENS_AT, Header, mask_width
from xlaserve.engine.batch import Batch, Mask, empty_batch
from xlaserve.engine.seating import empty_seating, seating
from xlaserve.engine.sequence import Sequence
from xlaserve.paged.block_pool import NULL_BLOCK
from xlaserve.platforms.mesh import held_bytes

_FEWEST_TURNS, _MOST_TURNS = 2, 4
_MEASURED_ENOUGH = 5.0
"""To be measured, every graph runs once in each turn. The first is slow, as graphs get their memory; none after the second begins after
that many seconds."""


class Runner:
    """Runs compiled graphs in the order in which they are called.

    Args:
        spec: what the graphs have in common.
        executables: one for every bucket, and those that tend what the device keeps.
        params: the weights, in the order of `spec.packing().arrays`.
        load: gets the weights again.
        trim: called when much of the device's memory has been given back.
    """

    def __init__(
        self,
        spec: GraphSpec,
        executables: Mapping[Bucket | UpkeepBucket, Executable],
        params: tuple[jax.Array, ...],
        load: Callable[[], tuple[jax.Array, ...]],
        trim: Callable[[], None],
    ) -> None:
        self._executables = dict(executables)
        self._params = params
        self._load = load
        self._trim = trim
        self._spare_slot = spec.max_num_seqs
        self._vocab_size = spec.model.vocab_size
        self._kv, self._state = self._executables[BLANK]()
        # Most iterations have no row with a mask of its own: these stay where the slots' state is, and nothing crosses.
        width, place = mask_width(self._vocab_size), self._state.last_tokens.sharding
        self._all_allowed = {rows: jax.device_put(np.full((rows, width), -1, np.int32), place) for rows in {b.rows for b in self._buckets}}

    def run(self, bucket: Bucket, batch: Batch, mask: Mask | None = None) -> StepOutput:
        """Start one graph and return at once.

        Args:
            bucket: which graph.
            batch: its input, int32 `[rows, row width]`; must not be written to afterwards.
            mask: the tokens that each row may choose, int32 `[rows, mask width]`, likewise; None where no row's form excludes any.

        Returns:
            The output; its tokens are on their way to the host, and so are its scores where a row asked for them.
        """
        output: StepOutput
        allowed = self._all_allowed[bucket.rows] if mask is None else mask
        self._kv, self._state, output = self._executables[bucket](self._params, self._kv, self._state, batch, allowed)
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

    def release(self, *, weights: bool) -> int:
        """Give back the device memory of KV and slots, and of the weights if asked. Nothing can run until `restore`.

        Returns:
            Bytes that were given back by this call.
        """
        held = [*self._kv, *self._state, *(self._params if weights else ())]
        held = [array for array in held if not array.is_deleted()]
        freed = sum(held_bytes(array) for array in held)
        for array in held:
            array.delete()
        # Where an array was made of a host buffer, as weights are on CPU, JAX lets go of that when Python collects garbage.
        gc.collect()
        self._trim()
        return freed

    def restore(self) -> None:
        """Get back what `release` gave, the weights as they are in the checkpoint, KV and slots blank. An error changes nothing."""
        params = self._load() if self._params[0].is_deleted() else self._params
        kv, state = jax.block_until_ready(self._executables[BLANK]())
        self._params, self._kv, self._state = params, kv, state

    def warm_up(self) -> None:
        """Run the smallest graph of each family once on padding: what cannot run on this machine is found now, not while it serves.

        Only these: they hold the same code as the larger ones, and running all would take longer than loading them.
        """
        self._state = self._executables[SEAT](self._state, *empty_seating(self._spare_slot, self._vocab_size))
        self.copy([(NULL_BLOCK, NULL_BLOCK)])
        buckets = self._buckets
        for family in {type(bucket) for bucket in buckets}:
            bucket = min((b for b in buckets if type(b) is family), key=lambda b: (b.tokens, b.width))
            batch = empty_batch(bucket, self._spare_slot)
            batch[:, Header.LENGTH] = 1
            self.run(bucket, batch).tokens.block_until_ready()

    def measure(self) -> dict[Bucket, int]:
        """Nanoseconds that one run of each bucket takes: the least of a few, on rows of padding as long as the bucket.

        The graphs take turns, and each as many as the others. So where the machine is busy for a while, it is for all of them.
        """
        batches = {bucket: empty_batch(bucket, self._spare_slot) for bucket in self._buckets}
        for bucket, batch in batches.items():
            # Different tokens: of the same one, a mixture of experts would read a few of its weights only.
            share = bucket.share if isinstance(bucket, ContextBucket) else 1
            ids = np.arange(bucket.rows * share, dtype=np.int32).reshape(bucket.rows, share) % self._vocab_size
            if isinstance(bucket, ContextBucket):
                batch[:, Header.LENGTH] = share
                batch[:, TOKENS_AT : TOKENS_AT + share] = ids
            else:
                batch[:, Header.LENGTH] = 1
                batch[:, Header.TOKEN] = ids[:, 0] + 1
        taken: dict[Bucket, int] = {}
        enough = time.monotonic() + _MEASURED_ENOUGH
        for turn in range(_MOST_TURNS):
            if turn >= _FEWEST_TURNS and time.monotonic() > enough:
                break
            for bucket, batch in batches.items():
                begin = time.perf_counter_ns()
                self.run(bucket, batch).tokens.block_until_ready()
                nanoseconds = max(1, time.perf_counter_ns() - begin)
                taken[bucket] = min(nanoseconds, taken.get(bucket, nanoseconds))
        return taken

    @property
    def _buckets(self) -> list[Bucket]:
        return [bucket for bucket in self._executables if not isinstance(bucket, UpkeepBucket)]


def read(array: jax.Array) -> NDArray[np.int32]:
    """Wait for part of an output and give it to the host."""
    return np.asarray(array)

"""Logits at every position of a prompt, computed as the engine computes them: chunk by chunk through the paged cache.

The graphs are those of `xlaserve.buckets.graphs` but for the sampler: the same model, cache, block tables and padding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.config import Quantization
from xlaserve.models.decoder import CausalLM, parameter_shapes, parameter_tree
from xlaserve.models.layers import checkpoint_rows
from xlaserve.models.operations import Operations, XlaOperations
from xlaserve.models.registry import model_config
from xlaserve.models.weights import load_weights
from xlaserve.paged.attention import PagedKV, StepShape
from xlaserve.paged.kernel_operations import KernelOperations, StackedKV
from xlaserve.platforms.mesh import AXIS, on_each_device, spread
from xlaserve.platforms.platform import ExpertsKind

BLOCK = 16


class LogitsEngine:
    """One checkpoint, ready to give logits.

    Args:
        path: the checkpoint.
        attention: which implementation reads the cache, unless kernels do.
        max_len: longest prompt in tokens.
        shards: CPU devices to split the model over.
        experts: how a mixture of experts is computed.
        quantization: how weights are kept; None for float32.
        kernels: whether to compute with the CPU kernels, which have to be there.
    """

    def __init__(
        self,
        path: Path | str,
        attention: str = "tiled",
        max_len: int = 2048,
        shards: int = 1,
        experts: ExpertsKind = "chosen",
        quantization: Quantization | None = None,
        kernels: bool = False,
    ) -> None:
        checkpoint = open_checkpoint(path)
        whole = model_config(checkpoint.config)
        self.config = replace(whole.shard(shards), quantization=quantization)
        self._shapes = parameter_shapes(self.config, jnp.dtype("float32"))
        self._names = tuple(self._shapes)
        self._params = load_weights(checkpoint, self._shapes, jax.devices("cpu")[:shards], rows=checkpoint_rows(whole, shards))
        self._model = CausalLM(self.config, jnp.dtype("float32"), experts=experts)
        self._attention: str = attention
        self._kernels = kernels
        self._blocks = -(-max_len // BLOCK)
        self._step = functools.lru_cache(maxsize=None)(self._compile)

    def logits(self, prompt: Sequence[int], *, chunk: int = 64, generated: int = 8) -> np.ndarray:
        """float32 `[len(prompt), vocab]`: chunks of `chunk` tokens, then the last `generated` tokens one at a time, as generation does."""
        kv = tuple(jnp.zeros(array.shape, jnp.float32) for array in self._kv())
        # Blocks in descending order: nothing may depend on tables being 1, 2, 3 ...
        table = np.arange(self._blocks + 1, 1, -1, dtype=np.int32)[None]
        rows: list[np.ndarray] = []
        whole = max(0, len(prompt) - generated)
        starts = [(at, min(chunk, whole - at)) for at in range(0, whole, chunk)] + [(at, 1) for at in range(whole, len(prompt))]
        for start, count in starts:
            length = chunk if start < whole else 1
            tokens = np.zeros((1, length), np.int32)
            tokens[0, :count] = prompt[start : start + count]
            used = np.zeros_like(table)
            needed = -(-(start + count) // BLOCK)
            used[:, :needed] = table[:, :needed]
            kv, logits = self._step(length)(self._params, kv, tokens, np.array([[start], [count]], np.int32), used)
            rows.append(np.asarray(logits)[0, :count])
        return np.concatenate(rows)

    def _compile(self, length: int) -> Any:
        def step(params: Any, kv: Any, tokens: Any, place: Any, table: Any) -> Any:
            start, count = place
            positions = start[:, None] + jnp.arange(length, dtype=jnp.int32)
            shape = StepShape(positions, table, BLOCK)
            cache: StackedKV | PagedKV
            operations: Operations
            if self._kernels:
                cache = StackedKV(*kv, shape)
                operations = KernelOperations(cache, count, count)
            else:
                cache = PagedKV(list(zip(kv[::2], kv[1::2], strict=True)), shape, self._attention)
                operations = XlaOperations(cache.attend)
            logits = self._model.apply({"params": parameter_tree(self._names, params)}, operations, tokens, positions)
            return cache.arrays, logits

        batch = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, length), (2, 1), (1, self._blocks))]
        logits = jax.ShapeDtypeStruct((1, length, self.config.vocab_size), jnp.float32)
        *batch, logits = (spread(array, self.config.shards) for array in (*batch, logits))
        arguments = (tuple(self._shapes.values()), self._kv(), *batch)
        return jax.jit(on_each_device(step, arguments, (self._kv(), logits)), donate_argnums=1)

    def _kv(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        block, pool, layers = (BLOCK, self.config.head_dim), (self._blocks + 2, self.config.num_kv_heads), self.config.num_layers
        if self._kernels:
            shapes, split = [(layers, *pool, *each) for each in (block[::-1], block)], PartitionSpec(None, None, AXIS)
        else:
            shapes, split = [(*pool, *block)] * 2 * layers, PartitionSpec(None, AXIS)
        return tuple(spread(jax.ShapeDtypeStruct(shape, jnp.float32), self.config.shards, split) for shape in shapes)


@functools.lru_cache(maxsize=1)
def _engine(path: str) -> LogitsEngine:
    return LogitsEngine(path)


def engine_logits(model_path: Path | str, prompt_ids: Sequence[int]) -> np.ndarray:
    """float32 `[len(prompt_ids), vocab]` of a checkpoint; the last one used stays loaded."""
    return _engine(str(model_path)).logits(prompt_ids, chunk=512 if len(prompt_ids) > 400 else 64)

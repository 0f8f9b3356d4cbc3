"""How much memory graphs need while they run, before any is compiled: an upper bound from their shapes. Imports no JAX.

The number of KV blocks is a shape of every graph, so it must be settled before the first is compiled; measuring a probe graph would cost a
compilation at each change of a flag. What the compiler says afterwards is compared with this.
"""

from __future__ import annotations

from collections.abc import Iterable

from xlaserve.buckets.ladder import COPIES, Bucket, ContextBucket
from xlaserve.buckets.layout import mask_width, row_width
from xlaserve.models.config import ModelConfig
from xlaserve.paged.tile import tile_blocks
from xlaserve.platforms.platform import ExpertsKind
from xlaserve.sampling.scores import SCORE_WIDTH

IN_FLIGHT = 2
"""Iterations whose batches and outputs are on the device at once: one runs while the next is dispatched."""

# How many arrays of a kind are alive at once at most: XLA:CPU was seen to keep half to two thirds of what this sums up to.
_HIDDEN, _PROJECTED, _MLP, _SCORES, _LOGITS = 4, 4, 4, 4, 8
_SCORED_AT_ONCE = 16  # as sampling.logprobs.PLACES_AT_ONCE
_ROUTED_AT_ONCE = 128  # as models.experts.TOKENS_AT_ONCE


def workspace_bytes(
    model: ModelConfig,
    itemsize: int,
    block_size: int,
    tiled: bool,
    buckets: Iterable[Bucket],
    experts: ExpertsKind = "all",
    native: bool = False,
) -> int:
    """Bytes beside weights, KV and slot state: the largest intermediates of any graph, as graphs run one at a time, and the batches and
    outputs of the iterations in flight.

    Args:
        model: the model.
        itemsize: bytes of a number of weights and KV.
        block_size: tokens per KV block.
        tiled: whether attention reads a tile of the tables at a time, and not the whole.
        buckets: shapes of the graphs.
        experts: how a mixture of experts is computed.
        native: whether native kernels compute: attention that keeps neither scores nor gathered blocks, layers without float32 copies, and
            blocks that are copied where they lie.
    """
    copied = 0 if native else COPIES * block_size * model.kv_bytes_per_token(itemsize)
    temporary, context, generate = copied + 4096, 0, 0  # a graph's table of results is beside what it copies
    for bucket in buckets:
        temporary = max(
            temporary, _temporary(model, itemsize, block_size, tiled, bucket, native) + _routed(model, itemsize, experts, bucket.tokens)
        )
        scored = bucket.rows + (bucket.tokens if isinstance(bucket, ContextBucket) else 0)
        held = 4 * bucket.rows * (row_width(bucket) + mask_width(model.vocab_size) + 1) + 4 * scored * SCORE_WIDTH
        if isinstance(bucket, ContextBucket):
            context = max(context, held)
        else:
            generate = max(generate, held)
    return temporary + IN_FLIGHT * (context + generate)


def _temporary(model: ModelConfig, itemsize: int, block_size: int, tiled: bool, bucket: Bucket, native: bool = False) -> int:
    """Bytes of intermediates. All are counted as float32, and but for native kernels with a copy in the model's type, which is what
    compilers without native arithmetic in that type make of them.
    """
    rows, tokens = bucket.rows, bucket.tokens
    keys = block_size * (tile_blocks(rows, bucket.width, block_size) if tiled else bucket.width)
    wide = 4 if native else 4 + itemsize
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    per_token = wide * (_HIDDEN * model.hidden_size + _PROJECTED * heads + _MLP * model.intermediate_size)
    scores = 4 * _SCORES * tokens * model.num_heads * keys
    gathered = 2 * 2 * wide * rows * keys * model.num_kv_heads * model.head_dim
    logits = 4 * model.vocab_size * (_LOGITS * rows + (_LOGITS * _SCORED_AT_ONCE if isinstance(bucket, ContextBucket) else 0))
    return tokens * per_token + (0 if native else scores + gathered) + logits


def _routed(model: ModelConfig, itemsize: int, kind: ExpertsKind, tokens: int) -> int:
    """Bytes of what a mixture of experts keeps: a row for each token and expert that counts, or copies of the chosen ones' weights."""
    if model.experts is None:
        return 0
    wide, width, chosen = 4 + itemsize, model.experts.width, tokens * model.experts.per_token
    if kind == "chosen":
        return wide * (2 * chosen * model.hidden_size + 2 * 3 * width * model.hidden_size)
    copies = wide * chosen * 3 * width * model.hidden_size if 3 * chosen < model.experts.count else 0
    rows = min(tokens, _ROUTED_AT_ONCE) * model.experts.count
    return copies or wide * rows * (_MLP * width + model.hidden_size)

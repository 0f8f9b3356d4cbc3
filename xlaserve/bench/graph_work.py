"""What one run of a graph must do at least, by the arithmetic of the model: bytes to move and floating-point operations. Imports no JAX.

Counted for what is asked of the graph and not for what it does: padding, copies and whole tables read count against it. XLA's own figures
are of its code, where a loop counts once however often it runs, and know nothing of what a custom call does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from xlaserve.kernels.panels import matrix_shape
from xlaserve.models.config import ModelConfig

_LOGIT_BYTES = 4


class Stored(NamedTuple):
    """One parameter as a device has it.

    Args:
        shape: of the part that one device holds.
        itemsize: bytes of a number.
    """

    shape: tuple[int, ...]
    itemsize: int

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return prod(self.shape) * self.itemsize


class RowWork(NamedTuple):
    """What a row of a graph computes.

    Args:
        start: tokens of its sequence that are in the cache.
        length: tokens that it computes, from `start` on.
    """

    start: int
    length: int


class GraphWork(NamedTuple):
    """What one run must do at least.

    Args:
        tokens: tokens that it computes.
        weight_bytes: weights, each read once: of the embedding table the tokens' rows, and all of it where it makes the logits; of the
            experts of a layer as many as so many tokens meet on average, if each chooses evenly and by itself.
        kv_read_bytes: keys and values of earlier tokens that are attended to, within the layers' windows.
        kv_written_bytes: keys and values of the tokens that it computes.
        logit_bytes: logits, float32, written once for each row.
        linear_flops: of the products with weights, 2 for each weight and token; experts for the tokens that choose them; logits, and in
            the last layer all but keys and values, for one token of each row.
        attention_flops: of scores and of weighted values, 2 for each number of a key and of a value that a query meets; in the last layer
            of one query of each row.
    """

    tokens: int
    weight_bytes: int
    kv_read_bytes: int
    kv_written_bytes: int
    logit_bytes: int
    linear_flops: int
    attention_flops: int

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_written_bytes + self.logit_bytes

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return self.linear_flops + self.attention_flops


def graph_work(model: ModelConfig, parameters: Mapping[str, Stored], kv_itemsize: int, rows: Sequence[RowWork]) -> GraphWork:
    """What one device must do in one run.

    Args:
        model: what the device has of the model.
        parameters: all parameters by name.
        kv_itemsize: bytes of a number in the KV cache.
        rows: the rows that compute for sequences.
    """
    tokens = sum(row.length for row in rows)
    weight_bytes = linear_flops = 0
    for name, stored in parameters.items():
        shape = matrix_shape(stored.shape)
        if name.endswith("embed_tokens.weight"):
            weight_bytes += tokens * shape[1] * stored.itemsize
            if not model.tie_embeddings:
                continue
        # Whatever else a row computes, logits are made for one of its tokens, and only other tokens' keys and values are of use after the
        # last layer's projection.
        makes_logits = name.endswith("embed_tokens.weight") or name.startswith("lm_head.")
        finishes = f".layers.{model.num_layers - 1}." in name and "qkv_proj" not in name
        wanted = len(rows) if makes_logits or finishes else tokens
        if len(shape) == 3 and model.experts is not None:
            share = model.experts.per_token / model.experts.count
            weight_bytes += round(stored.bytes * (1 - (1 - share) ** wanted))
            linear_flops += 2 * prod(stored.shape) // model.experts.count * model.experts.per_token * wanted
            continue
        weight_bytes += stored.bytes
        if len(shape) == 2:
            linear_flops += 2 * prod(shape) * wanted
    number = 2 * model.num_kv_heads * model.head_dim * kv_itemsize
    windows = [layer.window for layer in model.layers]
    read = sum(min(row.start, row.start if window is None else window - 1) for window in windows for row in rows)
    last = [RowWork(row.start + row.length - 1, 1) for row in rows]
    met = sum(_met(row, window) for window in windows[:-1] for row in rows) + sum(_met(row, windows[-1]) for row in last)
    return GraphWork(
        tokens=tokens,
        weight_bytes=weight_bytes,
        kv_read_bytes=read * number,
        kv_written_bytes=model.num_layers * tokens * number,
        logit_bytes=len(rows) * model.vocab_rows * _LOGIT_BYTES,
        linear_flops=linear_flops,
        attention_flops=4 * model.num_heads * model.head_dim * met,
    )


def _met(row: RowWork, window: int | None) -> int:
    """Pairs of a query and a key that it meets: a query at place p meets p + 1 keys, at most as many as the window has."""
    first, last = row.start + 1, row.start + row.length
    if window is None or last <= window:
        return (first + last) * row.length // 2
    growing = max(0, window - first)  # queries before the window is full
    return (2 * first + growing - 1) * growing // 2 + (row.length - growing) * window

"""Log probabilities on the device: of the token at each place and of the most likely ones, from logits as the model gives them."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.platforms.platform import TopKKind
from xlaserve.platforms.top_k import top_k
from xlaserve.sampling.params import MAX_LOGPROBS
from xlaserve.sampling.scores import SCORE_WIDTH

PLACES_AT_ONCE = 16


def score(logits: Array, tokens: Array, wanted: Array, *, branches: bool, kind: TopKKind) -> Array:
    """Score one token per row.

    Args:
        logits: float32 `[B, V]`.
        tokens: int32 `[B]`, the tokens that the rows chose.
        wanted: int32 `[B]`: 0 for nothing, 1 for the token's own score, 1 + N for the N most likely tokens besides.
        branches: whether the graph may skip work that no row needs by a conditional.
        kind: how the platform finds the most likely tokens.

    Returns:
        int32 `[B, SCORE_WIDTH]` as `xlaserve.sampling.scores` reads it; rows that want nothing hold anything.
    """
    if not branches:
        return _score(logits, tokens, most_likely(logits, kind))
    nothing = jnp.zeros((logits.shape[0], MAX_LOGPROBS), jnp.int32), jnp.zeros((logits.shape[0], MAX_LOGPROBS), jnp.float32)

    def scored() -> Array:
        return _score(logits, tokens, jax.lax.cond(jnp.any(wanted > 1), lambda: most_likely(logits, kind), lambda: nothing))

    return jax.lax.cond(jnp.any(wanted > 0), scored, lambda: jnp.zeros((logits.shape[0], SCORE_WIDTH), jnp.int32))


def score_places(tokens: Array, wanted: Array, logits: Callable[[Array], Array], kind: TopKKind) -> Array:
    """Score a token at every place of a chunk, a few places at a time: logits of all of them would take more room than the model's layers.

    Args:
        tokens: int32 `[S, L]`, the tokens that follow the places.
        wanted: int32, of each sequence, as for `score`.
        logits: gives logits `[N, V]` at N places, int32 `[N]`, counted through all rows.
        kind: as for `score`.

    Returns:
        int32 `[S, L, SCORE_WIDTH]`; all zero where no row wants anything.
    """
    rows, length = tokens.shape
    count = math.gcd(rows * length, PLACES_AT_ONCE)

    # Places are gathered and scattered: slices of a loop's counter would be copies that no CUDA graph holds.
    def some(part: Array, found: Array) -> Array:
        places = part * count + jnp.arange(count, dtype=jnp.int32)
        chosen = tokens.reshape(-1).at[places].get(mode="promise_in_bounds")
        scores = score(logits(places), chosen, jnp.full(count, jnp.max(wanted)), branches=True, kind=kind)
        return found.at[places].set(scores, mode="promise_in_bounds", unique_indices=True)

    nothing = jnp.zeros((rows * length, SCORE_WIDTH), jnp.int32)
    parts = jnp.where(jnp.any(wanted > 0), rows * length // count, 0)
    return jax.lax.fori_loop(0, parts, some, nothing).reshape(rows, length, SCORE_WIDTH)


def most_likely(logits: Array, kind: TopKKind) -> tuple[Array, Array]:
    """The `MAX_LOGPROBS` largest logits of each row, largest first.

    Returns:
        ids int32 `[B, MAX_LOGPROBS]` and logits float32 `[B, MAX_LOGPROBS]`.
    """
    values, ids = top_k(logits, MAX_LOGPROBS, kind)
    return ids, values


def _score(logits: Array, tokens: Array, likely: tuple[Array, Array]) -> Array:
    ids, values = likely
    peak = jnp.max(logits, axis=1)
    total = peak + jnp.log(jnp.sum(jnp.exp(logits - peak[:, None]), axis=1))
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1, mode="promise_in_bounds")
    rank = 1 + jnp.sum(logits > chosen, axis=1, dtype=jnp.int32)

    def bits(x: Array) -> Array:
        return jax.lax.bitcast_convert_type(x - total[:, None], jnp.int32)

    return jnp.concatenate((rank[:, None], bits(chosen), ids, bits(values)), axis=1)

"""Choosing tokens on the device, inside the graph: greedy, temperature, top-k, top-p, min-p, each row with its own parameters.

No sort and no threefry: thresholds are found by bisection on the bits of the logits, which is exact, and noise comes from an integer
hash of (seed, place in the stream, token id), so a request's random stream is its own, whatever row, bucket or device it runs on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.platforms.random_bits import mix
from xlaserve.sampling.params import GREEDY_EPSILON, MASKED, NEVER


class SamplingRows(NamedTuple):
    """Sampling parameters of B rows.

    Args:
        temperature, top_p, min_p: float32 `[B]`; temperature 0 is greedy.
        top_k: int32 `[B]`; 0 keeps every token.
        seed: uint32 `[B, 2]`, the key of the request's random stream.
        place: int32 `[B]`, how many tokens of the stream were drawn before.
        banned: int32 `[B, K]`, token ids that cannot be chosen, repeated to fill the row; all -1 where there is none.
        structured: bool `[B]`, whether `mask` counts.
        mask: int32 `[B, ceil(V / 32)]`, the bits of the tokens that the form of the output allows; all ones where it does not count.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    seed: Array
    place: Array
    banned: Array
    structured: Array
    mask: Array

    @property
    def wanted(self) -> Array:
        """bool `[B]`: which rows ask for anything but the most likely token."""
        return (self.temperature > GREEDY_EPSILON) | (self.banned >= 0).any(axis=1) | self.structured


_FEWEST, _PIECE = 16, 256
"""How many ids of a vocabulary are looked at together, at least and at most."""


def sample(logits: Array, rows: SamplingRows, *, branches: bool) -> Array:
    """One token per row.

    Args:
        logits: float32 `[B, V]`.
        rows: the parameters of each row.
        branches: whether the graph may skip work that no row needs by a conditional.

    Returns:
        int32 `[B]`.
    """
    logits = _maybe(jnp.any(rows.banned >= 0), lambda x: ban(x, rows.banned), logits, branches)
    logits = _maybe(jnp.any(rows.structured), lambda x: keep(x, rows.mask), logits, branches)
    greedy = argmax(logits)
    drawn = rows.temperature > GREEDY_EPSILON
    if not branches:
        return jnp.where(drawn, _draw(logits, rows, branches), greedy)
    return jax.lax.cond(jnp.any(drawn), lambda: jnp.where(drawn, _draw(logits, rows, branches), greedy), lambda: greedy)


def keep(logits: Array, mask: Array) -> Array:
    """Mask all tokens but those whose bits are set.

    Args:
        logits: float32 `[B, V]`.
        mask: int32 `[B, ceil(V / 32)]`; token `t` is bit `t % 32` of number `t // 32`.
    """
    shape = (*mask.shape, 32)
    bits = jax.lax.shift_right_logical(jnp.broadcast_to(mask[:, :, None], shape), jax.lax.broadcasted_iota(jnp.int32, shape, 2)) & 1
    return jnp.where(bits.reshape(mask.shape[0], -1)[:, : logits.shape[1]] != 0, logits, NEVER)


def argmax(x: Array) -> Array:
    """Index of the largest value of each row, the first of equals, int32 `[B]`: plain reductions, no variadic one.

    Where the width can be cut into pieces, the first piece that has the largest value is found, and then the value in it: to look for the
    value everywhere would write ids as large as `x` first, which takes five times as long.
    """
    rows, width = x.shape
    piece = math.gcd(width, _PIECE)
    if piece < _FEWEST or piece == width:
        return _first(x, jnp.max(x, axis=1, keepdims=True))
    pieces = x.reshape(rows, width // piece, piece)
    peaks = jnp.max(pieces, axis=2)
    peak = jnp.max(peaks, axis=1, keepdims=True)
    at = _first(peaks, peak)
    found = jnp.take_along_axis(pieces, at[:, None, None], axis=1, mode="promise_in_bounds")[:, 0]
    return at * piece + _first(found, peak)


def _first(x: Array, value: Array) -> Array:
    """The first place of each row of `x` that holds the row's value `[B, 1]`, the last place of all where none does."""
    ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.min(jnp.where(x == value, ids, x.shape[1] - 1), axis=1)


def _draw(logits: Array, rows: SamplingRows, branches: bool) -> Array:
    x = logits / jnp.maximum(rows.temperature, GREEDY_EPSILON)[:, None]
    peak = jnp.max(x, axis=1, keepdims=True)
    x = jnp.where((rows.min_p[:, None] > 0) & (x < peak + jnp.log(jnp.maximum(rows.min_p, 1e-30))[:, None]), MASKED, x)
    x = _maybe(jnp.any(rows.top_k > 0), lambda x: _top_k(x, rows.top_k), x, branches)
    x = _maybe(jnp.any(rows.top_p < 1), lambda x: _top_p(x, rows.top_p), x, branches)
    return argmax(x + gumbel(rows.seed, rows.place, x.shape[1]))


def _maybe(needed: Array, apply: Callable[[Array], Array], x: Array, branches: bool) -> Array:
    return jax.lax.cond(needed, apply, lambda y: y, x) if branches else apply(x)


def ban(logits: Array, banned: Array) -> Array:
    """Mask the banned ids. A row's places are all used (ids may repeat) or all -1, so writes to one place always agree."""
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    ids = jnp.maximum(banned, 0)
    kept = logits.at[rows, ids].get(mode="promise_in_bounds")
    return logits.at[rows, ids].set(jnp.where(banned >= 0, MASKED, kept), mode="promise_in_bounds")


def _ordered_bits(x: Array) -> Array:
    """uint32 that compare as the floats do; both zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(0x80000000))


def _largest_threshold(keys: Array, enough: Callable[[Array], Array]) -> Array:
    """For each row the largest uint32 t such that `enough(keys >= t)` still holds, found bit by bit from the top."""

    def set_bit(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        threshold, bit = carry
        trial = threshold | bit
        return jnp.where(enough(keys >= trial[:, None]), trial, threshold), bit >> 1

    return jax.lax.fori_loop(0, 32, set_bit, (jnp.zeros(keys.shape[0], jnp.uint32), jnp.uint32(1 << 31)))[0]


def _top_k(x: Array, top_k: Array) -> Array:
    """Mask all but the k largest of each row (ties with the k-th stay); k of 0 masks nothing."""
    keys = _ordered_bits(x)
    wanted = jnp.where(top_k > 0, top_k, x.shape[1])
    threshold = _largest_threshold(keys, lambda kept: jnp.sum(kept, axis=1, dtype=jnp.int32) >= wanted)
    return jnp.where(keys >= threshold[:, None], x, MASKED)


def _top_p(x: Array, top_p: Array) -> Array:
    """Mask all but the smallest set of most likely tokens whose probabilities reach `top_p`; 1 masks nothing."""
    keys = _ordered_bits(x)
    weights = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
    wanted = top_p * jnp.sum(weights, axis=1)
    threshold = _largest_threshold(keys, lambda kept: jnp.sum(jnp.where(kept, weights, 0.0), axis=1) >= wanted)
    # The most likely token stays even where top_p is so small that nothing would be enough.
    threshold = jnp.minimum(threshold, jnp.max(keys, axis=1))
    return jnp.where((keys >= threshold[:, None]) | (top_p >= 1)[:, None], x, MASKED)


def gumbel(seed: Array, place: Array, width: int) -> Array:
    """Gumbel noise, float32 `[B, width]`; adding it to log-probabilities and taking the largest draws from them (Gumbel-max).

    Args:
        seed: uint32 `[B, 2]`.
        place: int32 `[B]`.
        width: the vocabulary's size.
    """
    # The hash maps 0 to 0: odd constants (of the golden ratio) keep seed 0, place 0 and token 0 from meeting there.
    key = mix(seed[:, 0] + mix(seed[:, 1] + mix(place.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))))
    ids = jax.lax.broadcasted_iota(jnp.uint32, (seed.shape[0], width), 1)
    bits = mix(mix(ids + key[:, None]) + seed[:, 1:2] + jnp.uint32(0x7F4A7C15))
    uniform = (bits >> 9).astype(jnp.float32) * jnp.float32(2**-23) + jnp.float32(2**-24)
    return -jnp.log(-jnp.log(uniform))

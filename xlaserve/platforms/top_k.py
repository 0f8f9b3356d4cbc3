"""The k largest numbers of each row, by whichever means the platform has."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.platforms.native_call import native_call
from xlaserve.platforms.platform import TopKKind

NEURON_WIDEST = 16384
"""Longest row that AwsNeuronTopK is given at once: wider ones have crashed neuronx-cc."""


def top_k(x: Array, k: int, kind: TopKKind) -> tuple[Array, Array]:
    """The k largest of each row, largest first.

    Args:
        x: float `[B, N]`, finite.
        k: from 1 to N.
        kind: "sort" takes JAX's, which puts the lower index first among equals; "neuron" the AwsNeuronTopK custom call, of which
            AWS does not say what it does with equals.

    Returns:
        values as `x`, and indices int32, `[B, k]`.
    """
    if kind == "sort":
        return _reference(x, k=k)
    rows, width = x.shape
    parts = -(-width // NEURON_WIDEST)
    if parts == 1:
        return _neuron(x, k)
    # Two stages: the best of each part, then the best of these. Parts keep their order, and so do equals.
    part = max(-(-width // parts), k)
    padded = jnp.pad(x, ((0, 0), (0, parts * part - width)), constant_values=jnp.finfo(x.dtype).min)
    values, places = _neuron(padded.reshape(rows * parts, part), k)
    places = places.reshape(rows, parts, k) + part * jnp.arange(parts, dtype=jnp.int32)[:, None]
    values, best = _neuron(values.reshape(rows, parts * k), k)
    return values, jnp.take_along_axis(places.reshape(rows, parts * k), best, axis=1, mode="promise_in_bounds")


def _neuron(x: Array, k: int) -> tuple[Array, Array]:
    values, places = native_call(x, platform="neuron", target="AwsNeuronTopK", config=str(k), reference=_references(k))
    return values, places


@functools.cache
def _references(k: int) -> functools.partial[tuple[Array, Array]]:
    """One function object per k."""
    return functools.partial(_reference, k=k)


def _reference(x: Array, k: int) -> tuple[Array, Array]:
    values, places = jax.lax.top_k(x, k)
    return values, places.astype(jnp.int32)

"""Tries to compile what neuronx-cc refuses, and what it takes, for the simulated device; prints what the compiler said of each."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from xlaserve.platforms.top_k import top_k

X = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
WIDE = np.random.default_rng(1).permutation(3 * 40000).reshape(3, 40000).astype(np.float32)
"""Rows that AwsNeuronTopK is not given at once."""
FUNCTIONS = {
    "sort": jnp.sort,
    "top_k": lambda x: jax.lax.top_k(x, 4),
    "argmax": jnp.argmax,
    "cond": lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "while": lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x * x + 1, x),
    "threefry": lambda x: x + jax.random.uniform(jax.random.key(0), x.shape),
    "complex": lambda x: jnp.abs(x + 1j),
    "AwsNeuronTopK": lambda x: top_k(x, 4, "neuron"),
    "AwsNeuronErf": lambda x: jax.ffi.ffi_call("AwsNeuronErf", jax.ShapeDtypeStruct(x.shape, x.dtype), custom_call_api_version=2)(x),
}


def main() -> None:
    said: dict[str, str | None] = {}
    for name, function in FUNCTIONS.items():
        try:
            jax.jit(function).lower(X).compile()
            said[name] = None
        except jax.errors.JaxRuntimeError as error:
            said[name] = str(error)
    print(json.dumps({"said": said, "top_k": {"narrow": is_right(X), "wide": is_right(WIDE)}}))


def is_right(x: np.ndarray) -> bool:
    """Whether the custom call, in as many stages as it takes, finds the largest numbers of every row and where they are."""
    values, places = jax.jit(FUNCTIONS["AwsNeuronTopK"])(x)
    order = np.argsort(-x, axis=1)[:, :4]
    return np.array_equal(places, order) and np.array_equal(values, np.take_along_axis(x, order, axis=1))


if __name__ == "__main__":
    main()

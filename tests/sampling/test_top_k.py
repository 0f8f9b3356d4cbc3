"""The k largest: AwsNeuronTopK in two stages gives what JAX's top-k gives, and is that custom call where graphs are for Neuron."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.platforms.top_k import NEURON_WIDEST, top_k


def lowered(rows: int, width: int, k: int) -> str:
    function = functools.partial(top_k, k=k, kind="neuron")
    traced = jax.jit(function).trace(jax.ShapeDtypeStruct((rows, width), jnp.float32))
    return traced.lower(lowering_platforms=("neuron",)).as_text()


@pytest.mark.parametrize("width", [20, 512, NEURON_WIDEST, NEURON_WIDEST + 1, 50_000])
def test_the_reference_of_both_kinds_is_the_same(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((3, width)).astype(np.float32)
    x[1] = np.round(x[1]) + 0.0  # many equals: the lower index comes first
    x[2, : width // 2] = -1e30
    found: list[Any] = [jax.jit(functools.partial(top_k, k=20, kind=kind))(x) for kind in ("sort", "neuron")]
    order = np.argsort(-x, axis=1, kind="stable")[:, :20]
    for values, places in found:
        assert np.array_equal(places, order)
        assert np.array_equal(values, np.take_along_axis(x, order, axis=1))
        assert places.dtype == np.int32


def test_one_custom_call_for_rows_that_are_short_enough() -> None:
    text = lowered(4, NEURON_WIDEST, 20)
    assert text.count("AwsNeuronTopK") == 1
    assert 'backend_config = "20"' in text
    assert "api_version = 2" in text
    assert "stablehlo.sort" not in text
    assert "chlo" not in text


def test_two_stages_for_longer_rows() -> None:
    text = lowered(4, 2 * NEURON_WIDEST + 1, 20)
    assert text.count("AwsNeuronTopK") == 2
    assert f"tensor<12x{(2 * NEURON_WIDEST + 3) // 3}xf32>" in text
    assert "tensor<4x60xf32>" in text
    assert "stablehlo.sort" not in text

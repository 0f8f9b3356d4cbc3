"""Parameters in packs: which are, that they do not overlap, and that weights come to lie where graphs look for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.kernels.packs import Packed, Packing, unpacked, where
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.config import ModelConfig
from xlaserve.models.decoder import parameter_shapes
from xlaserve.models.dummy_weights import DummyWeights
from xlaserve.models.layers import checkpoint_rows
from xlaserve.models.registry import model_config
from xlaserve.models.weights import load_weights, placeholder_weights

Tiny = Callable[[str], Path]
FAMILIES = ["llama3", "qwen3", "gemma3", "qwen3_moe"]


def packing_of(model: ModelConfig, dtype: str = "float32", quantization: Any = None) -> Packing:
    """As graphs with kernels have it."""
    return Packing(parameter_shapes(replace(model, quantization=quantization, panels=True), jnp.dtype(dtype)), packs=True)


@pytest.mark.parametrize(("family", "quantization"), [*((family, None) for family in FAMILIES), ("llama3", "int8"), ("gemma3", "int8")])
def test_loaded_weights_are_found_in_packs(family: str, quantization: Any, tiny_model: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_model(family))
    model = model_config(checkpoint.config)
    packing, devices, rows = packing_of(model, "bfloat16", quantization), jax.devices("cpu")[:1], checkpoint_rows(model)
    alone = load_weights(checkpoint, packing.parameters, devices, rows=rows)
    packed = load_weights(checkpoint, packing.parameters, devices, rows=rows, packing=packing)
    assert [(a.shape, a.dtype) for a in packed] == [(a.shape, a.dtype) for a in packing.arrays.values()]
    found = packing.split(packed)
    for name, ours, wanted in zip(packing.parameters, found, alone, strict=True):
        assert (ours.shape, ours.dtype, ours.ndim) == (wanted.shape, wanted.dtype, wanted.ndim), name
        assert (np.asarray(unpacked(ours)) == np.asarray(wanted)).all(), name
    in_packs = {name for name, ours in zip(packing.parameters, found, strict=True) if isinstance(ours, Packed)}
    # What XLA reads is by itself: routers and experts, and norms that no product follows at once.
    sparse = {name.split(".")[2] for name in packing.parameters if ".experts." in name}
    apart = {
        "gemma3": r"\.post_\w+_layernorm\.",
        "qwen3_moe": rf"\.({'|'.join(sparse)})\.(mlp|post_attention_layernorm)\.",
    }
    wanted = {name for name in packing.parameters if ".layers." in name and not re.search(apart.get(family, "^$"), name)}
    assert in_packs == wanted
    assert bool(sparse) == (family == "qwen3_moe")
    assert len(packing.arrays) - len(packing.parameters) + len(in_packs) == len({where(p)[0].dtype for p in found if isinstance(p, Packed)})


@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_aligned_and_apart(family: str, tiny_model: Tiny) -> None:
    packing = packing_of(model_config(open_checkpoint(tiny_model(family)).config))
    arrays = [np.zeros(array.shape, array.dtype) for array in packing.arrays.values()]
    ends = dict.fromkeys(packing.arrays, 0)
    for name, parameter in zip(packing.parameters, packing.split(arrays), strict=True):  # type: ignore[arg-type]
        if isinstance(parameter, Packed):
            array = packing.array_of(name)
            assert parameter.at * parameter.dtype.itemsize % 64 == 0
            assert parameter.at >= ends[array]
            ends[array] = parameter.at + prod(parameter.shape)
            assert ends[array] <= len(parameter.pack)


def test_without_packs_parameters_are_what_there_is(tiny_model: Tiny) -> None:
    shapes = parameter_shapes(model_config(open_checkpoint(tiny_model("llama3")).config), jnp.dtype("float32"))
    assert dict(Packing(shapes, packs=False).arrays) == dict(shapes)


def test_dummy_weights_are_the_same_in_packs(tiny_model: Tiny) -> None:
    model = model_config(open_checkpoint(tiny_model("llama3")).config)
    packing, devices = packing_of(model, quantization="int8"), jax.devices("cpu")[:1]
    alone = DummyWeights(model, packing.parameters, devices).make()
    packed = DummyWeights(model, packing.parameters, devices, packing).make()
    for ours, wanted in zip(packing.split(packed), alone, strict=True):
        assert (np.asarray(unpacked(ours)) == np.asarray(wanted)).all()
    held = placeholder_weights(packing.arrays, devices)
    assert [(a.shape, a.dtype) for a in held] == [(a.shape, a.dtype) for a in packed]

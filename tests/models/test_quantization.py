"""Quantized products and weights: the arithmetic to the last bit, whoever computes it, and what of a checkpoint becomes what."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from tests.models.gguf_writer import llama_metadata, llama_tensors, write_gguf
from tests.tooling.engine_logits import LogitsEngine
from tests.tooling.golden import load_tiny
from tests.tooling.tiny_models import FAMILIES, tiny_tensors
from xlaserve.errors import CheckpointError
from xlaserve.models.checkpoint import Checkpoint, open_checkpoint
from xlaserve.models.decoder import parameter_shapes
from xlaserve.models.layers import FUSED, checkpoint_rows
from xlaserve.models.quantization import INPUT_STEPS, TINY, dequantize, project, quantize
from xlaserve.models.registry import model_config
from xlaserve.models.weights import load_weights
from xlaserve.platforms.mesh import AXIS

Tiny = Callable[[str], Path]


def reference(x: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What `project` says that it computes, operation by operation in NumPy."""
    wide = x.astype(np.float32)
    most = np.maximum(np.abs(wide).max(axis=-1, keepdims=True), np.float32(TINY))
    steps = np.rint(wide * (np.float32(INPUT_STEPS) / most)).astype(np.int64)
    high = (steps + 128) >> 8
    low = steps - 256 * high
    assert np.abs(high).max() <= 127
    assert low.min() >= -128
    assert low.max() <= 127
    upper, lower = ((half @ weight.astype(np.int64).T).astype(np.float32) for half in (high, low))
    sums = np.float32(256) * upper + lower
    return (sums * (most * np.float32(1 / INPUT_STEPS) * scale)).astype(x.dtype)


def drawn(rows: int, width: int, outputs: int, dtype: object, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of very different sizes, some of them all zero, and a quantized weight."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width)) * 10.0 ** rng.integers(-5, 2, (rows, 1))
    x[:, 0] *= 100
    x[3::7] = 0
    weight, scale = quantize(rng.normal(size=(outputs, width)))
    return x.astype(dtype), weight, scale  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 64, 32), (2, 7, 3), (8, 1536, 96), (40, 576, 33)])
def test_products_are_those_of_numpy_to_the_last_bit(rows: int, width: int, outputs: int, dtype: object) -> None:
    x, weight, scale = drawn(rows, width, outputs, dtype)
    found = jax.jit(project)(x, weight, scale)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(found), reference(x, weight, scale))


def test_a_row_gives_the_same_in_any_company() -> None:
    x, weight, scale = drawn(24, 160, 48, np.float32)
    compiled = jax.jit(project)
    whole = np.asarray(compiled(x.reshape(4, 6, 160), weight, scale)).reshape(24, 48)
    for count in (1, 2, 5):
        for first in range(0, 20, 5):
            some = slice(first, first + count)
            np.testing.assert_array_equal(np.asarray(compiled(x[some], weight, scale)), whole[some])


def test_extremes() -> None:
    """The largest halves, sums of many of them, and numbers next to nothing."""
    weight, scale = np.full((2, 4096), 127, np.int8), np.array([1, 1e-30], np.float32)
    weight[1] = -127
    x = np.full((5, 4096), 3e38, np.float32)
    x[1], x[2, 1:], x[3], x[4] = -3e38, 1e-38, 0, 1e-38
    found = np.asarray(jax.jit(project)(x, weight, scale))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, reference(x, weight, scale))
    assert (found[3:] == 0).all()


@given(arrays.arrays(np.float32, (3, 17), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
@settings(deadline=None)
def test_weights_are_rounded_to_the_nearest_step(values: np.ndarray) -> None:
    weight, scale = quantize(values)
    assert weight.dtype == np.int8
    assert scale.dtype == np.float32
    assert weight.min() >= -127
    back = weight * scale[:, None].astype(np.float64)
    assert (np.abs(back - values) <= 0.50001 * scale[:, None]).all()
    assert (np.abs(weight).max(axis=1) == 127)[np.abs(values).max(axis=1) > TINY].all()


@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16])
def test_weights_of_any_type_are_quantized_from_float32(stored: object) -> None:
    values = np.random.default_rng(1).normal(size=(5, 32)).astype(stored)  # type: ignore[arg-type]
    for found, wanted in zip(quantize(values), quantize(values.astype(np.float32)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def load(checkpoint: Checkpoint, dtype: str = "float32", shards: int = 1) -> dict[str, jax.Array]:
    config = model_config(checkpoint.config)
    shapes = parameter_shapes(replace(config.shard(shards), quantization="int8"), jnp.dtype(dtype))
    placed = load_weights(checkpoint, shapes, jax.devices("cpu")[:shards], rows=checkpoint_rows(config, shards))
    assert [(array.shape, array.dtype) for array in placed] == [(shape.shape, shape.dtype) for shape in shapes.values()]
    return dict(zip(shapes, placed, strict=True))


def check(found: Mapping[str, jax.Array], stored: Callable[[str], np.ndarray], dtype: str) -> set[str]:
    """Every parameter is made of the checkpoint's; gives back those that are quantized."""
    quantized = {name for name in found if f"{name}_scale" in found}
    for name, array in found.items():
        *path, module, leaf = name.removesuffix("_scale").split(".")
        parts = [stored(".".join((*path, part, leaf))) for part in FUSED.get(module, (module,))]
        if name in quantized:
            wanted = np.concatenate([quantize(part)[0] for part in parts])
        elif name.endswith("_scale"):
            wanted = np.concatenate([quantize(part)[1] for part in parts])
        else:
            wanted = np.concatenate(parts).astype(jnp.dtype(dtype))
        assert np.array_equal(np.asarray(array), wanted), name
    return {name.removeprefix("model.layers.0.") for name in quantized if "layers." not in name or "layers.0." in name}


LAYER = {f"{name}_proj.weight" for name in ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if "moe" not in family])  # experts are refused
def test_safetensors(family: str, dtype: str, tiny_model: Tiny) -> None:
    """float32 and bfloat16, in one file and in several, biases and all kinds of norms; the head is there where it is not tied."""
    checkpoint = open_checkpoint(tiny_model(family))
    head = {"lm_head.weight"} & set(checkpoint.tensors)
    assert check(load(checkpoint, dtype), checkpoint.read, dtype) == LAYER | head | {"model.embed_tokens.weight"}


def test_gguf(tmp_path: Path) -> None:
    """Through all that undoes what GGUF does to names and rows."""
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors()))
    check(load(checkpoint), checkpoint.read, "float32")


@pytest.mark.parametrize("family", ["llama3", "qwen2", "llama2"])
def test_devices_share_the_scales_of_whole_rows(family: str, tiny_model: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_model(family))
    whole, split = load(checkpoint), load(checkpoint, shards=2)
    for name in whole:
        module = name.split(".")[-2]
        parts = [np.asarray(part.data) for part in split[name].addressable_shards]
        if module in ("o_proj", "down_proj"):
            axis = 1 if name.endswith("weight") else None
        elif module in FUSED:
            continue  # rows of two devices alternate: tests/models/test_weights.py, and logits below
        else:
            axis = 0 if module in ("embed_tokens", "lm_head") else None
        for part in parts if axis is None else [np.concatenate(parts, axis)]:
            np.testing.assert_array_equal(part, np.asarray(whole[name]))


def test_what_is_not_finite_is_named(tiny_model: Tiny, tmp_path: Path) -> None:
    target = tmp_path / "changed"
    shutil.copytree(tiny_model("llama2"), target)
    tensors = {name: np.array(tensor) for name, tensor in tiny_tensors("llama2").items()}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = np.inf
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"tensor {name} holds numbers that are not finite.*leave out --quantization"):
        load(open_checkpoint(target))


@pytest.mark.parametrize("family", ["llama3", "gemma2"])
def test_logits_are_near_those_of_float32(family: str, tiny_model: Tiny) -> None:
    """Weights are random, which is the worst to quantize: the error's root mean square is below 5 % of the logits'."""
    engine = LogitsEngine(tiny_model(family), max_len=256, quantization="int8")
    case = max(load_tiny(family).cases, key=lambda case: len(case.prompt))
    logits = engine.logits(case.prompt, chunk=64)
    assert np.sqrt(np.mean((logits - case.logits) ** 2)) < 0.05 * case.logits.std()
    assert np.mean(logits.argmax(-1) == case.logits.argmax(-1)) > 0.85


@pytest.mark.parametrize("over", ["inputs", "outputs"])
def test_split_products_are_the_same(over: str) -> None:
    """To the last bit, whichever side is split: the row's largest number is that of all devices, and they add up integers."""
    x, weight, scale = drawn(9, 96, 64, np.float32)
    mesh = jax.make_mesh((4,), (AXIS,), devices=jax.devices("cpu")[:4], axis_types=(AxisType.Auto,))
    if over == "inputs":
        shards, specs, out = 4, (P(None, AXIS), P(None, AXIS), P()), P()
    else:
        shards, specs, out = 1, (P(), P(AXIS), P(AXIS)), P(None, AXIS)
    split = jax.shard_map(partial(project, shards=shards), mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    np.testing.assert_array_equal(np.asarray(jax.jit(split)(x, weight, scale)), reference(x, weight, scale))


@pytest.mark.parametrize(("family", "shards"), [("llama3", 2), ("qwen2", 4)])
def test_split_over_devices_logits_are_the_same(family: str, shards: int, tiny_model: Tiny) -> None:
    """But for what attention over fewer heads rounds otherwise."""
    prompt = max(load_tiny(family).cases, key=lambda case: len(case.prompt)).prompt[:32]
    whole, split = (
        LogitsEngine(tiny_model(family), max_len=32, shards=each, quantization="int8").logits(prompt, chunk=32, generated=0)
        for each in (1, shards)
    )
    assert np.abs(split - whole).max() < 2e-3


def test_rows_of_a_table_are_multiplied_by_their_scale() -> None:
    weight, scale = quantize(np.random.default_rng(2).normal(size=(6, 16)))
    tokens = np.array([[5, 0], [2, 2]])
    found = jax.jit(dequantize, static_argnums=2)(weight[tokens], scale[tokens], jnp.dtype("bfloat16"))
    np.testing.assert_array_equal(np.asarray(found), (weight[tokens] * scale[tokens][..., None]).astype(jnp.bfloat16))

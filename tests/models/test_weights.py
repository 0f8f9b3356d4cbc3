"""Weights: every tensor in its place, anything wrong named, and no second copy in memory."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.tooling.tiny_models import FAMILIES, tiny_tensors
from xlaserve.errors import CheckpointError
from xlaserve.models import weights as weights_module
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.decoder import parameter_shapes, parameter_tree
from xlaserve.models.host_memory import HostMemory
from xlaserve.models.layers import checkpoint_rows
from xlaserve.models.registry import model_config
from xlaserve.models.weights import load_weights, sources

Tiny = Callable[[str], Path]
Q, K, V = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv")
GATE, UP = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))


def load(path: Path, dtype: str = "float32") -> dict[str, jax.Array]:
    checkpoint = open_checkpoint(path)
    config = model_config(checkpoint.config)
    shapes = parameter_shapes(config, np.dtype(dtype) if dtype == "float32" else jax.numpy.dtype(dtype))
    placed = load_weights(checkpoint, shapes, jax.devices("cpu")[:1], rows=checkpoint_rows(config))
    return dict(zip(shapes, placed, strict=True))


def rewrite(tiny_model: Tiny, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], family: str = "llama2") -> Path:
    """A copy of a tiny checkpoint with other tensors."""
    target = tmp_path / "changed"
    shutil.copytree(tiny_model(family), target)
    tensors = dict(tiny_tensors(family))
    change(tensors)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_placed_whole(family: str, tiny_model: Tiny) -> None:
    tensors = {name: tensor.astype(np.float32) for name, tensor in tiny_tensors(family).items()}
    for name, array in load(tiny_model(family)).items():
        parts = [tensors.pop(source) for source in sources(name, array.shape[0] if array.ndim == 3 else 0)]
        assert np.array_equal(np.asarray(array), np.concatenate(parts).reshape(array.shape)), name
    assert not tensors, "every tensor must be used"


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("family", ["llama3", "qwen2", "llama_bf16_sharded"])
def test_every_device_has_its_own_part(family: str, shards: int, tiny_model: Tiny) -> None:
    """Each device's slice of a fused parameter is its own queries, keys and values; with more devices than key heads, neighbours have the
    same ones.
    """
    tensors = {name: tensor.astype(np.float32) for name, tensor in tiny_tensors(family).items()}
    checkpoint = open_checkpoint(tiny_model(family))
    config = model_config(checkpoint.config)
    shapes = parameter_shapes(config.shard(shards), np.dtype("float32"))
    devices = jax.devices("cpu")[:shards]
    placed = load_weights(checkpoint, shapes, devices, rows=checkpoint_rows(config, shards))
    heads, copies = config.num_heads // shards, max(1, shards // config.num_kv_heads)
    kv_heads = max(1, config.num_kv_heads // shards)
    for (name, shape), array in zip(shapes.items(), placed, strict=True):
        assert array.shape == shape.shape
        *path, module, leaf = name.split(".")
        for shard in range(shards):
            [found] = [np.asarray(part.data) for part in array.addressable_shards if part.device == devices[shard]]

            def rows(part: str, count: int, first: int, at: tuple[str, ...] = tuple(path), leaf: str = leaf) -> np.ndarray:
                return tensors[".".join((*at, part, leaf))][first * count : (first + 1) * count]

            if leaf == "first_row":
                assert found.tolist() == [shard * -(-config.vocab_size // shards)]
            elif module == "qkv_proj":
                q, kv = heads * config.head_dim, kv_heads * config.head_dim
                parts = [rows("q_proj", q, shard), rows("k_proj", kv, shard // copies), rows("v_proj", kv, shard // copies)]
                assert np.array_equal(found, np.concatenate(parts)), (name, shard)
            elif module == "gate_up_proj":
                width = config.intermediate_size // shards
                assert np.array_equal(found, np.concatenate([rows(part, width, shard) for part in ("gate_proj", "up_proj")])), (name, shard)
            elif module in ("o_proj", "down_proj"):
                whole = tensors[name]
                width = whole.shape[1] // shards
                assert np.array_equal(found, whole[:, shard * width : (shard + 1) * width]), (name, shard)
            elif module in ("embed_tokens", "lm_head"):
                assert np.array_equal(found, rows(module, config.vocab_size // shards, shard)), (name, shard)
            else:
                assert np.array_equal(found, tensors[name]), (name, shard)


def test_the_flat_order_makes_the_tree_that_flax_takes(tiny_model: Tiny) -> None:
    arrays = load(tiny_model("llama2"))
    tree = parameter_tree(tuple(arrays), tuple(arrays.values()))
    assert tree["model"]["layers.1"]["self_attn"]["qkv_proj"]["weight"] is arrays["model.layers.1.self_attn.qkv_proj.weight"]
    assert set(tree) == {"model", "lm_head"}


def test_other_dtypes_are_rounded_once(tiny_model: Tiny) -> None:
    wanted = tiny_tensors("llama2")["model.norm.weight"].astype(jax.numpy.bfloat16)
    found = load(tiny_model("llama2"), "bfloat16")["model.norm.weight"]
    assert found.dtype == jax.numpy.bfloat16
    assert np.array_equal(np.asarray(found), wanted)


@pytest.mark.parametrize("missing", [[Q], [GATE, UP], ["model.norm.weight"], ["lm_head.weight"], ["model.embed_tokens.weight"]])
def test_missing_tensors_are_named(missing: list[str], tiny_model: Tiny, tmp_path: Path) -> None:
    path = rewrite(tiny_model, tmp_path, lambda tensors: [tensors.pop(name) for name in missing] and None)
    with pytest.raises(CheckpointError, match=f"{len(missing)} tensors are missing") as caught:
        load(path)
    assert all(name in str(caught.value) for name in [*missing, str(path)])


def test_unused_tensors_are_named(tiny_model: Tiny, tmp_path: Path) -> None:
    names = ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight"]
    path = rewrite(tiny_model, tmp_path, lambda tensors: tensors.update(dict.fromkeys(names, np.zeros(64, np.float32))))
    with pytest.raises(CheckpointError, match="2 tensors are not used") as caught:
        load(path)
    assert all(name in str(caught.value) for name in names)


def test_many_names_are_cut(tiny_model: Tiny, tmp_path: Path) -> None:
    path = rewrite(tiny_model, tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.0" in name] and None)
    with pytest.raises(CheckpointError, match=r"9 tensors are missing: .*, \.\.\.") as caught:
        load(path)
    assert str(caught.value).count("layers.0") == 5


def test_tensors_that_can_be_computed_are_left_alone(tiny_model: Tiny, tmp_path: Path) -> None:
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    path = rewrite(tiny_model, tmp_path, lambda tensors: tensors.update({extra: np.zeros(8, np.float32)}))
    assert len(load(path)) > 0


def test_a_tied_model_may_carry_its_head(tiny_model: Tiny, tmp_path: Path) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    assert "lm_head.weight" not in load(rewrite(tiny_model, tmp_path, add, "llama3"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (Q, (63, 64)),
        (Q, (64, 63)),
        (K, (64, 64)),
        (V, (16, 64)),
        (Q, (64,)),
        (Q, (64, 64, 1)),
        (Q, (1,)),
        ("model.norm.weight", (32,)),
        ("model.norm.weight", (64, 1)),
        ("model.norm.weight", (1,)),
        ("model.embed_tokens.weight", (511, 64)),
        ("model.embed_tokens.weight", (64, 512)),
        (UP, (161, 64)),
        (GATE, (0, 64)),
        ("lm_head.weight", (513, 64)),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...], tiny_model: Tiny, tmp_path: Path) -> None:
    path = rewrite(tiny_model, tmp_path, lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
    with pytest.raises(CheckpointError, match="shape") as caught:
        load(path)
    assert name in str(caught.value)
    assert str(list(shape)) in str(caught.value)


def test_wrong_shapes_whose_sum_is_right_are_named(tiny_model: Tiny, tmp_path: Path) -> None:
    """Query, key and value are one parameter of ours: each must fit, not only all together."""
    path = rewrite(tiny_model, tmp_path, lambda t: t.update({Q: np.zeros((48, 64), np.float32), K: np.zeros((48, 64), np.float32)}))
    with pytest.raises(CheckpointError, match=r"q_proj.weight has shape \[48, 64\]"):
        load(path)


def test_on_the_cpu_arrays_are_the_buffers_that_were_read_into(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy: what was placed lies where the host put it."""
    buffers: list[np.ndarray] = []
    empty = HostMemory.empty

    def record(self: HostMemory, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        buffers.append(empty(self, shape, dtype))
        return buffers[-1]

    monkeypatch.setattr(HostMemory, "empty", record)
    arrays = load(tiny_model("llama2"))
    assert [array.unsafe_buffer_pointer() for array in arrays.values()] == [buffer.ctypes.data for buffer in buffers]


def test_host_memory_while_loading_is_one_copy_of_the_model(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "HostMemory", lambda huge: HostMemory(huge=False))  # memory that can be traced
    load(tiny_model("llama2"))
    size = sum(tensor.nbytes for tensor in tiny_tensors("llama2").values())
    tracemalloc.start()
    try:
        arrays = load(tiny_model("llama2"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(arrays) > 0
    assert size < peak < 1.5 * size

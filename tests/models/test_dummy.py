"""Models without weights: named architectures are the published ones, random weights are the same everywhere, any id has text."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.gguf_writer import llama_metadata, llama_tensors, write_gguf
from tests.models.test_source import hub
from tests.tooling.tiny_models import FAMILIES, tiny_config
from xlaserve.errors import CheckpointError
from xlaserve.models.architectures import NAMED
from xlaserve.models.checkpoint import open_checkpoint, open_config
from xlaserve.models.config import Quantization
from xlaserve.models.decoder import parameter_shapes
from xlaserve.models.dummy_weights import DummyWeights
from xlaserve.models.layers import FIRST_ROW, FUSED, SCALE, checkpoint_rows
from xlaserve.models.registry import model_config
from xlaserve.models.source import HUB_PATTERNS
from xlaserve.models.stand_in_tokenizer import stand_in_tokenizer

Tiny = Callable[[str], Path]

PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
}
"""What the hub says that each checkpoint has."""


@pytest.mark.parametrize("name", NAMED)
def test_architectures_are_the_published_ones(name: str) -> None:
    called, raw = open_config(name)
    assert called == name
    shapes = parameter_shapes(model_config(raw), jnp.dtype("bfloat16"))
    assert sum(prod(shape.shape) for shape in shapes.values()) == PARAMETERS[name]


def test_an_architecture_has_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"Add --load-format dummy .* or name a checkpoint, such as Qwen/Qwen3-8B on the hub"):
        open_checkpoint("qwen3-8b")
    dummy = open_checkpoint("qwen3-8b", "dummy")
    assert (dummy.name, dict(dummy.tensors), dummy.eos_token_ids) == ("qwen3-8b", {}, ())
    with pytest.raises(KeyError):
        dummy.read("model.norm.weight")
    # What lies on the disk goes before names.
    (tmp_path / "qwen3-8b").mkdir()
    (tmp_path / "qwen3-8b" / "config.json").write_text(json.dumps(tiny_config("llama3")))
    assert open_checkpoint("qwen3-8b", "dummy").config["vocab_size"] == 512
    with pytest.raises(CheckpointError, match=r"holds no weights.*; --load-format dummy"):
        open_checkpoint("qwen3-8b")
    with pytest.raises(CheckpointError, match="There is no model"):
        open_checkpoint("qwen3-9b", "dummy")


def test_what_is_at_hand_is_used(tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_checkpoint(tiny_model("llama3"))
    dummy = open_checkpoint(tiny_model("llama3"), "dummy")
    assert dummy.tokenizer().to_json() == own.tokenizer().to_json()
    assert (dummy.config, dummy.eos_token_ids) == (own.config, own.eos_token_ids)
    gguf = write_gguf(tmp_path / "small.gguf", llama_metadata(), llama_tensors())
    dummy = open_checkpoint(gguf, "dummy")
    assert (dummy.config, dict(dummy.tensors)) == (open_checkpoint(gguf).config, {})
    dummy.close()
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama3")))
    calls = hub(monkeypatch, tmp_path)
    dummy = open_checkpoint("org/Model", "dummy")
    assert (dummy.name, dummy.path, dummy.config["vocab_size"]) == ("org/Model", tmp_path, 512)
    [call] = calls
    assert set(HUB_PATTERNS) - set(call["allow_patterns"]) == {"*.safetensors"}
    assert dummy.tokenizer().vocab_size == 512
    # Both processes read the tokenizer: what one calls the model, the other must find.
    assert open_checkpoint(str(dummy.path), "dummy").tokenizer().to_json() == dummy.tokenizer().to_json()


def test_any_text_has_ids_and_any_id_has_text() -> None:
    tokenizer = stand_in_tokenizer(151_936)
    assert tokenizer.vocab_size == 151_936
    text = "Grüße, 世界 300\n\0"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    drawn = random.Random(1).choices(range(256, 151_936), k=200)
    assert tokenizer.encode(tokenizer.decode(drawn)) == drawn
    stream = tokenizer.stream()
    assert all(stream.step(token) for token in drawn)
    assert tokenizer.render_chat([{"role": "user", "content": "Hi"}]) == "user: Hi\nassistant: "
    with pytest.raises(CheckpointError, match="vocab_size is 128"):
        stand_in_tokenizer(128)


def made(config: dict[str, Any], shards: int = 1, dtype: str = "float32", quantization: Quantization | None = None) -> dict[str, jax.Array]:
    model = model_config(config)
    shapes = parameter_shapes(replace(model.shard(shards), quantization=quantization), jnp.dtype(dtype))
    weights = DummyWeights(model, shapes, jax.devices("cpu")[:shards]).make()
    for shape, array in zip(shapes.values(), weights, strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
    return dict(zip(shapes, weights, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_scaled_and_differ(family: str) -> None:
    """No two rows of the model are alike, in a layer or between layers."""
    config = tiny_config(family)
    rows: list[bytes] = []
    for name, array in made(config).items():
        values = np.asarray(array)
        assert np.isfinite(values).all()
        if "norm" in name:
            assert abs(values.mean() - (0.0 if family.startswith("gemma") else 1.0)) < 0.1
            assert 0.05 < values.std() < 0.15
        elif values.ndim > 1:
            assert abs(values.std() * values.shape[-1] ** 0.5 - 1) < 0.05, name
            assert abs(values.mean()) < values.std() / 10
            rows += [row.tobytes() for row in values.reshape(-1, values.shape[-1])]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(("family", "shards"), [("llama3", 2), ("llama3", 4), ("qwen2", 4), ("gemma3", 2)])
def test_devices_have_parts_of_the_same_model(family: str, shards: int) -> None:
    """Also where a key head is on two devices, and where the vocabulary does not divide evenly."""
    config = tiny_config(family) | {"vocab_size": 509}
    whole, split = made(config), made(config, shards)
    rows = checkpoint_rows(model_config(config), shards)
    for name, array in split.items():
        for shard, part in enumerate(array.addressable_shards):
            found = np.asarray(part.data)
            module, leaf = name.split(".")[-2:]
            if leaf == FIRST_ROW:
                assert found.tolist() == [shard * 128 if shards == 4 else shard * 255]
                continue
            expected, at = np.asarray(whole[name]), 0
            pieces: list[np.ndarray] = []
            for tensor in FUSED.get(module, (module,)):
                here = rows.get(tensor)
                total = expected.shape[0] if here is None else here.total
                mine = expected[at : at + total] if here is None else expected[at : at + total][here.of(shard)]
                pieces.append(np.pad(mine, ((0, 0 if here is None else here.held - len(mine)),) + ((0, 0),) * (mine.ndim - 1)))
                at += total
            expected = np.concatenate(pieces)
            if expected.shape != found.shape:
                width = found.shape[1]
                expected = expected[:, shard * width : (shard + 1) * width]
            assert np.array_equal(found, expected), (name, shard)


@pytest.mark.parametrize("shards", [1, 2])
def test_steps_of_8_bits_are_scaled_as_numbers_are(shards: int) -> None:
    """Rows are as wide as in any other type; rows that no token has are 0, and so are their scales."""
    config = tiny_config("qwen2") | {"vocab_size": 509}
    weights = made(config, shards, quantization="int8")
    whole = made(config, quantization="int8")
    scaled = [name for name in weights if name.endswith(SCALE)]
    assert {name.removesuffix("_scale") for name in scaled} == {name for name, array in weights.items() if array.dtype == jnp.int8}
    for name in scaled:
        scale, steps = np.asarray(weights[name]), np.asarray(weights[name.removesuffix("_scale")])
        if "embed_tokens" in name or "lm_head" in name:
            assert not scale[509:].any()
            assert not steps[509:].any()
            scale, steps = scale[:509], steps[:509]
        assert np.array_equal(scale, np.asarray(whole[name])[: len(scale)])
        assert (steps.min(), steps.max()) == (-127, 127)
        assert abs((steps * scale[:, None]).std() * steps.shape[1] ** 0.5 - 1) < 0.05, name


def test_a_model_is_the_same_in_any_type_and_time() -> None:
    config = tiny_config("qwen3")
    once, again, short = made(config), made(config), made(config, dtype="bfloat16")
    for name, array in once.items():
        assert np.array_equal(np.asarray(array), np.asarray(again[name]))
        assert np.array_equal(np.asarray(array.astype(jnp.bfloat16)), np.asarray(short[name]))


def test_nothing_is_made_on_the_host() -> None:
    model = model_config(tiny_config("llama2") | {"vocab_size": 200_000})
    shapes = parameter_shapes(model, jnp.dtype("float32"))
    weights = DummyWeights(model, shapes, jax.devices("cpu")[:1])
    weights.make()
    tracemalloc.start()
    size = sum(array.nbytes for array in weights.make())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 100e6
    assert peak < 1e6

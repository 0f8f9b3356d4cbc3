"""From `config.json` to `ModelConfig`: each family's rules and defaults, both ways of writing them, and errors that name the key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.tooling.tiny_models import FAMILIES, tiny_config
from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.config import Llama3Scaling, Rope
from xlaserve.models.registry import ARCHITECTURES, model_config

LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64}


def read(family: str, **changes: Any) -> Any:
    """The tiny config of a family with keys changed; `...` removes a key."""
    raw = {**tiny_config(family), **changes}
    return model_config({key: value for key, value in raw.items() if value is not ...})


def windows(config: Any) -> list[int | None]:
    return [layer.window for layer in config.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_config(family: str) -> None:
    raw, config = tiny_config(family), read(family)
    assert config.vocab_size == raw["vocab_size"]
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (64, 160, raw["num_hidden_layers"])
    assert (config.num_heads, config.num_kv_heads) == (4, raw.get("num_key_value_heads", 4))
    assert config.head_dim == raw.get("head_dim", 16)
    assert config.norm_eps == raw["rms_norm_eps"]
    assert config.max_position == 512
    assert config.tie_embeddings == raw["tie_word_embeddings"]
    assert config.kv_bytes_per_token(2) == 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2


def test_what_tells_families_apart() -> None:
    llama, mistral, qwen2, qwen3, gemma2, gemma3 = (read(f) for f in ("llama2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"))
    assert [c.family for c in (llama, mistral, qwen2, qwen3, gemma2, gemma3)] == ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]
    assert [c.qkv_bias for c in (llama, mistral, qwen2, qwen3, gemma2, gemma3)] == [False, False, True, False, False, False]
    assert [c.output_bias for c in (llama, qwen2)] == [False, False]
    assert [c.qk_norm for c in (llama, qwen2, qwen3, gemma2, gemma3)] == [False, False, True, False, True]
    for plain in (llama, mistral, qwen2, qwen3):
        assert (plain.unit_offset_norm, plain.sandwich_norm, plain.embedding_scale, plain.activation) == (False, False, 1.0, "silu")
        assert plain.query_scale == plain.head_dim**-0.5
        assert (plain.attention_softcap, plain.logit_softcap) == (None, None)
    for gemma in (gemma2, gemma3):
        assert (gemma.unit_offset_norm, gemma.sandwich_norm, gemma.embedding_scale, gemma.activation) == (True, True, 8.0, "gelu_tanh")
        assert gemma.query_scale == 24**-0.5
    assert (gemma2.attention_softcap, gemma2.logit_softcap) == (4.0, 8.0)
    assert (gemma3.attention_softcap, gemma3.logit_softcap) == (None, None)


@pytest.mark.parametrize(
    ("family", "key", "field", "default"),
    [
        ("llama2", "num_key_value_heads", "num_kv_heads", 4),
        ("llama2", "rms_norm_eps", "norm_eps", 1e-6),
        ("llama2", "max_position_embeddings", "max_position", 2048),
        ("llama2", "tie_word_embeddings", "tie_embeddings", False),
        ("llama2", "hidden_act", "activation", "silu"),
        ("llama2", "head_dim", "head_dim", 16),
        ("qwen3", "head_dim", "head_dim", 128),
        ("gemma2", "head_dim", "head_dim", 256),
        ("gemma2", "tie_word_embeddings", "tie_embeddings", True),
        ("gemma2", "attn_logit_softcapping", "attention_softcap", 50.0),
        ("gemma2", "final_logit_softcapping", "logit_softcap", 30.0),
        ("gemma2", "query_pre_attn_scalar", "query_scale", 1 / 16),
        ("gemma3", "max_position_embeddings", "max_position", 131_072),
        ("gemma3", "final_logit_softcapping", "logit_softcap", None),
    ],
)
def test_defaults_of_missing_keys_are_those_of_transformers(family: str, key: str, field: str, default: object) -> None:
    assert getattr(read(family, **{key: ...}), field) == default


def test_null_soft_caps_are_none() -> None:
    config = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (config.attention_softcap, config.logit_softcap) == (None, None)


def test_attention_bias_of_llama_is_on_all_four_projections() -> None:
    config = read("llama2", attention_bias=True, mlp_bias=True)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    ("family", "changes", "wanted"),
    [
        ("llama2", {}, [None, None]),
        ("mistral", {}, [16, 16]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("mistral", {"sliding_window": ...}, [4096, 4096]),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, [None, 16]),
        ("qwen2", {}, [None, None]),
        ("qwen2", {"use_sliding_window": True}, [None, 16]),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, [16, 16]),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": ...}, [None, None]),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}, [16, None]),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, [None, None]),
        ("gemma2", {}, [16, None, 16, None]),
        ("gemma2", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, [None, None, None, 16]),
        ("gemma3", {}, [16, 16, None, 16, 16, None]),
        ("gemma3", {"sliding_window_pattern": ...}, [16, 16, 16, 16, 16, None]),
        ("gemma3", {"sliding_window_pattern": ..., "_sliding_window_pattern": 2}, [16, None] * 3),
        ("gemma3", {"layer_types": ["full_attention"] + ["sliding_attention"] * 5}, [None] + [16] * 5),
    ],
)
def test_windows(family: str, changes: dict[str, Any], wanted: list[int | None]) -> None:
    assert windows(read(family, **changes)) == wanted


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope(12000.0)),
        ({"rope_theta": ...}, Rope(10000.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, Rope(12000.0, linear_factor=4.0)),
        ({"rope_scaling": {"rope_type": "default"}}, Rope(12000.0)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rope(12000.0, llama3=Llama3Scaling(8.0, 1.0, 4.0, 64))),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}, Rope(5e5, linear_factor=2.0)),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, Rope(5e5, llama3=Llama3Scaling(8.0, 1.0, 4.0, 64))),
    ],
)
def test_rotary_parameters_old_and_new(changes: dict[str, Any], rope: Rope) -> None:
    assert {layer.rope for layer in read("llama2", **changes).layers} == {rope}


def test_gemma3_rotates_sliding_layers_by_their_own_frequency() -> None:
    old = read("gemma3", rope_scaling={"rope_type": "linear", "factor": 8.0})
    by_type = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    }
    new = read("gemma3", rope_theta=..., rope_local_base_freq=..., rope_scaling=..., rope_parameters=by_type)
    for config in (old, new):
        assert [layer.rope for layer in config.layers[1:3]] == [Rope(20000.0), Rope(500000.0, linear_factor=8.0)]
    assert old == new
    bare = read("gemma3", rope_theta=..., rope_local_base_freq=...)
    assert [layer.rope for layer in bare.layers[1:3]] == [Rope(1e4), Rope(1e6)]


@pytest.mark.parametrize("required", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"])
@pytest.mark.parametrize("family", ["llama2", "gemma3"])
def test_a_missing_size_is_named(family: str, required: str) -> None:
    for value in (..., None):
        with pytest.raises(CheckpointError, match=f"{required} is missing"):
            read(family, **{required: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, got '64'"),
        ({"hidden_size": 0}, "hidden_size .* got 0"),
        ({"vocab_size": True}, "vocab_size .* got True"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers .* got 2.0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number, got '1e-6'"),
        ({"rope_theta": [1]}, "rope_theta must be a number"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear.*factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3.*low_freq_factor"),
        ({"rope_parameters": "linear"}, "rope_parameters|rope_scaling"),
        ({"num_key_value_heads": 3}, "num_attention_heads .4. is not a multiple of num_key_value_heads .3."),
    ],
)
def test_values_that_make_no_sense_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read("llama2", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "activation 'relu' is not supported; supported are .*silu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not supported.*GGUF"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None}, "none .model_type 'llama'."),
        ({"architectures": []}, "none"),
    ],
)
def test_what_is_not_supported_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read("llama2", **changes)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        model_config({"architectures": ["OtherForCausalLM"]})
    assert all(name in str(caught.value) for name in ARCHITECTURES)
    assert len(ARCHITECTURES) == 7


@pytest.mark.parametrize(
    ("types", "error", "message"),
    [
        (["full_attention"], CheckpointError, "layer_types names 1 layers, num_hidden_layers is 2"),
        (["full_attention", "chunked_attention"], UnsupportedModelError, "layer type 'chunked_attention'"),
    ],
)
def test_layer_types_that_do_not_fit(types: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read("mistral", layer_types=types)


def test_embedding_scale_is_the_root_of_the_width() -> None:
    assert read("gemma2", hidden_size=100).embedding_scale == math.sqrt(100)

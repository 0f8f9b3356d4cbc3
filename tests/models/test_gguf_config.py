from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.gguf_writer import llama_metadata, llama_tensors, write_gguf
from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.gguf import GgufFile
from xlaserve.models.gguf_config import config_from_gguf, generation_config_from_gguf, llama3_rope_factors, llama3_rope_scaling


def config(tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any] | None = None) -> dict[str, Any]:
    return config_from_gguf(GgufFile(write_gguf(tmp_path / "m.gguf", metadata, tensors or llama_tensors())))


def model(architecture: str, **changes: Any) -> dict[str, Any]:
    """The tiny model's metadata under another architecture's keys."""
    renamed = {
        key.replace("llama.", f"{architecture}.", 1) if key.startswith("llama.") else key: item for key, item in llama_metadata().items()
    }
    renamed |= {"general.architecture": architecture}
    renamed |= {f"{architecture}.{key}": item for key, item in changes.items()}
    return {key: item for key, item in renamed.items() if item is not None}


def test_llama(tmp_path: Path) -> None:
    assert config(tmp_path, llama_metadata()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 262,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": 260,
        "eos_token_id": 261,
    }


def test_untied_embeddings_and_biases(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"output.weight": np.ones((262, 8), np.float32), "blk.0.attn_q.bias": np.ones(8, np.float32)}
    found = config(tmp_path, llama_metadata(), tensors)
    assert found["tie_word_embeddings"] is False
    assert found["attention_bias"] is True


@pytest.mark.parametrize(("architecture", "name"), [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")])
def test_qwen(tmp_path: Path, architecture: str, name: str) -> None:
    found = config(
        tmp_path, model(architecture, **{"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": None})
    )
    assert found["architectures"] == [name]
    assert found["model_type"] == architecture
    assert found["head_dim"] == 16
    assert found["hidden_act"] == "silu"


def test_gemma3(tmp_path: Path) -> None:
    changes = {
        "block_count": 7,
        "attention.sliding_window": 512,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    found = config(tmp_path, model("gemma3", **changes))
    assert found["architectures"] == ["Gemma3ForCausalLM"]
    assert found["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert found["sliding_window"] == 512
    assert found["query_pre_attn_scalar"] == found["head_dim"] == 4
    assert found["rope_theta"] == 1e6
    assert found["rope_local_base_freq"] == 10000.0
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert found["attn_logit_softcapping"] is None
    assert found["final_logit_softcapping"] is None
    assert found["hidden_activation"] == "gelu_pytorch_tanh"


def test_gemma3_pattern_from_the_file(tmp_path: Path) -> None:
    pattern = np.array([False, True, True])
    found = config(
        tmp_path, model("gemma3", **{"block_count": 3, "attention.sliding_window": 8, "attention.sliding_window_pattern": pattern})
    )
    assert found["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    found = config(tmp_path, model("gemma3", **{"block_count": 3, "attention.sliding_window": 8, "attention.sliding_window_pattern": 2}))
    assert found["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]


def test_gemma2(tmp_path: Path) -> None:
    changes = {"block_count": 3, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0, "attention.sliding_window": 16}
    found = config(tmp_path, model("gemma2", **changes))
    assert found["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert (found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (40.0, 20.0)
    defaults = config(tmp_path, model("gemma2"))
    assert (defaults["attn_logit_softcapping"], defaults["final_logit_softcapping"], defaults["sliding_window"]) == (50.0, 30.0, 4096)


@pytest.mark.parametrize(("architecture", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_only_the_27b_sizes_scale_queries_by_the_hidden_size(tmp_path: Path, architecture: str, layers: int) -> None:
    changes = {
        "block_count": layers,
        "attention.sliding_window": 8,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": None,
    }
    assert config(tmp_path, model(architecture, **changes))["query_pre_attn_scalar"] == 8 // 2
    assert config(tmp_path, model(architecture, **changes | {"block_count": layers - 1}))["query_pre_attn_scalar"] == 16


def test_yarn(tmp_path: Path) -> None:
    changes = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 32}
    found = config(tmp_path, llama_metadata(**changes, **{"llama.rope.scaling.yarn_beta_fast": 16.0}))
    assert found["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0}


@pytest.mark.parametrize(("factor", "low", "high"), [(8.0, 1.0, 4.0), (32.0, 1.0, 4.0), (16.0, 2.0, 6.5)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_parameters_are_recovered_from_the_factors(factor: float, low: float, high: float, head_dim: int) -> None:
    factors = llama3_rope_factors(factor, low, high, 8192, 500000.0, head_dim).astype(np.float32).astype(np.float64)
    scaling = llama3_rope_scaling(factors, 500000.0, head_dim)
    assert scaling is not None
    assert scaling["rope_type"] == "llama3"
    assert scaling["factor"] == factor
    assert scaling["original_max_position_embeddings"] == 8192
    assert scaling["low_freq_factor"] == pytest.approx(low, abs=2e-3)
    assert scaling["high_freq_factor"] == pytest.approx(high, abs=2e-3)


def test_llama3_factors_are_those_of_the_converter() -> None:
    """The loop of llama.cpp's converter (LlamaModel.generate_extra_tensors), written out for Llama 3.2 1B."""
    factor, low, high, context, theta, head_dim = 32.0, 1.0, 4.0, 8192, 500000.0, 64
    expected: list[float] = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (index / head_dim)
        if wavelength < context / high:
            expected.append(1.0)
        elif wavelength > context / low:
            expected.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            expected.append(1 / ((1 - smooth) / factor + smooth))
    np.testing.assert_allclose(llama3_rope_factors(factor, low, high, context, theta, head_dim), expected, rtol=1e-12)


def test_llama3_in_a_file(tmp_path: Path) -> None:
    factors = llama3_rope_factors(8.0, 1.0, 4.0, 8192, 1e9, 4).astype(np.float32)
    found = config(tmp_path, llama_metadata(**{"llama.rope.freq_base": 1e9}), llama_tensors() | {"rope_freqs.weight": factors})
    assert found["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = config(tmp_path, llama_metadata(), llama_tensors() | {"rope_freqs.weight": np.ones(2, np.float32)})
    assert found["rope_scaling"] is None
    with pytest.raises(UnsupportedModelError, match="rope frequency factors"):
        config(tmp_path, llama_metadata(), llama_tensors() | {"rope_freqs.weight": np.array([3.0, 5.0], np.float32)})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"general.architecture": "mamba"},
            UnsupportedModelError,
            "'mamba' is not supported; supported are llama, qwen2, qwen3, gemma2, gemma3",
        ),
        ({"general.architecture": None}, UnsupportedModelError, "None is not supported"),
        ({"llama.expert_count": 8}, UnsupportedModelError, "mixture of 8 experts"),
        ({"llama.rope.dimension_count": 2}, UnsupportedModelError, "rotates only 2 of 4"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, UnsupportedModelError, "'longrope' is not supported"),
        ({"llama.attention.value_length": 2}, UnsupportedModelError, "differ in length"),
        ({"llama.block_count": None}, CheckpointError, "lacks the metadata key llama.block_count"),
        ({"llama.block_count": "many"}, CheckpointError, "llama.block_count must be an integer"),
        ({"llama.rope.freq_base": float("nan")}, CheckpointError, "rope.freq_base must be a finite number"),
        ({"llama.attention.head_count_kv": np.array([1, 2], np.int32)}, UnsupportedModelError, "head_count_kv differs between layers"),
        ({"llama.attention.head_count": 0}, CheckpointError, "must be positive"),
    ],
)
def test_what_cannot_be_mapped_is_said(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        config(tmp_path, llama_metadata(**changes))


def test_end_of_turn_tokens_are_ends() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["<s>", "</s>", "<|im_end|>", "<end_of_turn>", "x"],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}<end_of_turn>",
    }
    assert generation_config_from_gguf(metadata) == {"bos_token_id": 0, "eos_token_id": [1, 3]}
    assert generation_config_from_gguf(metadata | {"tokenizer.ggml.eot_token_id": 4})["eos_token_id"] == [1, 4, 3]
    assert generation_config_from_gguf(metadata | {"tokenizer.chat_template": ""})["eos_token_id"] == [1]
    assert generation_config_from_gguf({}) == {}

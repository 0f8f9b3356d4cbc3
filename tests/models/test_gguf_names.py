from __future__ import annotations

import numpy as np
import pytest

from xlaserve.errors import UnsupportedModelError
from xlaserve.models.gguf_names import Source, sources, unpermute_rope


def llama_cpp_permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 8), (9, 64)])
def test_unpermute_undoes_the_converter(heads: int, head_dim: int) -> None:
    weight = np.random.default_rng(0).normal(size=(heads * head_dim, 5)).astype(np.float32)
    bias = weight[:, 0]
    np.testing.assert_array_equal(unpermute_rope(llama_cpp_permute(weight, heads), heads), weight)
    np.testing.assert_array_equal(unpermute_rope(llama_cpp_permute(bias, heads), heads), bias)
    assert not np.array_equal(llama_cpp_permute(weight, heads), weight) or head_dim == 2


def test_only_q_and_k_of_the_llama_architecture_are_permuted() -> None:
    names = ["blk.3.attn_q.weight", "blk.3.attn_k.weight", "blk.3.attn_v.weight", "blk.3.attn_q.bias"]
    llama = sources(names, "llama", 8, 2)
    assert llama["model.layers.3.self_attn.q_proj.weight"] == Source("blk.3.attn_q.weight", rope_heads=8)
    assert llama["model.layers.3.self_attn.q_proj.bias"] == Source("blk.3.attn_q.bias", rope_heads=8)
    assert llama["model.layers.3.self_attn.k_proj.weight"] == Source("blk.3.attn_k.weight", rope_heads=2)
    assert llama["model.layers.3.self_attn.v_proj.weight"] == Source("blk.3.attn_v.weight")
    for architecture in ("qwen2", "qwen3", "gemma3"):
        assert not any(source.rope_heads for source in sources(names, architecture, 8, 2).values())


def test_gemma_norms() -> None:
    names = ["output_norm.weight"] + [f"blk.0.{part}.weight" for part in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")]
    names += ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"]
    found = sources(names, "gemma3", 4, 1)
    assert set(found) == {
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_norm.weight",
    }
    weight = np.array([0.5, -0.25], np.float32)
    for source in found.values():
        np.testing.assert_array_equal(source.restore(weight + 1), weight)
    assert found["model.layers.0.pre_feedforward_layernorm.weight"].name == "blk.0.ffn_norm.weight"
    assert sources(["blk.0.ffn_norm.weight"], "llama", 4, 1).keys() == {"model.layers.0.post_attention_layernorm.weight"}


def test_values_that_need_nothing_undone_are_not_copied() -> None:
    array = np.ones(3, np.float32)
    assert Source("x").restore(array) is array


def test_rope_factors_are_no_parameter() -> None:
    assert sources(["rope_freqs.weight", "output.weight"], "llama", 1, 1).keys() == {"lm_head.weight"}


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_exps.weight", "v.blk.0.x.weight", "nonsense", "blk.x.attn_q.weight"]
)
def test_unknown_tensors_are_named(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{name}' does not belong"):
        sources([name], "llama", 1, 1)

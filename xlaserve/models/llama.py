"""The Llama family: Llama 2, 3, 3.1 and 3.2, SmolLM2, TinyLlama and others that declare `LlamaForCausalLM`.

Source: Touvron et al. 2023 (arXiv:2302.13971, 2307.09288), Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlaserve.models.config import ConfigReader, LayerAttention, ModelConfig


def llama_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Llama checkpoint from its `config.json`."""
    read = ConfigReader(raw)
    hidden, heads, layers = read.integer("hidden_size"), read.integer("num_attention_heads"), read.integer("num_hidden_layers")
    head_dim = read.integer("head_dim", hidden // heads)
    bias = read.flag("attention_bias", False)
    return ModelConfig(
        family="llama",
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        layers=(LayerAttention(None, read.rope()),) * layers,
        max_position=read.integer("max_position_embeddings", 2048),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        activation=read.activation("hidden_act"),
        tie_embeddings=read.flag("tie_word_embeddings", False),
        query_scale=head_dim**-0.5,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=read.flag("mlp_bias", False),
    )

"""Gemma 2: sandwich norms, soft caps, scaled embeddings, every other layer with a sliding window (arXiv:2408.00118)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xlaserve.models.config import ConfigReader, LayerAttention, ModelConfig


def gemma2_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Gemma 2 checkpoint from its `config.json`."""
    read = ConfigReader(raw)
    hidden, layers = read.integer("hidden_size"), read.integer("num_hidden_layers")
    windows = read.windows(layers, read.integer("sliding_window", 4096), {i: i % 2 == 0 for i in range(layers)})
    heads = read.integer("num_attention_heads")
    return ModelConfig(
        family="gemma2",
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=read.integer("head_dim", 256),
        layers=tuple(LayerAttention(window, read.rope()) for window in windows),
        max_position=read.integer("max_position_embeddings", 8192),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        activation=read.activation("hidden_activation", "hidden_act"),
        tie_embeddings=read.flag("tie_word_embeddings", True),
        query_scale=read.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=read.flag("attention_bias", False),
        output_bias=read.flag("attention_bias", False),
        unit_offset_norm=True,
        sandwich_norm=True,
        embedding_scale=math.sqrt(hidden),
        # A key that is missing means the family's default; null means none.
        attention_softcap=read.optional_number("attn_logit_softcapping") if "attn_logit_softcapping" in raw else 50.0,
        logit_softcap=read.optional_number("final_logit_softcapping") if "final_logit_softcapping" in raw else 30.0,
    )

"""Qwen2 and Qwen2.5: Llama's layers with biases on query, key and value (Yang et al. 2024, arXiv:2407.10671, 2412.15115)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xlaserve.models.config import ConfigReader, LayerAttention, ModelConfig
from xlaserve.models.llama import llama_config


def qwen2_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Qwen2 checkpoint from its `config.json`."""
    base = llama_config(raw)
    return replace(base, family="qwen2", qkv_bias=True, output_bias=False, layers=qwen_layers(raw, base))


def qwen_layers(raw: Mapping[str, Any], base: ModelConfig) -> tuple[LayerAttention, ...]:
    """Qwen's windows: none unless `use_sliding_window`, and then only on layers from `max_window_layers` on."""
    read = ConfigReader(raw)
    slides = read.flag("use_sliding_window", False)
    window = read.integer("sliding_window", 4096) if slides else None
    first = 28 if raw.get("max_window_layers") is None else int(raw["max_window_layers"])
    windows = read.windows(base.num_layers, window, {i: i >= first for i in range(base.num_layers)})
    return tuple(LayerAttention(w, base.layers[0].rope) for w in windows)

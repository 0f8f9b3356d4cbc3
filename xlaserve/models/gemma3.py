"""Gemma 3, text only: Gemma 2's norms, no attention cap, RMSNorm on queries and keys, five sliding layers to one full (arXiv:2503.19786).

Sliding layers rotate with their own, smaller base frequency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xlaserve.models.config import ConfigReader, LayerAttention, ModelConfig, Rope
from xlaserve.models.gemma2 import gemma2_config

_DEFAULT_PATTERN = 6


def gemma3_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Gemma 3 text checkpoint from its `config.json`."""
    read = ConfigReader(raw)
    base = gemma2_config(raw)
    pattern = read.integer("sliding_window_pattern", read.integer("_sliding_window_pattern", _DEFAULT_PATTERN))
    windows = read.windows(
        base.num_layers, read.integer("sliding_window", 4096), {i: (i + 1) % pattern != 0 for i in range(base.num_layers)}
    )
    full = read.rope(theta=1_000_000.0, layer_type="full_attention")
    if "sliding_attention" in (raw.get("rope_parameters") or {}):
        sliding = read.rope(theta=10_000.0, layer_type="sliding_attention")
    else:
        sliding = Rope(read.number("rope_local_base_freq", 10_000.0))
    return replace(
        base,
        family="gemma3",
        qk_norm=True,
        attention_softcap=read.optional_number("attn_logit_softcapping"),
        logit_softcap=read.optional_number("final_logit_softcapping"),
        max_position=read.integer("max_position_embeddings", 131_072),
        layers=tuple(LayerAttention(window, full if window is None else sliding) for window in windows),
    )

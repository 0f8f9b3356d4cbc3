"""Mistral: Llama's layers with an optional sliding attention window on every layer (Jiang et al. 2023, arXiv:2310.06825)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xlaserve.models.config import ConfigReader, LayerAttention, ModelConfig
from xlaserve.models.llama import llama_config


def mistral_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Mistral checkpoint from its `config.json`."""
    read = ConfigReader(raw)
    base = llama_config(raw)
    # A key that is missing means the family's default; null means none.
    window = None if "sliding_window" in raw and raw["sliding_window"] is None else read.integer("sliding_window", 4096)
    windows = read.windows(base.num_layers, window)
    return replace(base, family="mistral", layers=tuple(LayerAttention(w, base.layers[0].rope) for w in windows))

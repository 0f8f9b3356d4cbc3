"""Qwen3 (dense): Llama's layers with RMSNorm on each query and key head and a free head width (Yang et al. 2025, arXiv:2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xlaserve.models.config import ConfigReader, ModelConfig
from xlaserve.models.llama import llama_config
from xlaserve.models.qwen2 import qwen_layers


def qwen3_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Qwen3 checkpoint from its `config.json`."""
    base = llama_config(raw)
    head_dim = ConfigReader(raw).integer("head_dim", 128)
    return replace(base, family="qwen3", head_dim=head_dim, query_scale=head_dim**-0.5, qk_norm=True, layers=qwen_layers(raw, base))

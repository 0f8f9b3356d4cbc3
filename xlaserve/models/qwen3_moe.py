"""Qwen3 with experts (`Qwen3MoeForCausalLM`): Qwen3's layers, most of them with a mixture of experts for an MLP (arXiv:2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xlaserve.errors import CheckpointError
from xlaserve.models.config import ConfigReader, Experts, ModelConfig
from xlaserve.models.qwen3 import qwen3_config


def qwen3_moe_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a Qwen3-MoE checkpoint from its `config.json`."""
    read = ConfigReader(raw)
    # Where head_dim is missing, hidden_size is divided, other than in Qwen3 without experts.
    base = qwen3_config({"head_dim": read.integer("hidden_size") // read.integer("num_attention_heads"), **raw})
    experts = Experts(
        count=read.integer("num_experts"),
        per_token=read.integer("num_experts_per_tok"),
        width=read.integer("moe_intermediate_size"),
        normalized=read.flag("norm_topk_prob", False),
    )
    if experts.per_token > experts.count:
        raise CheckpointError(f"config.json: num_experts_per_tok is {experts.per_token}, of {experts.count} experts (num_experts).")
    step, named = read.integer("decoder_sparse_step", 1), [int(layer) for layer in raw.get("mlp_only_layers") or ()]
    dense = tuple(layer for layer in range(base.num_layers) if layer in named or (layer + 1) % step)
    return replace(base, family="qwen3_moe", experts=experts, dense_layers=dense)

"""Which architectures are served, by the name that a checkpoint's `config.json` declares. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xlaserve.errors import UnsupportedModelError
from xlaserve.models.config import ModelConfig
from xlaserve.models.gemma2 import gemma2_config
from xlaserve.models.gemma3 import gemma3_config
from xlaserve.models.llama import llama_config
from xlaserve.models.mistral import mistral_config
from xlaserve.models.qwen2 import qwen2_config
from xlaserve.models.qwen3 import qwen3_config
from xlaserve.models.qwen3_moe import qwen3_moe_config

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], ModelConfig]] = {
    "Gemma2ForCausalLM": gemma2_config,
    "Gemma3ForCausalLM": gemma3_config,
    "LlamaForCausalLM": llama_config,
    "MistralForCausalLM": mistral_config,
    "Qwen2ForCausalLM": qwen2_config,
    "Qwen3ForCausalLM": qwen3_config,
    "Qwen3MoeForCausalLM": qwen3_moe_config,
}


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """`ModelConfig` of a checkpoint from the content of its `config.json`.

    Raises:
        UnsupportedModelError: no declared architecture is served, or the weights are quantized in a way that is not read.
        CheckpointError: the config lacks a required key or holds a value that makes no sense.
    """
    declared = [str(name) for name in raw.get("architectures") or []]
    reader = next((ARCHITECTURES[name] for name in declared if name in ARCHITECTURES), None)
    if reader is None:
        named = ", ".join(declared) or f"none (model_type {raw.get('model_type')!r})"
        raise UnsupportedModelError(f"Unsupported architecture: {named}. Supported are {', '.join(sorted(ARCHITECTURES))}.")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(f"Quantization method {method!r} is not supported; use the unquantized checkpoint or a GGUF file.")
    config = reader(raw)
    if config.num_heads % config.num_kv_heads:
        raise UnsupportedModelError(
            f"config.json: num_attention_heads ({config.num_heads}) is not a multiple of num_key_value_heads ({config.num_kv_heads})."
        )
    return config

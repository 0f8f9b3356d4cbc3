"""Tiny random checkpoints, one per supported model family, written as ordinary safetensors directories.

The bytes are the same on every machine: weights are uniform numbers from seeded PCG64 streams (no libm, no torch, no JAX), so the
golden files in `tests/golden/` can hold what transformers computes from them. Sizes are small enough for a test to run in a blink.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from . import tiny_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": tiny_tokenizer.VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "use_cache": True,
    "attention_dropout": 0.0,
    "bos_token_id": tiny_tokenizer.BOS_ID,
    "eos_token_id": tiny_tokenizer.EOS_ID,
    "torch_dtype": "float32",
}

# What a reader could silently replace by a default (epsilon, rope bases, windows) differs from that default, by enough to show in the
# logits; only the last family relies on defaults.
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama2": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 12000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 3,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 500000.0,
        # With 64 original positions the eight wavelengths (6, 32, 167, ...) fall into all three bands of the scaling rule.
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 20000.0,
        "sliding_window": 16,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        # As in the published checkpoints: the embedding has rows that the tokenizer does not know ...
        "vocab_size": tiny_tokenizer.VOCAB_SIZE + 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 1000000.0,
        # ... and a sliding window is named that is not in use.
        "sliding_window": 16,
        "use_sliding_window": False,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": 3,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 3,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        # Of layers 1, 3 and 5, which have experts by the step, 3 is excepted.
        "num_hidden_layers": 6,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 6,
        "tie_word_embeddings": False,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "head_dim": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-3,
        "rope_theta": 30000.0,
        "attention_bias": False,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 8.0,
        "sliding_window": 16,
        "cache_implementation": "hybrid",
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        # Layers 0 1 3 4 slide, 2 and 5 see everything.
        "num_hidden_layers": 6,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-3,
        "rope_theta": 500000.0,
        "rope_local_base_freq": 20000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window": 16,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    "llama_bf16_sharded": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 3,
        # The oldest Llama files name neither key/value heads nor a rope base nor an attention bias: the defaults hold.
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
}

_SHARDS: dict[str, int] = {"llama_bf16_sharded": 3}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_config(family: str, **sizes: Any) -> dict[str, Any]:
    """The `config.json` content of a family, in the flat form that checkpoints on the hub have.

    Args:
        family: one of `FAMILIES`.
        sizes: fields of it that are to be others, for models that are less tiny.

    Raises:
        KeyError: there is no such family.
    """
    config = copy.deepcopy({**_COMMON, **_CONFIGS[family], **sizes})
    return {key: value for key, value in config.items() if value is not None or key != "num_key_value_heads"}


def tiny_tensors(family: str, **sizes: Any) -> dict[str, np.ndarray]:
    """All parameters of a family under their Hugging Face names, float32 or bfloat16 as `torch_dtype` says.

    Args:
        family: one of `FAMILIES`.
        sizes: as `tiny_config` takes them.
    """
    config = tiny_config(family, **sizes)
    dtype = np.dtype(ml_dtypes.bfloat16) if config["torch_dtype"] == "bfloat16" else np.dtype(np.float32)
    return {name: _draw(family, name, shape, center, std).astype(dtype) for name, shape, center, std in _parameters(config)}


def write_tiny(family: str, directory: Path, **sizes: Any) -> Path:
    """Write the checkpoint of a family: config, generation config, tokenizer with chat template, and weights.

    Args:
        family: one of `FAMILIES`.
        directory: where the files go; made if it does not exist. Files of the same names are replaced.
        sizes: as `tiny_config` takes them.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", tiny_config(family, **sizes))
    eos = [tiny_tokenizer.EOS_ID, tiny_tokenizer.IM_END_ID]
    _write_json(directory / "generation_config.json", {"bos_token_id": tiny_tokenizer.BOS_ID, "do_sample": False, "eos_token_id": eos})
    _write_json(directory / "tokenizer.json", tiny_tokenizer.tokenizer_json())
    _write_json(directory / "tokenizer_config.json", tiny_tokenizer.tokenizer_config_json())
    _write_weights(directory, tiny_tensors(family, **sizes), _SHARDS.get(family, 1))
    return directory


def checksum(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: golden files record it, so that a changed random stream is named as such."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype.name} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _parameters(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...], float, float]]:
    """(name, shape, center, standard deviation) of every parameter, in the order of the layers."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    gemma = config["model_type"] in ("gemma2", "gemma3_text")
    # Gemma multiplies by 1 + weight, the others by weight.
    identity = 0.0 if gemma else 1.0
    tied = config["tie_word_embeddings"]
    # Gemma norms what each layer adds; a gain above 1 there keeps its embedding, scaled by sqrt(hidden), from drowning the layers.
    post_norm = 1.5 if gemma else 1.0

    # Standard deviations: scores spread enough that attention has favourites, layers outweigh the embedding in the residual stream
    # (else a tied model repeats its last token), and logits end up with a standard deviation between 1 and 3.
    qk_std = 1.5 / math.sqrt(hidden)
    out: list[tuple[str, tuple[int, ...], float, float]] = []
    out.append(("model.embed_tokens.weight", (vocab, hidden), 0.0, 0.2 if tied and gemma else 0.25 if tied else 1.0))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        out.append((prefix + "input_layernorm.weight", (hidden,), identity, 0.2))
        for name, rows, std in (
            ("q", heads * head_dim, qk_std),
            ("k", kv_heads * head_dim, qk_std),
            ("v", kv_heads * head_dim, 2.0 / math.sqrt(hidden)),
        ):
            out.append((f"{prefix}self_attn.{name}_proj.weight", (rows, hidden), 0.0, std))
            if config["model_type"] == "qwen2":
                out.append((f"{prefix}self_attn.{name}_proj.bias", (rows,), 0.0, 0.5))
        if config["model_type"] in ("qwen3", "qwen3_moe", "gemma3_text"):
            out.append((prefix + "self_attn.q_norm.weight", (head_dim,), identity, 0.3))
            out.append((prefix + "self_attn.k_norm.weight", (head_dim,), identity, 0.3))
        out.append((prefix + "self_attn.o_proj.weight", (hidden, heads * head_dim), 0.0, 1.2 / math.sqrt(heads * head_dim)))
        out.append((prefix + "post_attention_layernorm.weight", (hidden,), post_norm, 0.2))
        if gemma:
            out.append((prefix + "pre_feedforward_layernorm.weight", (hidden,), identity, 0.2))
            out.append((prefix + "post_feedforward_layernorm.weight", (hidden,), post_norm, 0.2))
        mlps = [(prefix + "mlp.", inner)]
        if "num_experts" in config and layer not in config["mlp_only_layers"] and (layer + 1) % config["decoder_sparse_step"] == 0:
            # Experts that are chosen by a clear lead: where two are as likely, rounding would decide.
            out.append((prefix + "mlp.gate.weight", (config["num_experts"], hidden), 0.0, 3.0 / math.sqrt(hidden)))
            mlps = [(f"{prefix}mlp.experts.{expert}.", config["moe_intermediate_size"]) for expert in range(config["num_experts"])]
        for mlp, width in mlps:
            out.append((mlp + "gate_proj.weight", (width, hidden), 0.0, 1.5 / math.sqrt(hidden)))
            out.append((mlp + "up_proj.weight", (width, hidden), 0.0, 1.5 / math.sqrt(hidden)))
            out.append((mlp + "down_proj.weight", (hidden, width), 0.0, 1.0 / math.sqrt(width)))
    out.append(("model.norm.weight", (hidden,), identity, 0.2))
    if not tied:
        out.append(("lm_head.weight", (vocab, hidden), 0.0, 0.25))
    return out


def _draw(family: str, name: str, shape: tuple[int, ...], center: float, std: float) -> np.ndarray:
    """Uniform float32 numbers with the given mean and standard deviation; the stream belongs to the parameter's name."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(f"{family}/{name}".encode())))
    return (center + std * math.sqrt(12.0) * (random.random(shape) - 0.5)).astype(np.float32)


def _write_weights(directory: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for index in range(shards):
        filename = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, directory / filename, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, filename))
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

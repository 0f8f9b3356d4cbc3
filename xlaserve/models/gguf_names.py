"""GGUF tensor names and layouts to Hugging Face's, undoing what llama.cpp's converter did to the weights.

Two conversions are undone: the rows of q and k in the llama architecture are permuted for llama.cpp's interleaved rotary embedding,
and Gemma's norm weights are stored as 1 + w. Source: conversion code in https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from xlaserve.errors import UnsupportedModelError

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's frequency factors: configuration that happens to be stored as a tensor

GEMMA = ("gemma2", "gemma3")

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>[a-z_]+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a Hugging Face parameter comes from: the GGUF tensor's name and what has to be undone when it is read.

    Attributes:
        name: the GGUF tensor.
        rope_heads: heads whose rows are permuted, or 0.
        norm_plus_one: the stored values are 1 + w.
    """

    name: str
    rope_heads: int = 0
    norm_plus_one: bool = False

    def restore(self, values: np.ndarray) -> np.ndarray:
        """The parameter as Hugging Face stores it; the very same array where nothing has to be undone."""
        if self.rope_heads:
            return unpermute_rope(values, self.rope_heads)
        if self.norm_plus_one:
            return values.astype(np.float32) - np.float32(1)
        return values


def unpermute_rope(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows from llama.cpp's rotary pairs (2i, 2i+1) to Hugging Face's (i, i + head_dim/2), head by head.

    Args:
        values: a q or k projection, (heads * head_dim, hidden), or its bias, (heads * head_dim,).
        heads: how many heads the rows make.
    """
    split = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def sources(names: list[str], architecture: str, heads: int, kv_heads: int) -> dict[str, Source]:
    """Hugging Face parameter name to its source, for every tensor that is a parameter.

    Args:
        names: GGUF tensor names of the file.
        architecture: `general.architecture`.
        heads, kv_heads: query and key-value heads.

    Raises:
        UnsupportedModelError: a tensor has no counterpart in the supported model families.
    """
    layer_parts = _GEMMA_LAYER if architecture in GEMMA else _LAYER
    result: dict[str, Source] = {}
    for name in names:
        if name == ROPE_FACTORS:
            continue
        match = _NAME.fullmatch(name)
        part = match["part"] if match else ""
        layer = match["layer"] if match else None
        target = (_TOP if layer is None else layer_parts).get(part)
        if match is None or target is None:
            raise UnsupportedModelError(f"The tensor {name!r} does not belong to any supported {architecture} model.")
        parameter = f"{target}.{match['kind']}" if layer is None else f"model.layers.{int(layer)}.{target}.{match['kind']}"
        permuted = {"attn_q": heads, "attn_k": kv_heads}.get(part, 0) if architecture == "llama" else 0
        result[parameter] = Source(name, rope_heads=permuted, norm_plus_one=architecture in GEMMA and part.endswith("norm"))
    return result

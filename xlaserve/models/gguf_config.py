"""GGUF metadata to the `config.json` and `generation_config.json` that Hugging Face would have, in their classic flat form.

What GGUF leaves out because llama.cpp knows it from the architecture (Gemma's layer pattern, its query scale) is filled in the same
way, and Llama 3.1's rope parameters are recovered from the frequency factors that they were turned into.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.gguf import GgufFile
from xlaserve.models.gguf_names import GEMMA, ROPE_FACTORS

ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
# Layers in one period of sliding and full attention; the last of each period is full.
_PERIOD = {"gemma2": 2, "gemma3": 6}
# The 27B sizes alone scale queries by hidden_size / heads instead of head_dim; llama.cpp tells them by their depth.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}

_GEMMA3_LOCAL_ROPE = 10000.0
_GEMMA2_ATTN_CAP = 50.0
_GEMMA2_FINAL_CAP = 30.0
_GEMMA2_WINDOW = 4096

LLAMA3_CONTEXT = 8192
# Chat models stop at these besides their end-of-sequence token, where their own chat template writes them.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>")


@dataclass(frozen=True, slots=True)
class _Fields:
    """The metadata keys of one architecture, read with a check of presence and type."""

    path: object
    architecture: str
    metadata: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, np.ndarray):  # one value per layer
            values = set(value.tolist())
            if len(values) != 1:
                raise UnsupportedModelError(
                    f"{self.path}: {self.architecture}.{key} differs between layers ({sorted(values)}), which is not supported."
                )
            value = values.pop()
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{self.path}: {self.architecture}.{key} must be an integer that is not negative, got {value!r}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f"{self.path}: {self.architecture}.{key} must be a finite number, got {value!r}.")
        return float(value)

    def optional(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise CheckpointError(f"{self.path}: lacks the metadata key {self.architecture}.{key}.")
        return value


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The model's `config.json`.

    Raises:
        UnsupportedModelError: the architecture or one of its options is not implemented.
        CheckpointError: a required key is missing or malformed.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path}: the GGUF architecture {architecture!r} is not supported; supported are {', '.join(ARCHITECTURES)}."
        )
    fields = _Fields(file.path, architecture, file.metadata)
    if fields.integer("expert_count", 0):
        raise UnsupportedModelError(f"{file.path}: is a mixture of {fields.integer('expert_count')} experts, which is not supported.")
    class_name, model_type = ARCHITECTURES[architecture]
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if not hidden or not heads:
        raise CheckpointError(
            f"{file.path}: {architecture}.embedding_length and attention.head_count must be positive, got {hidden} and {heads}."
        )
    head_dim = fields.integer("attention.key_length", hidden // heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{file.path}: keys and values differ in length ({head_dim} and {fields.integer('attention.value_length')})."
        )
    rotated = fields.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise UnsupportedModelError(f"{file.path}: rotates only {rotated} of {head_dim} dimensions of each head, which is not supported.")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: lacks the matrix token_embd.weight.")
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, fields, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if architecture in GEMMA:
        config |= _gemma(fields, config)
    else:
        config["hidden_act"] = "silu"
    if architecture == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors}
    if architecture == "qwen2":
        config["use_sliding_window"] = False
    return config | _token_ids(file.metadata)


def generation_config_from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The model's `generation_config.json`: its special ids, with every token that ends a turn among the end-of-sequence ids."""
    ids = _token_ids(metadata)
    ends = [ids["eos_token_id"]] if "eos_token_id" in ids else []
    ends += [value for key in ("eot", "eom") if isinstance(value := metadata.get(f"tokenizer.ggml.{key}_token_id"), int)]
    template = metadata.get("tokenizer.chat_template", "")
    tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())
    written = [token for token in _END_OF_TURN if token in template]
    if written:
        ends += [tokens.index(token) for token in written if token in tokens]
    return ids | ({"eos_token_id": list(dict.fromkeys(ends))} if ends else {})


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in keys.items()}
    return {name: value for name, value in found.items() if isinstance(value, int)}


def _gemma(fields: _Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    architecture, layers = fields.architecture, config["num_hidden_layers"]
    second = architecture == "gemma2"
    scale = config["head_dim"]
    if layers == _LAYERS_OF_27B[architecture]:
        scale = config["hidden_size"] // config["num_attention_heads"]
    extra: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "sliding_window": fields.integer("attention.sliding_window", _GEMMA2_WINDOW if second else None),
        "layer_types": _layer_types(fields, layers),
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", _GEMMA2_ATTN_CAP) if second else None,
        "final_logit_softcapping": fields.number("final_logit_softcapping", _GEMMA2_FINAL_CAP if second else 0.0) or None,
    }
    if not second:
        extra["rope_local_base_freq"] = fields.number("rope.freq_base_swa", _GEMMA3_LOCAL_ROPE)
    return extra


def _layer_types(fields: _Fields, layers: int) -> list[str]:
    pattern = fields.optional("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if len(pattern) != layers:
            raise CheckpointError(
                f"{fields.path}: {fields.architecture}.attention.sliding_window_pattern names {len(pattern)} of {layers} layers."
            )
        sliding = [bool(value) for value in pattern]
    else:
        period = _PERIOD[fields.architecture] if pattern is None else fields.integer("attention.sliding_window_pattern")
        if period < 1:
            raise CheckpointError(f"{fields.path}: {fields.architecture}.attention.sliding_window_pattern must be positive, got {period}.")
        sliding = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if value else "full_attention" for value in sliding]


def _rope_scaling(file: GgufFile, fields: _Fields, head_dim: int) -> dict[str, Any] | None:
    kind = fields.optional("rope.scaling.type")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    if ROPE_FACTORS in file.tensors:
        factors = file.read(ROPE_FACTORS).astype(np.float64).ravel()
        return llama3_rope_scaling(factors, fields.number("rope.freq_base", 10000.0), head_dim)
    if kind in (None, "none") and factor in (0.0, 1.0):
        return None
    if kind in (None, "none", "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length", fields.integer("context_length")),
        }
        renamed = {"attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        return scaling | {
            name: fields.number(f"rope.scaling.{key}")
            for key, name in renamed.items()
            if fields.optional(f"rope.scaling.{key}") is not None
        }
    raise UnsupportedModelError(f"{file.path}: rope scaling of type {kind!r} is not supported; supported are linear, yarn and llama3.")


def llama3_rope_factors(factor: float, low: float, high: float, context: int, theta: float, head_dim: int) -> np.ndarray:
    """What Llama 3.1's rope scaling divides each of the head_dim/2 frequencies by, float64 (meta-llama, `apply_scaling`)."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def llama3_rope_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any] | None:
    """The llama3 `rope_scaling` whose frequency factors these are, None where all of them are 1.

    GGUF keeps only the factors. Between the plain and the fully scaled frequencies they are linear in 1/wavelength, so two of them
    determine the low and high cut-offs (for the original context of 8,192 that all Llama 3 models name; only the ratios matter).

    Args:
        factors: one per rotary pair, shape (head_dim / 2,).
        theta: rope base.
        head_dim: length of one head.

    Raises:
        UnsupportedModelError: no llama3 parameters give these factors.
    """
    if np.all(factors == 1):
        return None
    factor = float(str(np.float32(factors.max(initial=1.0))))
    candidates = [(1.0, 4.0)]
    if factors.shape == (head_dim // 2,) and factor > 1:
        smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
        ratio = LLAMA3_CONTEXT / (2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
        between = (smooth > 1e-4) & (smooth < 1 - 1e-4)
        if between.sum() >= 2:
            slope, offset = np.polyfit(ratio[between], smooth[between], 1)
            candidates.append((round(-offset / slope, 4), round((1 - offset) / slope, 4)))
        for low, high in candidates:
            if high > low > 0 and np.allclose(llama3_rope_factors(factor, low, high, LLAMA3_CONTEXT, theta, head_dim), factors, rtol=1e-4):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": LLAMA3_CONTEXT,
                }
    raise UnsupportedModelError(f"The {len(factors)} rope frequency factors in {ROPE_FACTORS} are not those of Llama 3.1's rope scaling.")

"""Logits and greedy tokens from Hugging Face transformers: float32, CPU, eager attention, one sequence at a time.

The models are read from a safetensors directory, or from a GGUF file through the `gguf` package's own dequantization.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.golden.gguf_file import GGUFFile
from tests.tooling.golden import Greedy


class Reference:
    """A transformers model in evaluation mode."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.vocab_size: int = model.config.vocab_size

    def logits(self, prompt: tuple[int, ...]) -> np.ndarray:
        """Logits at every position, float32 [len(prompt), vocab], in one forward pass without a cache."""
        with torch.inference_mode():
            return self.model(torch.tensor([prompt]), use_cache=False).logits[0].numpy()

    def greedy(self, prompt: tuple[int, ...], steps: int) -> Greedy:
        """`steps` greedy tokens through transformers' key/value cache; end-of-sequence tokens do not stop it.

        Raises:
            RuntimeError: one forward pass over prompt and continuation, without the cache, disagrees with a token.
        """
        tokens: list[int] = []
        gaps: list[float] = []
        cache = DynamicCache(config=self.model.config)
        feed = torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(steps):
                last = self.model(feed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
                best = torch.topk(last, 2).values.tolist()
                # numpy's argmax, unlike topk, promises the lowest id among equals.
                tokens.append(int(last.numpy().argmax()))
                gaps.append(round(best[0] - best[1], 6))
                feed = torch.tensor([[tokens[-1]]])
        if self.logits((*prompt, *tokens[:-1]))[len(prompt) - 1 :].argmax(axis=1).tolist() != tokens:
            raise RuntimeError(f"with and without a cache, transformers chooses different tokens (smallest gap {min(gaps)})")
        return Greedy(tuple(tokens), tuple(gaps))

    def beams(self, prompt: tuple[int, ...], **options: Any) -> list[tuple[list[int], float]]:
        """What transformers' beam search finds, the best first: tokens, the end-of-sequence token included, and score.

        Args:
            prompt: token ids.
            options: of `generate`, with `eos_token_id` (a list, which may be empty), `num_beams` and `max_new_tokens`.
        """
        eos_ids: list[int] = options["eos_token_id"]
        others = {**options, "eos_token_id": eos_ids or None, "num_return_sequences": options["num_beams"]}
        self.model.generation_config = GenerationConfig(**others, pad_token_id=0, do_sample=False)
        with torch.inference_mode():
            # Without a mask, a prompt's tokens with the id of the padding would not be seen.
            mask = torch.ones((1, len(prompt)), dtype=torch.int64)
            found = self.model.generate(torch.tensor([prompt]), attention_mask=mask, return_dict_in_generate=True, output_scores=True)
        beams: list[tuple[list[int], float]] = []
        for row, score in zip(found.sequences[:, len(prompt) :].tolist(), found.sequences_scores.tolist(), strict=True):
            end = min((row.index(eos) + 1 for eos in eos_ids if eos in row), default=len(row))
            beams.append((row[:end], round(score, 5)))
        return beams


def load_directory(directory: Path) -> Reference:
    """Load a checkpoint directory with every weight and configuration value accounted for.

    Raises:
        RuntimeError: transformers missed or ignored weights, or did not take a value of `config.json` over into the model.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    model, info = loaded
    problems = {key: value for key, value in info.items() if value}
    if problems:
        raise RuntimeError(f"{directory}: transformers reports {problems}")
    _verify(model, json.loads((directory / "config.json").read_text(encoding="utf-8")))
    return Reference(model)


def load_smollm2(path: Path) -> Reference:
    """SmolLM2 (Llama architecture) from a GGUF file, its dequantized weights as they are, in float32."""
    file = GGUFFile(path)
    meta = file.metadata
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=not file.has("output.weight"),
    )
    state: dict[str, np.ndarray] = {"model.embed_tokens.weight": file.read("token_embd.weight")}
    state["model.norm.weight"] = file.read("output_norm.weight")
    for i in range(config.num_hidden_layers):
        block, layer = f"blk.{i}.", f"model.layers.{i}."
        # llama.cpp stores the rows of q and k in the order of interleaved rotation; transformers rotates halves.
        state[layer + "self_attn.q_proj.weight"] = _halves(file.read(block + "attn_q.weight"), heads)
        state[layer + "self_attn.k_proj.weight"] = _halves(file.read(block + "attn_k.weight"), kv_heads)
        for ours, theirs in (
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            state[f"{layer}{ours}.weight"] = file.read(f"{block}{theirs}.weight")
    file.expect_all_read()
    return _from_state(LlamaForCausalLM(config), state)


def load_gemma3(path: Path) -> Reference:
    """Gemma 3 text from a GGUF file, its dequantized weights in float32 (norm weights less the 1 that llama.cpp adds to them)."""
    file = GGUFFile(path)
    meta = file.metadata
    layers, head_dim = meta["gemma3.block_count"], meta["gemma3.attention.key_length"]
    config = Gemma3TextConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        hidden_size=meta["gemma3.embedding_length"],
        intermediate_size=meta["gemma3.feed_forward_length"],
        num_hidden_layers=layers,
        num_attention_heads=meta["gemma3.attention.head_count"],
        num_key_value_heads=meta["gemma3.attention.head_count_kv"],
        head_dim=head_dim,
        max_position_embeddings=meta["gemma3.context_length"],
        rms_norm_eps=meta["gemma3.attention.layer_norm_rms_epsilon"],
        # The file says nothing of these three; they are those of every published Gemma 3 of this size.
        query_pre_attn_scalar=head_dim,
        layer_types=["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": meta["gemma3.rope.freq_base"]},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        sliding_window=meta["gemma3.attention.sliding_window"],
        tie_word_embeddings=not file.has("output.weight"),
    )
    state: dict[str, np.ndarray] = {"model.embed_tokens.weight": file.read("token_embd.weight")}
    state["model.norm.weight"] = file.read("output_norm.weight") - np.float32(1)
    for i in range(layers):
        block, layer = f"blk.{i}.", f"model.layers.{i}."
        for ours, theirs in (
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ):
            state[f"{layer}{ours}.weight"] = file.read(f"{block}{theirs}.weight")
        for ours, theirs in (
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ):
            state[f"{layer}{ours}.weight"] = file.read(f"{block}{theirs}.weight") - np.float32(1)
    file.expect_all_read()
    return _from_state(Gemma3ForCausalLM(config), state)


def _from_state(model: Any, state: dict[str, np.ndarray]) -> Reference:
    """Put the weights into the model; a tied output layer is the only one that may be missing."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in state.items()}
    result = model.load_state_dict(tensors, strict=False)
    missing = set(result.missing_keys) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    if missing or result.unexpected_keys:
        raise RuntimeError(f"weights missing: {sorted(missing)}; unexpected: {result.unexpected_keys}")
    model.tie_weights()
    model.set_attn_implementation("eager")
    if model.config.tie_word_embeddings and model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
        raise RuntimeError("the output layer is not tied to the embedding")
    return Reference(model)


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _verify(model: Any, config: dict[str, Any]) -> None:
    """Check inside the model that the flat keys of `config.json` took effect; transformers ignores keys that it does not know."""
    inner = model.model
    layers: int = config["num_hidden_layers"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = config.get("rope_theta", 10000.0)
    expected: dict[str, tuple[object, object]] = {
        "layers": (layers, len(inner.layers)),
        "head_dim": (head_dim, inner.layers[0].self_attn.head_dim),
        "rms_norm_eps": (config["rms_norm_eps"], getattr(inner.norm, "variance_epsilon", None) or inner.norm.eps),
        "scaling": (config.get("query_pre_attn_scalar", head_dim) ** -0.5, inner.layers[0].self_attn.scaling),
        "tied": (config["tie_word_embeddings"], model.lm_head.weight.data_ptr() == inner.embed_tokens.weight.data_ptr()),
        "attention soft cap": (
            config.get("attn_logit_softcapping"),
            getattr(inner.layers[0].self_attn, "attn_logit_softcapping", None),
        ),
        "final soft cap": (config.get("final_logit_softcapping"), getattr(model.config, "final_logit_softcapping", None)),
        "windows": (_windows(config), _found_windows(model.config, layers)),
    }
    if config["model_type"] == "gemma3_text":
        rotary = inner.rotary_emb
        expected["rope"] = (_frequencies(theta, head_dim, None), _rounded(rotary.full_attention_inv_freq))
        expected["local rope"] = (_frequencies(config["rope_local_base_freq"], head_dim, None), _rounded(rotary.sliding_attention_inv_freq))
    else:
        expected["rope"] = (_frequencies(theta, head_dim, config.get("rope_scaling")), _rounded(inner.rotary_emb.inv_freq))
    wrong = {key: pair for key, pair in expected.items() if pair[0] != pair[1]}
    if wrong:
        raise RuntimeError(f"transformers read config.json differently (expected, found): {wrong}")


def _windows(config: dict[str, Any]) -> list[int | None]:
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    pattern = {"gemma2": 2, "gemma3_text": config.get("sliding_window_pattern", 6)}.get(config["model_type"])
    if pattern is not None:
        return [None if (i + 1) % pattern == 0 else window for i in range(layers)]
    return [window if config["model_type"] == "mistral" else None] * layers


def _found_windows(config: Any, layers: int) -> list[int | None]:
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [getattr(config, "sliding_window", None) if kind == "sliding_attention" else None for kind in kinds]


def _frequencies(theta: float, head_dim: int, scaling: dict[str, Any] | None) -> list[float]:
    """Rotary frequencies; with llama3 scaling as in Meta's reference code (`apply_scaling` of llama-models)."""
    out: list[float] = []
    for i in range(0, head_dim, 2):
        frequency = theta ** (-i / head_dim)
        if scaling is not None:
            original, low, high = (scaling[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
            wavelength = 2 * math.pi / frequency
            if wavelength > original / low:
                frequency /= scaling["factor"]
            elif wavelength >= original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
        out.append(float(f"{frequency:.5g}"))
    return out


def _rounded(frequencies: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in frequencies.tolist()]
